"""NIfTI in, for the nifti source, real evaluation sets and the service."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener

from components.ct.store import FloatArray, Int16Array, Volume
from components.errors import UserError

MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: not stated (read as mm by all), m, mm, um
SQUARE = 0.02  # pixels whose sides differ by less count as square, as screening does
RIGHT_ANGLE = 2e-3  # cosine between rows and columns that rounding may cause, as screening allows
SLAB_VOXELS = 2**22


@dataclass(frozen=True)
class _Grid:
    """Where a NIfTI's voxels lie, in the terms of a DICOM series.

    Attributes:
        order: the file's axes that run over slices, rows and columns.
        shape: voxels along them.
        affine: (slice, row, column) to RAS mm.
        missing: what the header does not state, without which voxels have no place; '' where all is there. The
            affine is then worth nothing.
    """

    order: tuple[int, int, int]
    shape: tuple[int, ...]
    affine: FloatArray
    missing: str

    @property
    def skew(self) -> float:
        """Cosine of the angle between rows and columns."""
        row, column = (self.affine[:3, axis] / np.linalg.norm(self.affine[:3, axis]) for axis in (1, 2))
        return abs(float(row @ column))


def read_nifti(path: Path) -> Volume:
    """Read a 3D NIfTI of HU (``.nii`` or ``.nii.gz``), slices first, as DICOM series are read.

    Raises:
        UserError: not NIfTI, not three-dimensional, no orientation, voxel size or known unit of length, rows and
            columns that are not at a right angle, or values that are no HU.
    """
    image = _open(path)
    grid = _placed(path, image)
    hu: Int16Array = np.empty(grid.shape, dtype=np.int16)
    in_file = hu.transpose(np.argsort(grid.order))  # the file's own axes, the last of which it stores in one piece
    step = max(1, SLAB_VOXELS // (in_file.shape[0] * in_file.shape[1]))
    for first in range(0, in_file.shape[2], step):
        # Whole, as floats, they would take ten times the memory.
        slab = _numbers(path, image, slice(first, first + step))
        whole = np.rint(slab) if np.issubdtype(slab.dtype, np.floating) else slab
        in_file[:, :, first : first + step] = np.clip(whole, -32768, 32767)
    return Volume(hu=hu, affine=grid.affine)


def read_values(path: Path) -> tuple[Any, FloatArray]:
    """The numbers of a 3D NIfTI, of HU or of labels, as the file holds them, slices first; and their affine. Raises as
    :func:`read_nifti`."""
    image = _open(path)
    grid = _placed(path, image)
    return _numbers(path, image, slice(None)).transpose(grid.order), grid.affine


def extensions_of(path: Path) -> list[bytes]:
    """What stands in a NIfTI's header behind its fields, as other software keeps it there. Raises as
    :func:`read_nifti`."""
    try:
        return [bytes(extension.content) for extension in _open(path).header.extensions]
    except (AttributeError, TypeError, ValueError):  # a format without, or a content that nibabel takes to pieces
        return []


def _numbers(path: Path, image: Any, part: slice) -> Any:
    """The voxels of ``part`` of the file's third axis."""
    rest = (0,) * (len(image.shape) - 3)
    try:
        found = np.asanyarray(image.dataobj[(slice(None), slice(None), part, *rest)])
    except MemoryError:
        raise
    except Exception as error:  # nibabel's own words quote the whole path
        raise UserError(f"{path.name}: not readable as NIfTI ({type(error).__name__})") from None
    if not np.issubdtype(found.dtype, np.number) or np.iscomplexobj(found):
        raise UserError(f"{path.name}: voxels of type {found.dtype} are not allowed: HU as numbers")
    if not np.isfinite(found).all():
        raise UserError(f"{path.name}: voxels that are NaN or infinite are not allowed: HU as numbers")
    return found


def _placed(path: Path, image: Any) -> _Grid:
    """The grid of a file that holds one volume, at a known place, and all of its voxels. Raises UserError otherwise."""
    shape = tuple(int(n) for n in image.shape)
    if len(shape) < 3 or min(shape) < 1 or any(n != 1 for n in shape[3:]):
        raise UserError(f"{path.name}: NIfTI of shape {shape} is not allowed: one volume with three axes")
    needed = image.dataobj.offset + prod(shape) * image.dataobj.dtype.itemsize
    if not path.name.endswith(".gz") and (there := path.stat().st_size) < needed:  # before memory is taken for them
        raise UserError(f"{path.name}: a NIfTI of {there} bytes is not allowed: its header needs {needed}")
    grid = _grid(path, image)
    if grid.missing:
        raise UserError(f"{path.name}: {_SAYS[grid.missing]}")
    if grid.skew > RIGHT_ANGLE:
        raise UserError(f"{path.name}: rows and columns stand at {np.degrees(np.arccos(grid.skew)):.1f} degrees; "
                        "allowed: a right angle; resample it onto such a grid")  # fmt: skip
    return grid


