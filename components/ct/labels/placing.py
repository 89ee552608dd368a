"""Masks from grids and planes of their own onto a volume's grid: what holds at the centre of each of its voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from components.ct.store import FloatArray, voxel_of
from components.errors import UserError

FLAT_MM = 0.1  # what lies in one plane may lie this far from it: coordinates are rounded where they are written
HALFWAY = 1e-3  # slices; as near to the one plane as to the other, which rounding must not decide: the lower one
ADJOINING = 1.5  # planes up to so many gaps apart have none missing between them

Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.intp]


class LabelError(UserError):
    """What is wrong with a file of labels, without its name."""


@dataclass(frozen=True)
class Placed:
    """A segment on the grid.

    Attributes:
        name: as the file gives it, or what stands in for it.
        code: scheme, value and meaning; '' where it is not coded.
        mask: shape of the grid.
        covered: share of it that the grid covers; 1 of an empty segment.
    """

    name: str
    code: str
    mask: Mask
    covered: float


def nearest_voxels(
    mask: npt.NDArray[Any], own: FloatArray, affine: FloatArray, shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """A label map on another grid: the label at each voxel's centre, 0 where the map does not reach.

    Args:
        mask: labels; own: its affine.
        affine, shape: the grid that is wanted.
    """
    if mask.shape == tuple(shape) and np.allclose(own, affine, atol=1e-6):
        return mask
    change = np.linalg.inv(own) @ affine
    axes = np.abs(change[:3, :3]).argmax(axis=0)  # for each axis of the grid, the map's axis that it runs along
    along = np.zeros((3, 3))
    along[axes, range(3)] = change[axes, range(3)]
    if sorted(axes) != [0, 1, 2] or np.abs(change[:3, :3] - along).max() * max(shape) > 1e-3:
        turned: npt.NDArray[Any] = ndimage.affine_transform(
            mask, change[:3, :3], change[:3, 3], tuple(shape), order=0, mode="grid-constant"
        )
        return turned
    out = np.zeros(shape, dtype=mask.dtype)
    picked: list[Places] = [np.empty(0, np.intp)] * 3
    inside: list[Places] = []
    for axis, size in zip(axes, shape, strict=True):
        grid_axis = len(inside)
        place = np.floor(change[axis, grid_axis] * np.arange(size) + change[axis, 3] + 0.5)
        there = np.flatnonzero((place >= 0) & (place < mask.shape[axis]))
        inside.append(there)
        picked[axis] = place[there].astype(np.intp)
    values = mask[np.ix_(*picked)].transpose(axes)
    out[np.ix_(*inside)] = values
    return out


def within(points: FloatArray, affine: FloatArray, shape: tuple[int, ...]) -> Mask:
    """Which RAS millimetre points (n, 3) lie within the grid's voxels."""
    voxels = voxel_of(affine, points)
    inside: Mask = np.all((voxels >= -0.5) & (voxels <= np.asarray(shape) - 0.5), axis=1)
    return inside


def covered_share(mask: npt.NDArray[Any], own: FloatArray, affine: FloatArray, shape: tuple[int, ...]) -> float:
    """Share of the labelled voxels whose centre lies within the grid; 1 where none is labelled."""
    return covered_shares(mask.astype(np.uint8, copy=False), own, affine, shape).get(1, 1.0)


def covered_shares(
    labels: npt.NDArray[np.unsignedinteger[Any]], own: FloatArray, affine: FloatArray, shape: tuple[int, ...]
) -> dict[int, float]:
    """Label to the share of its voxels whose centre lies within the grid; labels without a voxel are not in it."""
    total, inside = np.zeros(1, np.int64), np.zeros(1, np.int64)
    for index, plane in enumerate(labels):  # one at a time: the places of all would take 24 bytes for each voxel
        if not plane.any():
            continue
        places = np.argwhere(plane)
        values = plane[tuple(places.T)].astype(np.int64)
        points = places @ own[:3, 1:3].T + (own[:3, 3] + index * own[:3, 0])
        for counts, chosen in ((total, values), (inside, values[within(points, affine, shape)])):
            counts.resize(max(len(counts), int(values.max()) + 1), refcheck=False)
            counts += np.bincount(chosen, minlength=len(counts))
    return {int(value): float(inside[value] / total[value]) for value in np.flatnonzero(total)}


