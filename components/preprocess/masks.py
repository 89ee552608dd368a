"""The masks that a labelled set has of a series, on their way onto its volume's grid."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from components.command import masks_slice
from components.ct.keys import uid_key
from components.ct.labels.masks import Grid, Masked, MaskFile, masks_apart
from components.ct.labels.stored import MAX_VALUE, LabelMap
from components.ct.origin import Origin
from components.ct.store import Volume
from components.errors import UserError
from components.files import StopStageError, read_json, sha256_file
from components.sources.config import TransferConfig
from components.sources.masks import ROOT, referred_by
from components.sources.roots import place_of, root_of
from components.sources.series import SeriesJob
from components.sources.sets import LabelledSet
from components.sources.transfer import Bucket, download
from components.sources.tree import resolve
from components.tables import read_table


@dataclass(frozen=True)
class SeriesMasks:
    """Masks of one series.

    Attributes:
        line, set: whose they are.
        keyed: whether ``files`` name them by pseudonyms.
        uid: pseudonym of its SeriesInstanceUID, '' where none is known.
        files: location, structure, SHA-256 and, of series of objects that are fetched, number and bytes of each, in the
            order of their names.
        names: see :func:`components.ct.labels.masks.masks_together`.
        transfer: how long a fetch may take.
    """

    line: str
    set: str
    keyed: bool
    uid: str
    files: tuple[tuple[str, str, str, int, int], ...]
    names: Mapping[str, str]
    transfer: TransferConfig

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
        with TemporaryDirectory() as scratch:
            fetched = any(files for *_, files, _ in self.files)
            found = self.fetched(Path(scratch)) if fetched else self.found()
            return masks_apart(found, self.names, grids[0], grids[1], scan)

    def fetched(self, folder: Path) -> list[MaskFile]:
        """The objects that refer to the series, brought into ``folder``: of its study, which may hold others.

        Raises:
            StopStageError: one does not come, at the last attempt either.
            UserError: none refers to the series.
        """
        found = []
        for number, (location, *_, files, size) in enumerate(self.files):
            into = folder / str(number)
            self._download(location, into, files, size)
            for path in sorted(into.iterdir()):
                if self.uid and self.uid in map(uid_key, referred_by(path) or ()):
                    found.append(MaskFile(path, location, ""))
        if not found:
            raise UserError(f"labels: none of {len(self.files)} series of SEG and RTSTRUCT of its study refers to it")
        return found

    def _download(self, location: str, into: Path, files: int, size: int) -> None:
        for attempt in range(1, self.transfer.attempts + 1):
            into.mkdir()
            try:
                return download(Bucket.configured(), location, into, files, size, self.transfer)
            except StopStageError:
                raise
            except (UserError, OSError) as error:
                shutil.rmtree(into)
                if attempt == self.transfer.attempts:
                    # Not the scan's own fault, which would be kept as one.
                    raise StopStageError(f"masks {location} of set {self.set}: {error}") from None
                time.sleep(self.transfer.backoff_s * 2 ** (attempt - 1))
        return None

    def found(self) -> list[MaskFile]:
        """The files in the folder of this machine. Raises StopStageError as :meth:`on`."""
        place = place_of(self.line, self.set)
        told = [location for location, *_ in self.files]
        locations = resolve(ROOT, place, told) if self.keyed else told
        root, found = root_of(ROOT, place), []
        for (shown, structure, sha256, *_), location in zip(self.files, locations, strict=True):
            path = root / location
            if not path.is_file() or sha256_file(path) != sha256:
                raise StopStageError(
                    f"masks {shown} of set {self.set}: not the file that the cohort lists; run `ctfoundry set pin "
                    f"{self.set} --line {self.line}`"
                )
            found.append(MaskFile(path, shown, structure))
        return found


def masks_by_series(
    jobs: Sequence[SeriesJob], cohort_folder: Path, shard: int, sets: Mapping[str, LabelledSet]
) -> dict[str, SeriesMasks]:
    """Series of the shard to their masks, of those that have some."""
    part = masks_slice(cohort_folder, shard)
    table, names = read_table(part / "masks.parquet").sort_values("number"), read_json(part / "names.json")
    by_series = dict(tuple(table.groupby("series")))
    found: dict[str, SeriesMasks] = {}
    for job in jobs:
        if (rows := by_series.get(job.row["series"])) is None:
            continue
        of_set = str(rows["set"].iloc[0])  # a series has masks of one set
        files = tuple(rows[["location", "structure", "sha256", "files", "bytes"]].itertuples(index=False, name=None))
        found[job.row["series"]] = SeriesMasks(
            job.line, of_set, sets[of_set].paths == "keyed", job.row.get("uid", ""), files, names[of_set],
            job.config.transfer,
        )  # fmt: skip
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
