"""The masks that a labelled set has of a series, on their way onto its volume's grid."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.command import masks_slice
from components.ct.labels.masks import Grid, Masked, MaskFile, masks_apart
from components.ct.labels.stored import MAX_VALUE, LabelMap
from components.ct.origin import Origin
from components.ct.store import Volume
from components.files import StopStageError, read_json, sha256_file
from components.sources.masks import ROOT
from components.sources.roots import place_of, root_of
from components.sources.sets import LabelledSet
from components.sources.tree import resolve
from components.tables import read_table


@dataclass(frozen=True)
class SeriesMasks:
    """Masks of one series.

    Attributes:
        line, set: whose they are.
        keyed: whether ``files`` name them by pseudonyms.
        files: location, structure and SHA-256 of each, in the order of their names.
        names: see :func:`components.ct.labels.masks.masks_together`.
    """

    line: str
    set: str
    keyed: bool
    files: tuple[tuple[str, str, str], ...]
    names: Mapping[str, str]

    @property
    def asked(self) -> list[Any]:
        """What the label map depends on, but for the volume."""
        return [self.files, sorted(self.names.items())]

    def on(self, volume: Volume, native: Volume, scan: Origin) -> Masked:
        """The label map on the volume's grid.

        Args:
            volume: oriented, resampled and cropped already.
            native: as the series has it.
            scan: which it is of.

        Raises:
            StopStageError: the masks are not on this machine, or not those that the set pins.
            UserError: as :func:`components.ct.labels.masks.masks_together`.
        """
        grids = [Grid(of.affine, of.hu.shape) for of in (volume, native)]
        return masks_apart(self._found(), self.names, grids[0], grids[1], scan)

    def _found(self) -> list[MaskFile]:
        place = place_of(self.line, self.set)
        told = [location for location, _, _ in self.files]
        locations = resolve(ROOT, place, told) if self.keyed else told
        root, found = root_of(ROOT, place), []
        for (shown, structure, sha256), location in zip(self.files, locations, strict=True):
            path = root / location
            if not path.is_file() or sha256_file(path) != sha256:
                raise StopStageError(
                    f"masks {shown} of set {self.set}: not the file that the cohort lists; run `ctfoundry set pin "
                    f"{self.set} --line {self.line}`"
                )
            found.append(MaskFile(path, shown, structure))
        return found


def masks_by_series(
    line: str, cohort_folder: Path, shard: int, sets: Mapping[str, LabelledSet]
) -> dict[str, SeriesMasks]:
    """Series of the shard to their masks, of those that have some."""
    part = masks_slice(cohort_folder, shard)
    table, names = read_table(part / "masks.parquet").sort_values("number"), read_json(part / "names.json")
    found: dict[str, SeriesMasks] = {}
    for series, rows in table.groupby("series"):
        of_set = str(rows["set"].iloc[0])  # a series has masks of one set
        files = tuple(rows[["location", "structure", "sha256"]].itertuples(index=False, name=None))
        found[str(series)] = SeriesMasks(line, of_set, sets[of_set].paths == "keyed", files, names[of_set])
    return found


def found_in(labels: LabelMap, masked: Masked | None = None) -> str:
    """What a label map holds, as the catalogue's column ``labels_found`` has it: structure to ``voxels``, and where
    they are known its ``code``, the voxels that it lost to smaller structures and the share that the volume covers."""
    counts = np.bincount(labels.values.ravel(), minlength=MAX_VALUE + 1)
    found: dict[str, dict[str, Any]] = {}
    for value, name in labels.names.items():
        told = found.setdefault(name, {"voxels": 0})
        told["voxels"] += int(counts[value])
        if value in labels.codes:
            told["code"] = labels.codes[value]
        if masked and masked.overlapped.get(value):
            told["overlapped"] = told.get("overlapped", 0) + masked.overlapped[value]
        if masked and masked.covered.get(value, 1.0) < 1:
            told["covered"] = min(told.get("covered", 1.0), masked.covered[value])
    return json.dumps(found, sort_keys=True)
