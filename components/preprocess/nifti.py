"""NIfTI in, for the nifti source, real evaluation sets and the service."""

from __future__ import annotations

import zlib
from math import prod
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from components.params import UserError
from components.preprocess.store import Int16Array, Volume

DAMAGED = (
    OSError, ValueError, EOFError, OverflowError, zlib.error, nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
)  # fmt: skip
SLAB_VOXELS = 2**22


def read_nifti(path: Path) -> Volume:
    """Read a 3D NIfTI of HU (``.nii`` or ``.nii.gz``).

    Raises:
        UserError: not NIfTI, not three-dimensional, no orientation, or values that are no HU.
    """
    try:
        image: Any = nib.load(path, keep_file_open=True)  # or each slab would unpack all that lies before it
        hu = _slabs(image.dataobj, path)
    except UserError:
        raise
    except DAMAGED as error:  # nibabel's own words quote the whole path
        raise UserError(f"{path.name}: not readable as NIfTI ({type(error).__name__})") from None
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise UserError(f"{path.name}: the NIfTI affine is not invertible; it cannot be placed in millimetres")
    # Slices first, as DICOM series are read: NIfTI's third axis is the scanner's in nearly every file.
    return Volume(hu=hu, affine=affine[:, [2, 1, 0, 3]])


def _slabs(voxels: Any, path: Path) -> Int16Array:
    """int16 HU, slices first, read a few slices at a time: whole, as floats, they would take ten times the memory."""
    shape, name = tuple(int(n) for n in voxels.shape), path.name
    rest = (0,) * (len(shape) - 3)
    if len(shape) < 3 or min(shape) < 1 or any(n != 1 for n in shape[3:]):
        raise UserError(f"{name}: NIfTI of shape {shape} is not allowed: one volume with three axes")
    needed = voxels.offset + prod(shape) * voxels.dtype.itemsize
    if not name.endswith(".gz") and (there := path.stat().st_size) < needed:  # before memory is taken for them
        raise UserError(f"{name}: a NIfTI of {there} bytes is not allowed: its header needs {needed}")
    hu: Int16Array = np.empty(shape[2::-1], dtype=np.int16)
    step = max(1, SLAB_VOXELS // (shape[0] * shape[1]))
    for first in range(0, shape[2], step):
        slab = np.asanyarray(voxels[(slice(None), slice(None), slice(first, first + step), *rest)])
        if not np.issubdtype(slab.dtype, np.number) or np.iscomplexobj(slab) or not np.isfinite(slab).all():
            raise UserError(f"{name}: voxels of type {slab.dtype} or not finite are not allowed: HU as numbers")
        whole = np.rint(slab) if np.issubdtype(slab.dtype, np.floating) else slab
        hu[first : first + step] = np.clip(whole, -32768, 32767).transpose(2, 1, 0)
    return hu


def measure_nifti(path: Path) -> dict[str, Any]:
    """The receipt's header columns for a NIfTI volume: what its header says, in the terms of a DICOM series.

    A NIfTI names no modality: whether its values are HU is judged on the voxels, by the suite *volumes*.
    """
    try:
        image: Any = nib.load(path)
        shape, affine = image.shape[:3], np.asarray(image.affine, dtype=np.float64)
    except DAMAGED:
        return {"kind": "nifti", "unreadable_files": 1}
    if len(shape) != 3 or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        return {"kind": "nifti", "missing_tags": "affine", "instances": 1, "positions": 1}
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / spacing
    normal = np.cross(directions[:, 0], directions[:, 1])
    tilt = np.degrees(np.arccos(np.clip(abs(float(normal @ directions[:, 2])), 0.0, 1.0)))
    return {
        "kind": "nifti",
        "instances": int(shape[2]),
        "positions": int(shape[2]),
        "orientations": 1,
        "matrices": 1,
        "pixel_spacings": 1,
        "modality": "CT",
        "is_ct_image": True,
        "rows": int(shape[1]),
        "columns": int(shape[0]),
        "spacing_row_mm": round(float(spacing[1]), 4),
        "spacing_column_mm": round(float(spacing[0]), 4),
        "gap_median_mm": round(float(spacing[2]), 4),
        "gap_ratio": 1.0,
        "tilt_degrees": round(float(tilt), 3),
        "extent_mm": round(float(spacing[2] * (shape[2] - 1)), 3),
    }
