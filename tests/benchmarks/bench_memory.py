"""Peak memory of a worker that brings one long series into the store.

    python -m tests.benchmarks.bench_memory [--slices 1000] [--matrix 512] [--line wholebody]

The series is written first: noise over a body's outline, 1 mm slices. The worker is a process of its own, whose highest
resident memory the kernel counts; the same process with nothing to do is measured beside it.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from components.ct.dicom import read_series
from components.ct.measure import measure_volume
from components.ct.standardise import crop_to_body, find_body, resample_only
from components.ct.store import write_volume
from components.preprocess.config import PreprocessConfig
from components.settings import load_stage
from components.sources.phantom import dicom
from components.sources.phantom.geometry import geometry_of
from components.sources.phantom.seeds import uid
from components.sources.phantom.subject import Subject
from tests.fault_catalogue import small_plan


def write_series(folder: Path, slices: int, matrix: int) -> None:
    plan = replace(small_plan(), slices=1, matrix=matrix, pixel_mm=0.78, increment_mm=1.0, thickness_mm=1.0)
    geometry = geometry_of(plan)
    random = np.random.default_rng(0)
    rows, columns = np.indices((matrix, matrix)) - matrix / 2
    body = np.where((rows / 0.3) ** 2 + (columns / 0.42) ** 2 < matrix**2, 40.0, -1000.0)
    for number in range(slices):
        (item,) = dicom.series(
            plan, geometry, (body + random.normal(0, 20, body.shape))[None], Subject("F", 50, "NONE")
        )
        item.ImagePositionPatient = [*list(item.ImagePositionPatient)[:2], f"{number:.1f}"]
        item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = uid("memory", number)
        dicom.write([item], folder)
        (folder / "0001.dcm").rename(folder / f"s{number:05d}.dcm")


def work(folder: Path, line: str) -> None:
    config = load_stage(PreprocessConfig, line, "preprocess")
    paths = sorted(folder.glob("s*.dcm"))
    if paths:
        native = read_series(paths, digests={})
        resampled = resample_only(native, config)
        body = find_body(resampled, config.foreground_hu)
        write_volume(folder / "volume.b2nd", crop_to_body(resampled, body, config.foreground_margin_mm), {})
        measure_volume(native, resampled, body)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=1000)
    parser.add_argument("--matrix", type=int, default=512)
    parser.add_argument("--line", default="wholebody")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.line)
        return
    with tempfile.TemporaryDirectory() as temporary:
        full, empty = Path(temporary) / "full", Path(temporary) / "empty"
        full.mkdir()
        empty.mkdir()
        write_series(full, arguments.slices, arguments.matrix)
        raw = sum(path.stat().st_size for path in full.iterdir())
        command = [sys.executable, "-m", "tests.benchmarks.bench_memory", "--line", arguments.line, "--work"]
        peaks = [int(subprocess.run([*command, f], check=True, capture_output=True).stdout) for f in (empty, full)]
    print(
        f"{arguments.slices} slices of {arguments.matrix} x {arguments.matrix}, {raw / 1e9:.2f} GB, line "
        f"{arguments.line}: peak {peaks[1] / 1e9:.2f} GB, of which the process itself {peaks[0] / 1e9:.2f} GB; "
        f"{(peaks[1] - peaks[0]) / raw:.2f} times the raw bytes"
    )


if __name__ == "__main__":
    main()
