"""Scans that are the same for ever, on any machine and with any library: what released bundles were asked about."""

from __future__ import annotations

import hashlib

import nibabel as nib
import numpy as np
import numpy.typing as npt
from client import ct_slice, zipped

Hu = npt.NDArray[np.int16]
SPACING_MM = (3.0, 3.0, 4.0)
SERIES = "1.2.826.0.1.3680043.8.498.77"


def trunk(wider: float = 1.0) -> Hu:
    """A trunk, HU (x, y, z) on LPS axes of :data:`SPACING_MM`: soft tissue, a bright organ, a spine."""
    x, y, z = _axes((92, 68, 30))
    tissue = np.where(_inside(x, y, 120.0 * wider, 85.0), 40 + 2 * (z // 8), -1000)
    organ = (x / 38.0) ** 2 + ((y + 10.0) / 28.0) ** 2 + ((z - 6.0) / 36.0) ** 2 < 1
    tissue = np.where(organ & (tissue > -1000), 110, tissue)
    spine = _inside(x, y - 55.0, 16.0, 16.0)
    return _noisy(np.where(spine, 420 + 12 * x, tissue))


def head() -> Hu:
    """A head, as :func:`trunk`: brain under a skull, and a bleeding."""
    x, y, z = _axes((64, 74, 38))
    outer = (x / 76.0) ** 2 + (y / 94.0) ** 2 + (z / 74.0) ** 2 < 1
    brain = (x / 68.0) ** 2 + (y / 86.0) ** 2 + (z / 66.0) ** 2 < 1
    blood = (x - 25.0) ** 2 + (y + 20.0) ** 2 + z**2 < 18.0**2
    ventricle = (x / 9.0) ** 2 + (y / 30.0) ** 2 + (z / 14.0) ** 2 < 1
    hu = np.where(outer, 800 + 4 * x, -1000)
    hu = np.where(brain, 32 + z / 16, hu)
    return _noisy(np.where(blood, 68, np.where(ventricle, 6, hu)))


SCANS = {"trunk.nii": trunk, "other.nii": lambda: trunk(1.1), "third.nii": lambda: trunk(0.8), "head.nii": head}


def content(name: str) -> bytes:
    """A scan as it is sent, by its name: NIfTI, or ``.zip`` of DICOM."""
    stem, _, ending = name.partition(".")
    hu = SCANS[f"{stem}.nii"]()
    return _dicom(hu) if ending == "zip" else _nifti(hu)


def digest(name: str) -> str:
    """Hex SHA-256 of a scan's voxels and their places."""
    hu = SCANS[f"{name.partition('.')[0]}.nii"]()
    return hashlib.sha256(f"{hu.shape} {SPACING_MM}".encode() + hu.astype("<i2").tobytes()).hexdigest()


def _axes(shape: tuple[int, int, int]) -> list[npt.NDArray[np.float64]]:
    return [(axis - (n - 1) / 2) * mm for axis, n, mm in zip(np.indices(shape), shape, SPACING_MM, strict=True)]


def _inside(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], a: float, b: float) -> npt.NDArray[np.bool_]:
    return (x / a) ** 2 + (y / b) ** 2 < 1


def _noisy(hu: npt.NDArray[np.floating]) -> Hu:
    """Noise by arithmetic: generators of random numbers may change from one version of NumPy to the next."""
    i, j, k = np.indices(hu.shape, dtype=np.int64)
    mixed = (i * 73_856_093) ^ (j * 19_349_663) ^ (k * 83_492_791)
    mixed = ((mixed ^ (mixed >> 13)) * 1_274_126_177) & 0x7FFFFFFF
    noise = (mixed % 41) - 20
    return np.clip(np.floor(hu) + noise, -1024, 3071).astype(np.int16)


def _corner(hu: Hu) -> npt.NDArray[np.float64]:
    """How far in mm the first voxel lies from the middle, which is the origin."""
    middle: npt.NDArray[np.float64] = (np.array(hu.shape) - 1) / 2 * np.array(SPACING_MM)
    return middle


def _nifti(hu: Hu) -> bytes:
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    affine[:3, 3] = np.array([1, 1, -1]) * _corner(hu)
    image = nib.Nifti1Image(hu, affine)
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


def _dicom(hu: Hu) -> bytes:
    slices, (x, y, bottom) = {}, _corner(hu)
    for z in range(hu.shape[2]):
        rows_columns = hu[:, :, z].T.astype(np.int32) + 1024
        slices[f"CT/IM{z:03d}"] = ct_slice(
            z, SERIES, Rows=hu.shape[1], Columns=hu.shape[0], PixelSpacing=[SPACING_MM[1], SPACING_MM[0]],
            SliceThickness=SPACING_MM[2], ImagePositionPatient=[-x, -y, SPACING_MM[2] * z - bottom],
            PixelData=rows_columns.astype("<i2").tobytes(),
        )  # fmt: skip
    return zipped(slices)
