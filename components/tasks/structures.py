"""Structures of a label map: their innermost points, whether a place lies in one, and how far off it is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from components.ct.labels.stored import LabelMap, label_map_of, read_label_map
from components.errors import UserError
from components.figures.arrays import Array, Bools, Integers
from components.tasks.annotated import LESION, structure_class


@dataclass(frozen=True)
class Structure:
    """A structure in the box that holds it.

    Attributes:
        first: (3,) first voxel of the box.
        mask: of the box.
        spacing: mm of a voxel.
        surface: (N, 3) voxels of the structure that touch others.
    """

    first: Integers
    mask: Bools
    spacing: tuple[float, float, float]
    surface: Integers

    def innermost(self) -> Integers:
        """The voxel (3,) that is farthest from all others; the first of equals."""
        depth = ndimage.distance_transform_edt(np.pad(self.mask, 1), sampling=self.spacing)
        found: Integers = np.array(np.unravel_index(int(depth.argmax()), depth.shape)) - 1 + self.first
        return found

    def distance(self, voxel: Integers) -> float:
        """Millimetres from a voxel (3,) to the nearest one of the structure; 0 inside."""
        at = voxel - self.first
        if ((at >= 0) & (at < self.mask.shape)).all() and self.mask[tuple(at)]:
            return 0.0
        gaps: Array = (self.surface - voxel) * np.array(self.spacing)
        return float(np.sqrt(np.square(gaps).sum(axis=1).min()))


def structures(found: LabelMap, spacing: tuple[float, float, float], names: Collection[str]) -> dict[str, Structure]:
    """Those of ``names`` that have a voxel.

    A lesion belongs to its organ: ``lesion_kidney`` to the kidney in whose box it lies.
    """
    boxes = ndimage.find_objects(found.values)
    of_name: dict[str, list[int]] = {}
    for value, name in found.names.items():
        if 0 < value <= len(boxes) and boxes[value - 1] is not None:
            of_name.setdefault(name, []).append(value)
    out = {}
    for name in sorted(set(names) & set(of_name)):
        own = of_name[name]
        box = tuple(
            slice(min(boxes[v - 1][axis].start for v in own), max(boxes[v - 1][axis].stop for v in own))
            for axis in range(3)
        )
        mask = np.isin(found.values[box], own + of_name.get(LESION + structure_class(name), []))
        first = np.array([side.start for side in box], dtype=np.int64)
        edge = mask & ~ndimage.binary_erosion(mask)
        out[name] = Structure(first, mask, spacing, np.argwhere(edge) + first)
    return out


def structures_of(volume: Path, spacing: tuple[float, float, float], names: Collection[str]) -> dict[str, Structure]:
    """Those of a stored volume. Raises UserError where its label map is not there any more."""
    path = label_map_of(volume)
    if path is None:
        raise UserError(f"labels {volume.name}: no label map in the store; run `dvc repro` to make it again")
    return structures(read_label_map(path), spacing, names)
