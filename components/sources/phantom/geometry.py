"""Where a scan's slices lie: from a plan to the grid, to DICOM's orientation and position, and to NIfTI's affine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.sources.phantom.plan import ScanPlan
from components.sources.phantom.shapes import F64, rotation

# Which grid axes a patient position reverses: rows (posterior) and columns (left).
_REVERSED = {"HFS": (False, False), "HFP": (True, True), "FFS": (False, True), "FFP": (True, False)}


@dataclass(frozen=True)
class Geometry:
    """The grid of one scan.

    Attributes:
        shape: (K, R, C): slices from the lowest up, rows to posterior, columns to left.
        grid: (4, 4), index (k, r, c, 1) to DICOM patient coordinates (LPS, mm).
        anatomy: (4, 4), the same index to anatomy coordinates (mm).
        flip: (rows, columns) reversed when stored, by patient position.
        stored: (4, 4), stored index (k, r, c, 1) to LPS mm, after the flips.
    """

    shape: tuple[int, int, int]
    grid: F64
    anatomy: F64
    flip: tuple[bool, bool]
    stored: F64

    @property
    def orientation(self) -> list[float]:
        """ImageOrientationPatient: direction of a row (columns increase), then of a column (PS3.3 C.7.6.2.1.1)."""
        along = [self.stored[:3, axis] / np.linalg.norm(self.stored[:3, axis]) for axis in (2, 1)]
        return [round(float(v), 9) + 0.0 for v in np.concatenate(along)]

    def position(self, k: float) -> list[float]:
        """ImagePositionPatient of slice ``k``: the centre of its first pixel."""
        return [round(float(v), 5) + 0.0 for v in self.stored[:3, 3] + k * self.stored[:3, 0]]

    def affine_ras(self) -> F64:
        """(4, 4) NIfTI affine of the stored volume with axes (column, row, slice): RAS millimetres."""
        affine = self.stored[:, [2, 1, 0, 3]].copy()
        affine[:2] *= -1
        return affine


def geometry_of(plan: ScanPlan) -> Geometry:
    """Place the grid of ``plan`` in the patient's and in the scanner's space."""
    k, n = plan.slices, plan.matrix
    tilt = np.deg2rad(plan.gantry_tilt_deg)
    planes = rotation((plan.oblique_deg, 0.0, 0.0))
    grid = np.eye(4)
    # A tilted gantry turns the image planes, while the table still moves along its own axis: the volume is sheared.
    grid[:3, 0] = (planes @ [0.0, 0.0, 1.0]) * plan.increment_mm
    grid[:3, 1] = planes @ [0.0, np.cos(tilt), np.sin(tilt)] * plan.pixel_mm
    grid[:3, 2] = planes @ [1.0, 0.0, 0.0] * plan.pixel_mm
    centre = np.array([(k - 1) / 2, (n - 1) / 2, (n - 1) / 2])
    middle_z = plan.start_mm + (k - 1) / 2 * plan.increment_mm
    grid[:3, 3] = np.array([0.0, 0.0, middle_z]) - grid[:3, :3] @ centre

    turn = np.eye(4)
    pivot = np.array([0.0, 0.0, middle_z if plan.anatomy == "trunk" else 0.0])
    turn[:3, :3] = rotation(plan.turn_deg)
    turn[:3, 3] = pivot + np.asarray(plan.shift_mm) - turn[:3, :3] @ pivot
    anatomy = turn @ grid

    frame = np.eye(4)
    frame[:3, 3] = plan.frame_mm
    grid = frame @ grid
    flip = _REVERSED[plan.position]
    undo = np.eye(4)
    for axis, reverse in ((1, flip[0]), (2, flip[1])):
        if reverse:
            undo[axis, axis] = -1
            undo[axis, 3] = n - 1
    return Geometry((k, n, n), grid, anatomy, flip, grid @ undo)
