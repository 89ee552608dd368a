"""DICOM series to stored volume: ours beside the MONAI chain that most would write, interleaved in one run.

    python -m tests.benchmarks.bench_preprocess [folder of one DICOM series] [--rounds 3]

Without a folder, a phantom series is scanned. Both sides end on disk: ours as a stored volume, MONAI's as the tensor
that ``PersistentDataset`` writes. Prints medians and the ratio; quote the ratio, machines are noisy.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import torch
from monai.data import PersistentDataset
from monai.transforms import Compose, CropForegroundd, LoadImaged, Orientationd, ScaleIntensityRanged, Spacingd

from components.params import load_stage
from components.phantom.config import PhantomConfig
from components.phantom.plan import plan_scans
from components.phantom.scanner import scan
from components.preprocess.config import PreprocessConfig
from components.preprocess.dicom import read_series
from components.preprocess.standardise import standardise
from components.preprocess.store import write_volume


def ours(series: Path, scratch: Path, config: PreprocessConfig) -> None:
    volume = standardise(read_series(sorted(series.glob("*.dcm"))), config)
    write_volume(scratch / "ours.b2nd", volume, {})


def monai(series: Path, scratch: Path, config: PreprocessConfig) -> None:
    chain = Compose(
        [
            LoadImaged("image", ensure_channel_first=True),
            Orientationd("image", axcodes=config.orientation, labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacingd("image", pixdim=config.spacing_mm, mode="bilinear"),
            ScaleIntensityRanged("image", a_min=-1024, a_max=2048, b_min=0.0, b_max=1.0, clip=True),
            CropForegroundd("image", source_key="image", select_fn=lambda x: x > 1 / 3, allow_smaller=True),
        ]
    )
    with tempfile.TemporaryDirectory(dir=scratch) as cache:
        _ = PersistentDataset([{"image": str(series)}], chain, cache_dir=cache)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("series", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    config = load_stage(PreprocessConfig, "wholebody", "preprocess")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        series = arguments.series or scratch / "series"
        if arguments.series is None:
            phantom = PhantomConfig(
                pretrain_patients=1, evaluation_patients=4, retest_patients=0, fault_share=0.0, seed=1
            )
            series.mkdir()
            scan(plan_scans("wholebody", phantom)[0], series)
            (series / "mask.nii.gz").unlink()
            (series / "labels.json").unlink()
        seconds: dict[str, list[float]] = {"ours": [], "monai": []}
        for _ in range(arguments.rounds):
            for name, function in (("ours", ours), ("monai", monai)):
                start = time.perf_counter()
                function(series, scratch, config)
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"preprocess, {arguments.rounds} rounds, one thread: ours {medians['ours']:.2f} s, "
          f"MONAI {medians['monai']:.2f} s, ratio {medians['monai'] / medians['ours']:.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