_SAYS = {
    "orientation": "the header states no orientation (qform_code and sform_code are 0): left and right, front and back "
    "are unknown; allowed: a NIfTI whose qform or sform is set",
    "voxel size": "the header states a voxel size of 0 (pixdim); allowed: more than 0",
    "unit of length": "the header states a unit of length that NIfTI does not know (xyzt_units); allowed: m, mm, um",
    "affine": "the NIfTI affine is not invertible; it cannot be placed in millimetres",
}


def _open(path: Path) -> Any:
    """nibabel raises many kinds on damaged headers; each is this file's rejection."""
    try:
        return nib.load(path, keep_file_open=True)  # or each slab would unpack all that lies before it
    except MemoryError:
        raise
    except Exception as error:
        raise UserError(f"{path.name}: not readable as NIfTI ({type(error).__name__})") from None


def _grid(path: Path, image: Any) -> _Grid:
    """Of an image with at least three axes."""
    affine = np.asarray(image.affine, dtype=np.float64)
    unit = int(image.header["xyzt_units"]) & 7
    affine[:3] *= MM_PER_UNIT.get(unit, 1.0)
    missing = _missing(path, image, affine, unit)
    order = (2, 1, 0) if missing else _order(affine)
    shape = tuple(int(image.shape[axis]) for axis in order)
    return _Grid(order, shape, affine[:, [*order, 3]], missing)


def _missing(path: Path, image: Any, affine: FloatArray, unit: int) -> str:
    by_sform, by_qform = int(image.header["sform_code"]) > 0, int(image.header["qform_code"]) > 0
    if not (by_sform or by_qform):
        return "orientation"
    if not by_sform:  # its voxel size is pixdim; nibabel has put 1 mm for 0 by now
        with ImageOpener(str(path)) as stream:
            pixdim = type(image.header).from_fileobj(stream, check=False)["pixdim"][1:4]
        if not (np.abs(pixdim) > 0).all():
            return "voxel size"
    if unit not in MM_PER_UNIT:
        return "unit of length"
    size = np.linalg.norm(affine[:3, :3], axis=0)
    sound = np.isfinite(affine).all() and (size > 0).all() and abs(np.linalg.det(affine[:3, :3] / size)) > 1e-3
    return "" if sound else "affine"


def _order(affine: FloatArray) -> tuple[int, int, int]:
    """The file's axes as slices, rows and columns. Its order says nothing of the scan: converters turn volumes.

    Slices run along the axis whose two others have voxels of one size, as CT's planes have; where all three are alike,
    along the one nearest to the patient's length. Columns run nearest to left and right, or to front and back.
    """
    size = np.linalg.norm(affine[:3, :3], axis=0)
    others = [np.delete(size, axis) for axis in range(3)]
    aspect = [float(pair.max() / pair.min()) for pair in others]
    alike = [axis for axis in range(3) if aspect[axis] < min(aspect) + SQUARE]
    along = np.abs(affine[2, :3]) / size
    slices = max(alike, key=lambda axis: (round(float(along[axis]), 6), axis))
    world = nib.orientations.io_orientation(affine)[:, 0]
    columns, rows = sorted((axis for axis in range(3) if axis != slices), key=lambda axis: float(world[axis]))
    return slices, rows, columns


def measure_nifti(path: Path) -> dict[str, Any]:
    """The receipt's header columns for a NIfTI volume: what its header says, in the terms of a DICOM series.

    A NIfTI names no modality: whether its values are HU is judged on the voxels, by the suite *volumes*.
    """
    kind = {"kind": "nifti", "modality": "CT", "is_ct_image": True}
    try:
        image = _open(path)
    except UserError:
        return {**kind, "unreadable_files": 1}
    if len(image.shape) < 3 or min(image.shape) < 1:
        return {**kind, "missing_tags": "affine", "instances": 1, "positions": 1}
    grid = _grid(path, image)
    if grid.missing:
        return {**kind, "missing_tags": grid.missing, "instances": grid.shape[0], "positions": grid.shape[0]}
    slices, rows, columns = grid.shape
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    directions = np.diag([-1.0, -1.0, 1.0]) @ grid.affine[:3, :3] / spacing  # to the patient's left, as DICOM counts
    normal = np.cross(directions[:, 2], directions[:, 1])
    upright = min(1.0, abs(float(normal @ directions[:, 0])) / float(np.linalg.norm(normal)))
    step = float(spacing[0]) * upright
    return {
        **kind,
        "instances": slices,
        "positions": slices,
        "orientations": 1,
        "matrices": 1,
        "pixel_spacings": 1,
        "rows": rows,
        "columns": columns,
        "spacing_row_mm": round(float(spacing[1]), 4),
        "spacing_column_mm": round(float(spacing[2]), 4),
        "field_rows_mm": round(float(spacing[1]) * rows, 3),
        "field_columns_mm": round(float(spacing[2]) * columns, 3),
        "orientation": "\\".join(f"{value:.6g}" for value in (*directions[:, 2], *directions[:, 1])),
        "gap_median_mm": round(step, 4),
        "gap_ratio": 1.0,
        "gap_min_ratio": 1.0,
        "off_line_mm": 0.0,
        "off_grid_mm": 0.0,
        "tilt_degrees": round(float(np.degrees(np.arccos(upright))), 3),
        "extent_mm": round(step * (slices - 1), 3),
    }
