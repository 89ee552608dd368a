"""Figures of a segmented structure: overlap, surfaces and volume.

Surfaces are those of Nikolov et al. (arXiv 1809.04430) and their package surface-distance, which are MONAI's with
``use_subvoxels``: each 2 x 2 x 2 voxels that are not all alike hold an element of surface, of the area in mm2 that
marching cubes gives it on this grid. MONAI's plain surfaces count voxels instead, as if a slice of 5 mm were as thin
as a pixel.

- Surface Dice: the share of the area of both surfaces that is within the tolerance of the other one.
- HD95: in each direction, the smallest distance in mm within which 95 % of the area is of the other surface; the
  greater of both.

| prediction | truth | Dice, surface Dice | HD95 | volume error | relative |
|---|---|---|---|---|---|
| empty | empty | NaN | NaN | NaN | NaN |
| empty | not | 0 | infinite | -truth | -1 |
| not | empty | 0 | infinite | prediction | infinite |

NaN is no value: means leave the case out, and ``tally`` says of how many. Infinite HD95 make a mean infinite, so that
a miss is not hidden; ``averages.median_of_cases`` is finite while fewer than half of the cases are missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree

from components.figures.arrays import Array, Bools

QUANTILE = 0.95
# Distances on a grid often are the tolerance, and areas often 95 %: rounding must not decide.
SLACK = 1e-6
# A search tree costs some 5 us for each element of surface, a distance transform .12 us for each voxel of the box: the
# transform takes 2 to 9 times as long for a lung, and a fourteenth for noise, which is surface everywhere.
VOXELS_AN_ELEMENT = 40

Box = tuple[slice, ...]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Overlap:
    """One structure in one scan; see the table above for empty masks.

    Attributes:
        dice: 0 to 1.
        surface_dice: 0 to 1, at the tolerance that was asked for.
        hd95_mm: mm.
        volume_error_ml: prediction less truth.
        volume_error_relative: the same over the truth.
        predicted_ml: volume of the prediction.
        true_ml: volume of the truth.
    """

    dice: float
    surface_dice: float
    hd95_mm: float
    volume_error_ml: float
    volume_error_relative: float
    predicted_ml: float
    true_ml: float


@dataclass(frozen=True)
class Tally:
    """Of how many scans: all, and those in which a mask is empty: both, the prediction's alone, the truth's alone."""

    cases: int
    absent: int
    missed: int
    invented: int


def overlap(predicted: Bools, truth: Bools, spacing_mm: Sequence[float], tolerance_mm: float) -> Overlap:
    """Compare two masks (z, y, x, or any order of axes) on a grid of ``spacing_mm`` along each axis.

    Raises:
        ValueError: masks of different shapes, or not of three axes; a spacing that is not above 0; a tolerance below 0.
    """
    spacing = _checked(predicted, truth, spacing_mm, tolerance_mm)
    if predicted.dtype != bool or truth.dtype != bool:
        raise ValueError(f"segmentation: masks of {predicted.dtype} and {truth.dtype}; bool is needed")
    boxes = [found[0] for mask in (predicted, truth) if (found := ndimage.find_objects(mask.view(np.uint8)))]
    box = _union(boxes)
    return _compare(predicted[box], truth[box], spacing, tolerance_mm)


def overlaps(
    predicted: npt.NDArray[np.integer], truth: npt.NDArray[np.integer], codes: Sequence[int],
    spacing_mm: Sequence[float], tolerance_mm: float,
) -> dict[int, Overlap]:  # fmt: skip
    """As ``overlap``, for every structure of two label maps: by code (above 0), those in neither map too."""
    spacing = _checked(predicted, truth, spacing_mm, tolerance_mm)
    if not codes or min(codes) < 1:
        raise ValueError(f"segmentation: codes {list(codes)}; at least one is needed, each above 0")
    boxes = [ndimage.find_objects(labels, max_label=max(codes)) for labels in (predicted, truth)]
    found: dict[int, Overlap] = {}
    for code in codes:
        box = _union([of[code - 1] for of in boxes if of[code - 1] is not None])
        found[code] = _compare(predicted[box] == code, truth[box] == code, spacing, tolerance_mm)
    return found


def tally(found: Iterable[Overlap]) -> Tally:
    """Count the scans of one structure by which of their masks are empty."""
    empty = [(each.predicted_ml == 0, each.true_ml == 0) for each in found]
    return Tally(len(empty), empty.count((True, True)), empty.count((True, False)), empty.count((False, True)))


def _checked(
    predicted: npt.NDArray[np.generic], truth: npt.NDArray[np.generic], spacing_mm: Sequence[float], tolerance_mm: float
) -> Spacing:
    if predicted.shape != truth.shape or predicted.ndim != 3:
        raise ValueError(f"segmentation: masks of {predicted.shape} and {truth.shape}; one grid of 3 axes is needed")
    if len(spacing_mm) != 3 or not all(0 < step < np.inf for step in spacing_mm):
        raise ValueError(f"segmentation: spacing {list(spacing_mm)} mm; three finite numbers above 0 are needed")
    if not 0 <= tolerance_mm < np.inf:
        raise ValueError(f"segmentation: tolerance {tolerance_mm} mm; 0 or above is allowed")
    return float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2])


def _union(boxes: Sequence[Box]) -> Box:
    """The smallest box round all; an empty one of none."""
    if not boxes:
        return (slice(0, 0),) * 3
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


def _compare(predicted: Bools, truth: Bools, spacing: Spacing, tolerance: float) -> Overlap:
    voxel_ml = float(np.prod(spacing)) / 1000
    sizes = int(np.count_nonzero(predicted)), int(np.count_nonzero(truth))
    predicted_ml, true_ml = (size * voxel_ml for size in sizes)
    if not any(sizes):
        return Overlap(np.nan, np.nan, np.nan, np.nan, np.nan, predicted_ml, true_ml)
    error = predicted_ml - true_ml
    relative = (sizes[0] - sizes[1]) / sizes[1] if sizes[1] else np.inf
    if not all(sizes):
        return Overlap(0.0, 0.0, np.inf, error, relative, predicted_ml, true_ml)
    dice = 2 * int(np.count_nonzero(predicted & truth)) / sum(sizes)
    surface_dice, hd95 = _surfaces(predicted, truth, spacing, tolerance)
    return Overlap(dice, surface_dice, hd95, error, relative, predicted_ml, true_ml)


def _surfaces(predicted: Bools, truth: Bools, spacing: Spacing, tolerance: float) -> tuple[float, float]:
    """Surface Dice and HD95 of two masks, neither empty."""
    areas = _areas(spacing)
    codes = [_neighbour_codes(mask) for mask in (predicted, truth)]
    surfaces = [(code > 0) & (code < 255) for code in codes]
    near, total, hd95 = 0.0, 0.0, 0.0
    for own, code, other in zip(surfaces, codes, reversed(surfaces), strict=True):
        area = areas[code[own]]
        distance = _distances(own, other, spacing)
        near += float(area[distance <= tolerance + SLACK].sum())
        total += float(area.sum())
        order = np.argsort(distance, kind="stable")
        reached = np.cumsum(area[order])
        hd95 = max(hd95, float(distance[order][np.searchsorted(reached, (QUANTILE - SLACK) * reached[-1])]))
    return near / total, hd95


def _distances(own: Bools, other: Bools, spacing: Spacing) -> Array:
    """Distance in mm of each element of ``own``, in the order of the array, to the nearest of ``other``."""
    apart = own & ~other
    elements = int(np.count_nonzero(apart))
    if elements * VOXELS_AN_ELEMENT > own.size:
        transformed: Array = ndimage.distance_transform_edt(~other, sampling=spacing)
        return transformed[own]
    distance = np.zeros(own.shape)
    if elements:  # those that lie on the other surface need no search
        tree = KDTree(np.argwhere(other) * np.asarray(spacing), leafsize=32)
        distance[apart] = tree.query(np.argwhere(apart) * np.asarray(spacing))[0]
    return distance[own]


def _neighbour_codes(mask: Bools) -> npt.NDArray[np.uint8]:
    """Which of each 2 x 2 x 2 voxels are inside, as eight bits; one longer than the mask along each axis.

    Outside of the array is outside of the structure.
    """
    padded = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros([size - 1 for size in padded.shape], dtype=np.uint8)
    for bit, offset in enumerate(np.ndindex(2, 2, 2)):
        part = padded[tuple(slice(start, start + size) for start, size in zip(offset, codes.shape, strict=True))]
        codes |= part << np.uint8(7 - bit)
    return codes


@lru_cache(maxsize=64)
def _areas(spacing: Spacing) -> Array:
    """Area in mm2 of the surface element of each code."""
    from monai.metrics.utils import create_table_neighbour_code_to_surface_area  # takes torch along

    table = create_table_neighbour_code_to_surface_area(spacing)[0]  # type: ignore[no-untyped-call]
    areas: Array = table.numpy().astype(np.float64)
    return areas
