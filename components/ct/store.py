"""The volume store: one blosc2 file per series, int16 HU, readable in parts.

The whole volume is one chunk of 32^3 blocks, so that a crop decompresses only the blocks it touches. LZ4 takes a tenth
more bytes than Zstd and half its time to unpack, which is what training waits for. Affine and provenance travel in the
file's metadata. Training, evaluation and serving read through :class:`StoredVolume` only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt

from components.files import replacing

AIR_HU = -1024  # what lies outside a volume, as in the CT-FM recipe
BLOCK = 32

Int16Array = npt.NDArray[np.int16]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Volume:
    """A CT volume in memory.

    Attributes:
        hu: int16 Hounsfield units, shape (n0, n1, n2).
        affine: float64 (4, 4), voxel index (i0, i1, i2, 1) to millimetres in RAS+ world space (NIfTI convention;
            DICOM's LPS with x and y negated). The centre of voxel (0, 0, 0) is at ``affine[:3, 3]``.
    """

    hu: Int16Array
    affine: FloatArray

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along each array axis."""
        a, b, c = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(a), float(b), float(c)


def voxel_of(affine: FloatArray, point_mm: npt.ArrayLike) -> FloatArray:
    """Voxel coordinates (float, (..., 3)) of RAS millimetre points (..., 3)."""
    inverse = np.linalg.inv(affine)
    voxels: FloatArray = np.asarray(point_mm, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]
    return voxels


def write_volume(path: Path, volume: Volume, provenance: dict[str, Any]) -> None:
    """Write ``volume`` atomically. ``provenance`` is a JSON-like mapping without clocks or paths.

    Equal input gives equal bytes.
    """
    if volume.hu.dtype != np.int16 or volume.hu.ndim != 3:
        raise ValueError(f"volume: {volume.hu.dtype} with {volume.hu.ndim} axes is not allowed: int16 with 3 axes")
    meta = {"ct": {"affine": volume.affine.tolist(), "provenance": provenance}}
    write_array(path, volume.hu, volume.hu.shape, array_blocks(volume.hu.shape), meta)


def write_layers(path: Path, layers: npt.NDArray[np.uint16], meta: dict[str, Any]) -> None:
    """Write label maps of shape (layers, n0, n1, n2) atomically, in the blocks of the volume that they belong to.

    Equal input gives equal bytes.
    """
    size = layers.shape[1:]
    write_array(path, layers, (1, *size), (1, *array_blocks(size)), {}, {"labels": meta})


def read_layers(path: Path) -> tuple[npt.NDArray[np.uint16], dict[str, Any]]:
    """What :func:`write_layers` wrote. Raises ValueError where it is not that."""
    try:
        array = blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1))
        return np.asarray(array[:], dtype=np.uint16), dict(array.schunk.vlmeta["labels"])
    except (RuntimeError, KeyError, ValueError, OSError) as error:
        raise ValueError(f"labels {path.name}: {error}") from None


def array_blocks(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The blocks of a stored volume of ``shape``."""
    return tuple(min(BLOCK, n) for n in shape)


def write_array(
    path: Path,
    array: npt.NDArray[Any],
    chunks: tuple[int, ...],
    blocks: tuple[int, ...],
    meta: dict[str, Any],
    long_meta: dict[str, Any] | None = None,
) -> None:
    """Write an array atomically as one blosc2 file, as everything in the store is written.

    Args:
        path: of the file.
        array: of any type.
        chunks, blocks: blosc2's.
        meta: in the header, at most a few kilobytes.
        long_meta: what may exceed it, such as the names of many labels.
    """
    stored = blosc2.asarray(
        np.ascontiguousarray(array),
        contiguous=True,
        chunks=chunks,
        blocks=blocks,
        cparams=blosc2.CParams(
            codec=blosc2.Codec.LZ4, clevel=9, filters=[blosc2.Filter.BITSHUFFLE], filters_meta=[0], nthreads=1
        ),
        meta=meta,
    )
    for key, value in (long_meta or {}).items():
        stored.schunk.vlmeta[key] = value
    with replacing(path) as temporary:  # the bytes that blosc2 would write, but a full disk is told as one
        temporary.write_bytes(stored.to_cframe())


class StoredVolume:
    """A stored volume, opened without reading its voxels."""

    def __init__(self, path: Path) -> None:
        """Open ``path``. Raises FileNotFoundError, or ValueError where it is not a volume of ours."""
        if not path.is_file():
            raise FileNotFoundError(f"volume {path.name}: not in the store")
        self.path = path
        try:
            self._array = blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1))
            meta = self._array.schunk.meta["ct"]
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(f"volume {path.name}: not readable as a stored volume: {error}") from None
        self.affine: FloatArray = np.asarray(meta["affine"], dtype=np.float64)
        self.provenance: dict[str, Any] = meta["provenance"]

    @property
    def shape(self) -> tuple[int, int, int]:
        a, b, c = self._array.shape
        return int(a), int(b), int(c)

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along each array axis."""
        a, b, c = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(a), float(b), float(c)

    def read(self) -> Volume:
        """The whole volume."""
        return Volume(hu=np.asarray(self._array[:], dtype=np.int16), affine=self.affine)

    def crop(self, start: tuple[int, int, int], size: tuple[int, int, int]) -> Int16Array:
        """The box of ``size`` voxels whose first voxel is ``start``; what lies outside the volume is -1024 HU."""
        return crop_box(self._array, self.shape, start, size)


def crops_at(volume: Volume | StoredVolume, points_mm: npt.ArrayLike, size: tuple[int, int, int]) -> Int16Array:
    """The boxes of ``size`` voxels round points: int16 (N, n0, n1, n2); what lies outside the volume is -1024 HU.

    Args:
        volume: stored or in memory.
        points_mm: (N, 3) in RAS millimetres; each is the voxel ``size // 2`` of its box.
        size: voxels along the array's axes.
    """
    centres_N3 = np.floor(voxel_of(volume.affine, points_mm) + 0.5).astype(np.int64)
    starts = [(int(a), int(b), int(c)) for a, b, c in centres_N3 - np.array(size) // 2]
    return np.stack([crop_of(volume, start, size) for start in starts])


def crop_of(volume: Volume | StoredVolume, start: tuple[int, int, int], size: tuple[int, int, int]) -> Int16Array:
    """The box whose first voxel is ``start``, as :meth:`StoredVolume.crop`, of a volume in memory too."""
    if isinstance(volume, StoredVolume):
        return volume.crop(start, size)
    a, b, c = volume.hu.shape
    return crop_box(volume.hu, (a, b, c), start, size)


def crop_box(
    array: Any, shape: tuple[int, int, int], start: tuple[int, int, int], size: tuple[int, int, int]
) -> Int16Array:
    """Crop a box out of any sliceable int16 array, padding with -1024 HU where it reaches outside."""
    low = [max(0, s) for s in start]
    high = [min(n, s + k) for n, s, k in zip(shape, start, size, strict=True)]
    out: Int16Array = np.full(size, AIR_HU, dtype=np.int16)
    if all(h > lo for lo, h in zip(low, high, strict=True)):
        inside = tuple(slice(lo, h) for lo, h in zip(low, high, strict=True))
        target = tuple(slice(lo - s, h - s) for lo, h, s in zip(low, high, start, strict=True))
        out[target] = array[inside]
    return out
