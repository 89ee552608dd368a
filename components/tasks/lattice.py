"""A scan as a lattice of vectors, and where in it a place of another scan is likely to be.

A crop alone is ambiguous: half the trunk looks like the middle of a kidney. So a place is known by its own vector and
those of the crops round it, and looked for as a whole: by the mean over these offsets of the cosine similarity between
a crop of the one scan and the crop at the same offset in the other. On a lattice the neighbours are there already.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from components.ct.store import AIR_HU, Int16Array, StoredVolume, Volume, crop_box
from components.figures.arrays import Array, Bools, Integers
from components.models.embed import orientation_of
from components.models.intensity import BODY_HU

COARSE_MM = 4.0  # voxels of the patient's mask
BATCH = 256  # crops cut at a time: 4 MB of 8 x 32 x 32

Size = tuple[int, int, int]
Describe = Callable[[Int16Array], npt.NDArray[np.floating]]  # crops (N, n0, n1, n2) to vectors (N, dimension)


@dataclass(frozen=True)
class Scan:
    """A scan in memory.

    Attributes:
        volume: on the line's grid.
        inside: which voxels lie in the patient, lungs and bowel included; every ``pace``-th one.
        pace: voxels of the volume per voxel of ``inside``.
    """

    volume: Volume
    inside: Bools
    pace: Size

    @classmethod
    def of(cls, volume: StoredVolume | Volume) -> Scan:
        whole = volume.read() if isinstance(volume, StoredVolume) else volume
        a, b, c = (max(1, round(COARSE_MM / mm)) for mm in whole.spacing)
        across = next(axis for axis, code in enumerate(orientation_of(whole.affine)) if code in "SI")
        return cls(whole, _inside(whole.hu[::a, ::b, ::c], across), (a, b, c))

    def has(self, voxels: Integers) -> Bools:
        """Which voxels (N, 3) lie in the patient; none outside of the volume does."""
        found = np.asarray(np.all((voxels >= 0) & (voxels < self.volume.hu.shape), axis=1))
        at = np.minimum(voxels[found] // self.pace, np.array(self.inside.shape) - 1)
        found[found] = self.inside[tuple(at.T)]
        return found

    @property
    def box(self) -> tuple[Array, Array]:
        """First and last voxel of the patient along each axis."""
        where = np.argwhere(self.inside)
        return where.min(axis=0) * self.pace * 1.0, where.max(axis=0) * self.pace * 1.0


def _inside(coarse: Int16Array, across: int) -> Bools:
    """The largest region of tissue, after an opening that takes a table's boards off, filled in each transverse section
    (``across`` is the axis that they follow each other along); all of a scan without tissue."""
    disc = np.ones(tuple(1 if axis == across else 3 for axis in range(3)), dtype=np.bool_)
    opened = ndimage.binary_opening(coarse > BODY_HU, disc)
    labels, count = ndimage.label(opened)
    if not count:
        return np.ones(coarse.shape, dtype=np.bool_)
    largest = labels == 1 + int(np.bincount(labels.ravel())[1:].argmax())
    filled = [ndimage.binary_fill_holes(section) for section in np.moveaxis(largest, across, 0)]
    out: Bools = np.moveaxis(np.stack(filled), 0, across)
    return out


class Describer:
    """Turns places of scans into vectors; crops whose middle lies outside the patient share the vector of air."""

    def __init__(self, describe: Describe, size: Size) -> None:
        self._describe, self._size = describe, size
        self.air: Array = np.asarray(describe(np.full((1, *size), AIR_HU, dtype=np.int16))[0], dtype=np.float64)

    def at(self, scan: Scan, voxels: Integers) -> Array:
        """Vectors (N, dimension) of the crops round voxels (N, 3)."""
        found = np.repeat(self.air[None], len(voxels), axis=0)
        a, b, c = scan.volume.hu.shape
        wanted = np.flatnonzero(scan.has(voxels))
        for first in range(0, len(wanted), BATCH):
            part = wanted[first : first + BATCH]
            starts = voxels[part] - np.array(self._size) // 2
            crops = [crop_box(scan.volume.hu, (a, b, c), (int(i), int(j), int(k)), self._size) for i, j, k in starts]
            found[part] = self._describe(np.stack(crops))
        return found


@dataclass(frozen=True)
class Lattice:
    """Nodes over a scan, centred on it.

    Attributes:
        first: (3,) voxel of the first node.
        step: (3,) voxels from node to node.
        inside: (k0, k1, k2) which nodes lie in the patient.
        vectors: (k0, k1, k2, dimension)
    """

    first: Integers
    step: Integers
    inside: Bools
    vectors: Array

    @classmethod
    def over(cls, scan: Scan, step: Integers, describer: Describer) -> Lattice:
        sides = np.array(scan.volume.hu.shape)
        counts = -(-sides // step)
        first = (sides - 1 - (counts - 1) * step) // 2
        nodes = np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"), axis=-1).reshape(-1, 3)
        voxels = nodes * step + first
        vectors = describer.at(scan, voxels)
        return cls(first, step, scan.has(voxels).reshape(counts), vectors.reshape(*counts, -1))

    def voxels(self, nodes: npt.NDArray[np.number]) -> Integers:
        """The voxels (N, 3) nearest to places (N, 3) in steps of the lattice."""
        found: Integers = np.floor(nodes * self.step + self.first + 0.5).astype(np.int64)
        return found


def offsets(shells: int) -> Integers:
    """Offsets (1 + 26 shells, 3) in steps: the place itself, and the 26 neighbours at each of 1 to ``shells`` steps."""
    around = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    neighbours = around[(around != 0).any(axis=1)]
    return np.concatenate([np.zeros((1, 3), dtype=np.int64), *(neighbours * shell for shell in range(1, shells + 1))])


def sought(scan: Scan, voxels: Integers, step: Integers, shells: int, describer: Describer) -> Array:
    """Places (N, 3) of a scan as they are looked for: vectors (N, 1 + 26 shells, dimension) of the crops at and round
    each."""
    around = (voxels[:, None] + offsets(shells) * step).reshape(-1, 3)
    return describer.at(scan, around).reshape(len(voxels), 1 + 26 * shells, -1)


def likeness(lattice: Lattice, wanted: Array, shells: int, air: Array) -> Array:
    """How alike each node of a lattice is to each place that is looked for: mean cosine similarity over the offsets.

    The mean vector of the scan's nodes within the patient is taken off first: it is what all places of the scan, and
    its scanner, have in common. Beyond the lattice there is air.

    Args:
        lattice: of the scan that is searched.
        wanted: see :func:`sought`; of the same step and shells.
        shells: of the offsets.
        air: vector of a crop of air.

    Returns:
        (places, k0, k1, k2); -1 outside the patient.
    """
    centre = lattice.vectors[lattice.inside].mean(axis=0) if lattice.inside.any() else air
    shape = lattice.inside.shape
    padded = np.full((*(n + 2 * shells for n in shape), len(centre)), air - centre)
    padded[tuple(slice(shells, shells + n) for n in shape)] = lattice.vectors - centre
    theirs, ours = unit(padded), unit(wanted - centre)
    summed = np.zeros((len(ours), math.prod(shape)))
    for number, offset in enumerate(offsets(shells) + shells):
        shifted = theirs[tuple(slice(start, start + n) for start, n in zip(offset, shape, strict=True))]
        summed += ours[:, number] @ shifted.reshape(-1, len(centre)).T
    alike = (summed / ours.shape[1]).reshape(len(ours), *shape)
    return np.where(lattice.inside, alike, -1.0)


def unit(vectors: Array) -> Array:
    """Vectors (..., dimension) of length 1, or 0 where they were 0."""
    out: Array = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return out


def best_place(alike: Array) -> Array:
    """The best place (3,) of a map (k0, k1, k2), in steps; the first of equals.

    Between nodes by the parabola through the best one and its neighbours along each axis, if they lie in the patient.
    """
    best = np.unravel_index(int(alike.argmax()), alike.shape)
    place = np.array(best, dtype=np.float64)
    for axis, (at, last) in enumerate(zip(best, np.array(alike.shape) - 1, strict=True)):
        if 0 < at < last:
            before, top, after = (float(alike[_moved(best, axis, by)]) for by in (-1, 0, 1))
            bend = before - 2 * top + after
            if min(before, after) > -1 and bend < 0:
                place[axis] += (before - after) / bend / 2
    return place


def _moved(node: tuple[np.intp, ...], axis: int, by: int) -> tuple[int, ...]:
    return tuple(int(at) + (by if index == axis else 0) for index, at in enumerate(node))
