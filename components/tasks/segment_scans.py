"""A scan and the structures that kind ``segment`` is asked for, as a map of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from components.ct.labels.stored import label_map_of, read_label_map
from components.ct.store import StoredVolume, Volume
from components.errors import UserError
from components.tasks.structures import structures


@dataclass(frozen=True)
class Scan:
    """A scan and its structures.

    Attributes:
        series, patient: whose it is.
        volume: on the line's grid.
        classes: uint8 on the same grid, a structure's place in the task's list from 1; 0 for all else.
    """

    series: str
    patient: str
    volume: Volume
    classes: npt.NDArray[np.uint8]


def open_scan(series: str, patient: str, name: str, volume: StoredVolume | Volume, asked: Sequence[str]) -> Scan:
    """Read a scan with its label map; a lesion belongs to its organ, see :func:`structures`.

    Args:
        series, patient: whose it is.
        name: path of the stored volume.
        volume: the same, opened.
        asked: structures, in the order of their classes.

    Raises:
        UserError: it has no label map, or one of another shape.
    """
    path = label_map_of(Path(name))
    if path is None:
        raise UserError(f"volume {Path(name).name}: its label map is gone; run `dvc repro` to make it again")
    found = read_label_map(path)
    whole = volume.read() if isinstance(volume, StoredVolume) else volume
    if found.values.shape != whole.hu.shape:
        raise UserError(
            f"labels {path.name}: a shape of {found.values.shape} is not allowed: {whole.hu.shape}, the volume's; "
            "run `dvc repro` to make it again"
        )
    classes = np.zeros(found.values.shape, dtype=np.uint8)
    for structure, of in structures(found, whole.spacing, asked).items():
        box = tuple(slice(first, first + side) for first, side in zip(of.first, of.mask.shape, strict=True))
        classes[box][of.mask] = asked.index(structure) + 1
    return Scan(series, patient, whole, classes)
