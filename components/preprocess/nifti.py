"""NIfTI in, for the nifti source, real evaluation sets and the service."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from components.params import UserError
from components.preprocess.store import FloatArray, Volume

DAMAGED = (OSError, ValueError, EOFError, zlib.error, nib.filebasedimages.ImageFileError)


def read_nifti(path: Path) -> Volume:
    """Read a 3D NIfTI of HU (``.nii`` or ``.nii.gz``).

    Raises:
        UserError: not NIfTI, not three-dimensional, no orientation, or values that are no HU.
    """
    data, affine = read_values(path)
    hu = np.clip(np.rint(data) if np.issubdtype(data.dtype, np.floating) else data, -32768, 32767).astype(np.int16)
    return Volume(hu=np.ascontiguousarray(hu), affine=affine)


def read_values(path: Path) -> tuple[Any, FloatArray]:
    """The numbers of a 3D NIfTI, of HU or of labels, as the file holds them; and their affine. Raises as
    :func:`read_nifti`."""
    try:
        image: Any = nib.load(path)
        data = np.asanyarray(image.dataobj)
    except DAMAGED as error:  # nibabel's own words quote the whole path
        raise UserError(f"{path.name}: not readable as NIfTI ({type(error).__name__})") from None
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3 or min(data.shape) < 1:
        raise UserError(f"{path.name}: NIfTI of shape {data.shape} is not allowed: one volume with three axes")
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise UserError(f"{path.name}: the NIfTI affine is not invertible; it cannot be placed in millimetres")
    if not np.issubdtype(data.dtype, np.number) or np.iscomplexobj(data) or not np.isfinite(data).all():
        raise UserError(f"{path.name}: voxels of type {data.dtype} or not finite are not allowed: HU as numbers")
    # Slices first, as DICOM series are read: NIfTI's third axis is the scanner's in nearly every file.
    return data.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]]


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