def clusters(places: FloatArray, apart: float) -> list[Places]:
    """Which of ``places`` along an axis are one plane: those nearer than ``apart`` to their neighbour, lowest first.

    Raises:
        LabelError: they lie so close that planes cannot be told apart.
    """
    order = np.argsort(places, kind="stable")
    starts = np.flatnonzero(np.diff(places[order]) > apart) + 1
    found: list[Places] = [part for part in np.split(order, starts) if len(part)]
    if any(np.ptp(places[part]) > 2 * apart for part in found):
        raise LabelError(f"planes less than {FLAT_MM} mm apart cannot be told from one another")
    return found


def nearest_planes(places: FloatArray, gap: float, count: int) -> Places:
    """For each of ``count`` slices of a grid the plane that it takes: the nearest, no farther than half the distance
    from plane to plane; -1 where there is none.

    Args:
        places: of the planes in slices, ascending, at least one.
        gap: usual distance from plane to plane, in slices. Where two neighbours are farther apart, but not so far that
            a plane is missing between them, what lies between is shared out all the same.
    """
    index = np.arange(count)
    after = np.searchsorted(places, index, side="left").clip(0, len(places) - 1)
    before = (after - 1).clip(0)
    nearer = np.abs(places[before] - index) <= np.abs(places[after] - index) + HALFWAY
    plane = np.where(nearer, before, after)
    between = places[after] - places[before]
    enclosed = (places[before] <= index) & (index <= places[after]) & (between <= ADJOINING * gap)
    reach = np.where(enclosed, np.maximum(between, gap), gap) / 2
    return np.where(np.abs(places[plane] - index) <= reach + 1e-6, plane, -1)


def stacked(
    planes: Sequence[tuple[FloatArray, Mask]], gap: float, affine: FloatArray, shape: tuple[int, ...]
) -> tuple[Mask, float]:
    """Masks in planes that need not be evenly apart, or lie straight above one another, onto a grid.

    Args:
        planes: affine of each, (1, row, column) to RAS mm with any first column, and its mask of shape (rows, columns).
        gap: smallest distance from plane to plane in mm.
        affine, shape: the grid; one of its axes is across the planes.

    Returns:
        Mask, and the share of the labelled pixels whose centre lies within the grid.

    Raises:
        LabelError: the planes are not parallel to planes of the grid, or two of them are one.
    """
    out: Mask = np.zeros(shape, dtype=np.bool_)
    if not planes:
        return out, 1.0
    across = _across([own for own, _ in planes], planes[0][1].shape, affine)
    origins = voxel_of(affine, np.stack([own[:3, 3] for own, _ in planes]))
    order = np.argsort(origins[:, across], kind="stable")
    step = float(np.linalg.norm(affine[:3, across]))
    places = origins[order, across]
    if (np.diff(places) * step < FLAT_MM).any():
        raise LabelError("two frames of one segment lie in one plane")
    flat = tuple(1 if axis == across else size for axis, size in enumerate(shape))
    target = np.moveaxis(out, across, 0)
    for index, chosen in enumerate(nearest_planes(places, gap / step, shape[across])):
        if chosen < 0:
            continue
        own, mask = planes[order[chosen]]
        here, there = own.copy(), affine.copy()
        here[:3, 0] = affine[:3, across]
        here[:3, 3] += affine[:3, across] * (index - places[chosen])  # onto the slice that takes it
        there[:3, 3] += affine[:3, across] * index
        target[index] = np.moveaxis(nearest_voxels(mask[None], here, there, flat), across, 0)[0]
    points = [np.argwhere(mask) @ own[:3, 1:3].T + own[:3, 3] for own, mask in planes]
    inside = [within(part, affine, shape) for part in points if len(part)]
    return out, float(np.concatenate(inside).mean()) if inside else 1.0


def _across(planes: Sequence[FloatArray], size: tuple[int, ...], affine: FloatArray) -> int:
    """The grid's axis that the planes do not move along."""
    inverse, spacing = np.linalg.inv(affine[:3, :3]), np.linalg.norm(affine[:3, :3], axis=0)
    corners = np.array([[0, 0], [0, size[1] - 1], [size[0] - 1, 0], [size[0] - 1, size[1] - 1]])
    spread = np.max([np.ptp(corners @ (inverse @ own[:3, 1:3]).T, axis=0) * spacing for own in planes], axis=0)
    across = int(spread.argmin())
    if not spread[across] <= FLAT_MM:
        raise LabelError(f"its planes leave the volume's by {spread[across]:.2f} mm; allowed: {FLAT_MM} mm; are they "
                         "of the same scan?")  # fmt: skip
    return across
