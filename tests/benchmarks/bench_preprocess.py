"""DICOM series to stored volume: ours beside the MONAI chain that most would write, interleaved in one run.

    python -m tests.benchmarks.bench_preprocess [folder of one DICOM series] [--rounds 3]

Without a folder, a phantom series is scanned. Both sides end on disk: ours as a stored volume, with all that stage
``preprocess`` does besides (every raw file's SHA-256, the measurements, the volume's SHA-256), MONAI's as the tensor
that ``PersistentDataset`` writes. Prints medians, the ratio and the bytes; then how many times as many series two
processes of ours bring in as one, in turns. Quote the ratios, machines are noisy.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import torch
from monai.data import PersistentDataset
from monai.transforms import Compose, CropForegroundd, LoadImaged, Orientationd, ScaleIntensityRanged, Spacingd

from components.ct.dicom import read_series
from components.ct.measure import measure_volume
from components.ct.standardise import crop_to_body, find_body, resample_only
from components.ct.store import write_volume
from components.files import sha256_file
from components.preprocess.config import PreprocessConfig
from components.settings import load_stage
from components.sources.config import PhantomConfig
from components.sources.phantom.dealing import plan_scans
from components.sources.phantom.scanner import scan


def ours(series: Path, scratch: Path, config: PreprocessConfig) -> int:
    paths = sorted(series.glob("*.dcm"))
    native = read_series(paths, digests={})
    resampled = resample_only(native, config)
    body = find_body(resampled, config.foreground_hu)
    # In a new folder, as the stage and the peer write: renaming onto an old file makes ext4 write to the disk at once.
    with tempfile.TemporaryDirectory(dir=scratch) as store:
        stored = Path(store) / "ours.b2nd"
        write_volume(stored, crop_to_body(resampled, body, config.foreground_margin_mm), {})
        measure_volume(native, resampled, body)
        sha256_file(stored)
        return stored.stat().st_size


def monai(series: Path, scratch: Path, config: PreprocessConfig) -> int:
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
        return sum(path.stat().st_size for path in Path(cache).iterdir())


def several(work: tuple[Path, int]) -> None:
    """What one of the worker processes does: the series so many times."""
    series, times = work
    cv2.setNumThreads(1)
    config = load_stage(PreprocessConfig, "wholebody", "preprocess")
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(times):
            ours(series, Path(scratch), config)


def gain_of_two(series: Path, rounds: int, times: int) -> float:
    """Series per second of two processes over those of one; the processes are started beforehand."""
    ratios = []
    context = multiprocessing.get_context("forkserver")
    with context.Pool(1) as one, context.Pool(2) as two:
        for pool, workers in ((one, 1), (two, 2)):
            pool.map(several, [(series, 1)] * workers, chunksize=1)
        for _ in range(rounds):
            taken = []
            for pool, workers in ((one, 1), (two, 2)):
                start = time.perf_counter()
                pool.map(several, [(series, times)] * workers, chunksize=1)
                taken.append((time.perf_counter() - start) / workers)
            ratios.append(taken[0] / taken[1])
    return statistics.median(ratios)


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
                anatomy="trunk", pretrain_patients=1, evaluation_patients=4, retest_patients=0, fault_share=0.0, seed=1
            )
            series.mkdir()
            scan(plan_scans(phantom)[0], series)
            (series / "mask.nii.gz").unlink()
            (series / "labels.json").unlink()
        seconds: dict[str, list[float]] = {"ours": [], "monai": []}
        size = {}
        for _ in range(arguments.rounds):
            for name, function in (("ours", ours), ("monai", monai)):
                start = time.perf_counter()
                size[name] = function(series, scratch, config)
                seconds[name].append(time.perf_counter() - start)
        once = statistics.median(seconds["ours"])
        gain = gain_of_two(series, arguments.rounds, times=max(6, round(4 / once)))  # seconds, not a start's length
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    stored = " and ".join(f"{size[name] / 1e6:.1f}" for name in seconds)
    print(
        f"preprocess, {arguments.rounds} rounds, one thread: ours {medians['ours']:.2f} s, "
        f"MONAI {medians['monai']:.2f} s, ratio {medians['monai'] / medians['ours']:.1f}; "
        f"stored {stored} MB, 1/{size['monai'] / size['ours']:.1f}; "
        f"two workers {gain:.2f} times one"
    )


if __name__ == "__main__":
    main()
