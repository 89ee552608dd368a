"""A random 96^3 crop out of one stored volume: our store beside MONAI's PersistentDataset, NIfTI (gzip) and zarr.

    python -m tests.benchmarks.bench_crop [folder of one DICOM series] [--rounds 20]

The same standard volume is stored in each way, at 1 mm (the head line's grid). Reads are interleaved; *cold* means that
the file's pages were dropped before the read (posix_fadvise). zarr is a peer here and nowhere else: `pip install zarr`.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import torch
from monai.data import PersistentDataset
from monai.transforms import Transform

from components.ct.dicom import read_series
from components.ct.standardise import crop_to_body, find_body, resample_only
from components.ct.store import StoredVolume, Volume, write_volume
from components.preprocess.config import PreprocessConfig
from components.settings import load_stage
from tests.geometry_cases import small_scan

SIDE = 96
Crop = Callable[[tuple[int, int, int]], np.ndarray]


class AsTensor(Transform):  # type: ignore[misc]
    """What a MONAI chain ends in: channel first, float32."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume

    def __call__(self, data: object) -> torch.Tensor:
        return torch.from_numpy(self.volume.hu.astype(np.float32))[None]


def box(start: tuple[int, int, int]) -> tuple[slice, ...]:
    return tuple(slice(s, s + SIDE) for s in start)


def stores(volume: Volume, folder: Path) -> dict[str, tuple[Path, Crop]]:
    """Name to file or folder, and how a crop is read from it."""
    write_volume(folder / "volume.b2nd", volume, {})
    cached = PersistentDataset([0], AsTensor(volume), cache_dir=folder / "monai")
    _ = cached[0]
    nib.save(nib.Nifti1Image(volume.hu, volume.affine), folder / "volume.nii.gz")
    found: dict[str, tuple[Path, Crop]] = {
        "ours": (folder / "volume.b2nd", lambda s: StoredVolume(folder / "volume.b2nd").crop(s, (SIDE, SIDE, SIDE))),
        "PersistentDataset": (folder / "monai", lambda s: cached[0][0][box(s)].numpy()),
        "nii.gz": (folder / "volume.nii.gz", lambda s: np.asarray(nib.load(folder / "volume.nii.gz").dataobj[box(s)])),
    }
    try:
        import zarr
    except ImportError:
        print("zarr is not installed: not compared")
        return found
    place = folder / "volume.zarr"
    array = zarr.create_array(str(place), shape=volume.hu.shape, chunks=(64, 64, 64), dtype="int16")
    array[:] = volume.hu
    return {**found, "zarr": (place, lambda s: zarr.open_array(str(place), mode="r")[box(s)])}


def files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]


def drop(path: Path) -> None:
    """Drop the pages of a file, or of all files below a folder, from the page cache."""
    for file in files(path):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("series", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    grid = load_stage(PreprocessConfig, "head", "preprocess")
    with tempfile.TemporaryDirectory() as temporary:
        series = arguments.series or small_scan(Path(temporary) / "series")
        volume = resample_only(read_series(sorted(series.glob("*.dcm"))), grid)
        volume = crop_to_body(volume, find_body(volume, grid.foreground_hu), grid.foreground_margin_mm)
        places = stores(volume, Path(temporary))
        seconds: dict[tuple[str, str], list[float]] = {(n, kind): [] for n in places for kind in ("cold", "warm")}
        chance = random.Random(0)
        for _ in range(arguments.rounds):
            start = tuple(chance.randrange(n - SIDE + 1) for n in volume.hu.shape)
            for name, (path, crop) in places.items():
                for kind in ("cold", "warm"):
                    if kind == "cold":
                        drop(path)
                    begin = time.perf_counter()
                    found = crop(start)
                    seconds[name, kind].append(time.perf_counter() - begin)
                    assert np.array_equal(found, volume.hu[box(start)]), name
        print(f"a {SIDE}^3 crop of {volume.hu.shape}, {arguments.rounds} rounds, one thread:")
        for name, (path, _) in places.items():
            cold, warm = (statistics.median(seconds[name, kind]) for kind in ("cold", "warm"))
            ratios = [t / statistics.median(seconds["ours", k]) for t, k in ((cold, "cold"), (warm, "warm"))]
            size = sum(file.stat().st_size for file in files(path))
            print(f"  {name:18} cold {cold * 1e3:7.1f} ms ({ratios[0]:5.1f} times ours), warm {warm * 1e3:7.1f} ms "
                  f"({ratios[1]:5.1f} times), {size / 1e6:.1f} MB")  # fmt: skip


if __name__ == "__main__":
    main()
