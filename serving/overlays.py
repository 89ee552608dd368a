"""Arrays that lie on a scan as it was sent: brought there from the model's grid, and written as NIfTI."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from typing import TypeVar

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from components.ct.store import FloatArray, Volume

Value = TypeVar("Value", np.uint8, np.float32)


def onto(values: npt.NDArray[Value], affine: FloatArray, sent: Volume) -> npt.NDArray[Value]:
    """Values (a, b, c) of another grid on that of ``sent``, by the nearest voxel; 0 where there is none.

    Args:
        values: of voxels or of blocks.
        affine: of them, to RAS mm.
        sent: the scan.
    """
    step = np.linalg.inv(affine) @ sent.affine
    moved: npt.NDArray[Value] = ndimage.affine_transform(
        values, step[:3, :3], step[:3, 3], sent.hu.shape, order=0, mode="grid-constant", cval=0
    )
    return moved


def nifti_bytes(
    values: npt.NDArray[np.generic],
    affine: FloatArray,
    extensions: Sequence[nib.nifti1.Nifti1Extension] = (),
    level: int = 6,
) -> bytes:
    """An array whose slices come first as .nii.gz, columns first and slices last, as other software has it; equal
    arrays give equal bytes. ``level``: of the compression, 1 for the fastest."""
    image = nib.Nifti1Image(values.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]])
    image.header.set_xyzt_units("mm")
    image.header.extensions.extend(extensions)
    return gzip.compress(image.to_bytes(), compresslevel=level, mtime=0)
