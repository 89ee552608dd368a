"""Listing a tree of 20,000 CT files: ours beside plain pydicom, interleaved in one run.

    python -m tests.benchmarks.bench_headers [folder of DICOM files] [--files 20000] [--rounds 3] [--workers 1]

The files have the headers of the given ones (of phantom series without a folder), each with its own SOPInstanceUID,
and pixels cut to 8 rows. Plain pydicom is ``dcmread(stop_before_pixels=True)`` and the attributes that a listing needs;
ours finds the files, reads, groups and accounts for all of them, too. Prints medians and the ratio; quote the ratio,
machines are noisy.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pydicom

from components.cohort.config import CohortConfig
from components.ct.headers import LISTED_TAGS
from components.settings import load_stage
from components.sources.dicom_tree import list_tree
from components.sources.phantom.dealing import plan_scans
from components.sources.phantom.scanner import scan

ROWS = 8
SERIES = 250  # files


def phantom_files(folder: Path, config: CohortConfig) -> list[Path]:
    """Slices of a few phantom scanners, explicit and implicit VR."""
    sizes = {"pretrain_patients": 4, "evaluation_patients": 4, "retest_patients": 0, "fault_share": 0.0}
    for number, plan in enumerate(plan_scans(config.phantom.model_copy(update=sizes))[:4]):
        (folder / str(number)).mkdir(parents=True)
        scan(plan, folder / str(number))
    return sorted(folder.rglob("*.dcm"))


def build(sources: list[Path], files: int, tree: Path) -> None:
    """Write ``files`` genuine files into folders of one series each."""
    templates = []
    for path in sources[:: max(1, len(sources) // 40)]:
        try:
            dataset = pydicom.dcmread(path)
        except pydicom.errors.InvalidDicomError:
            continue
        if "PixelData" not in dataset or dataset.file_meta.TransferSyntaxUID.is_compressed:
            continue
        dataset.Rows = ROWS
        dataset.PixelData = dataset.PixelData[: ROWS * dataset.Columns * dataset.BitsAllocated // 8]
        templates.append(dataset)
    for number in range(files):
        series = number // SERIES
        dataset = templates[series % len(templates)]
        dataset.SeriesInstanceUID = f"1.2.826.0.1.3680043.10.1.{series + 1}"
        dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.10.2.{number + 1}"
        folder = tree / f"{series:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        dataset.save_as(folder / f"{number:06d}.dcm")


def plain(tree: Path, keywords: tuple[str, ...]) -> int:
    read = 0
    for path in sorted(tree.rglob("*")):
        if path.is_file():
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
            read += any(dataset.get(keyword) is not None for keyword in keywords)
    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    config = load_stage(CohortConfig, "wholebody", "cohort")
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder
        sources = sorted(folder.rglob("*")) if folder else phantom_files(Path(scratch) / "phantom", config)
        tree = Path(scratch) / "tree"
        build([path for path in sources if path.is_file()], arguments.files, tree)
        sides: dict[str, Callable[[], int]] = {
            "ours": lambda: sum(row["series"] != "" for row in list_tree(tree, config, arguments.workers).files),
            "pydicom": lambda: plain(tree, LISTED_TAGS),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(arguments.rounds):
            for name, side in sides.items():
                start = time.perf_counter()
                assert side() == arguments.files
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rates = {name: arguments.files / median for name, median in medians.items()}
    print(f"headers, {arguments.files} files, {arguments.rounds} rounds, {arguments.workers} process(es): ours "
          f"{rates['ours']:.0f} files/s, pydicom {rates['pydicom']:.0f} files/s, "
          f"ratio {rates['ours'] / rates['pydicom']:.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
