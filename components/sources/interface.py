"""What every source of CT gives: series as they are listed, and their files when they are fetched."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import eq
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import pandas as pd

from components.sources.config import TransferConfig


def folders_up(folders: Iterable[str]) -> tuple[str, ...]:
    """The folders, and those that hold them, up to the root's own; sorted."""
    paths = map(PurePosixPath, folders)
    return tuple(sorted({str(at) for path in paths for at in (path, *path.parents)} - {"."}))


@dataclass(frozen=True)
class Listed:
    """One series as its source lists it.

    Attributes:
        series, patient: pseudonyms.
        study, uid, accession: pseudonyms of StudyInstanceUID, SeriesInstanceUID and AccessionNumber, by which tables of
            labels may name a series; '' where the source knows none.
        name: short name for funnels and reports.
        location: where the source finds it again, relative to its root.
        files, bytes: size, 0 where it is known only after the transfer.
        role: ``pretrain`` or ``evaluation``. split: ``pretrain``, ``train`` or ``test``.
        retest_of: series whose patient was scanned again, or ''.
        plan: the phantom scanner's plan as JSON, or ''.
        members: locations of its files, in the source's terms.
        folders: locations of the folders and zips that hold them, up to the root's own; a zip's ends with ``!``.
        collection, licence, doi: attribution.
        version: what tells apart data that the source would give for this series under the same names; '' where only
            the source's own version does.
    """

    series: str
    patient: str
    name: str
    location: str
    files: int
    bytes: int
    collection: str
    licence: str
    doi: str
    study: str = ""
    uid: str = ""
    accession: str = ""
    role: str = "pretrain"
    split: str = "pretrain"
    retest_of: str = ""
    plan: str = ""
    members: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    version: str = ""


class Files(Sequence[dict[str, Any]]):
    """Every file of a source, a column per attribute: of fifty million, a dictionary each would take 20 GB.

    Attributes:
        location, bytes, status: where it is, its size, and what it is.
        series: pseudonym, '' where it is in none.
    """

    def __init__(
        self,
        location: Sequence[str] = (),
        sizes: Iterable[int] = (),
        status: Sequence[str] = (),
        series: Sequence[str] = (),
    ) -> None:
        self.location, self.bytes, self.status, self.series = location, array("q", sizes), status, series

    def __len__(self) -> int:
        return len(self.location)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        return {
            "location": self.location[number],
            "bytes": self.bytes[number],
            "status": self.status[number],
            "series": self.series[number],
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Files) and len(self) == len(other) and all(map(eq, self, other))

    def __repr__(self) -> str:
        return f"Files({list(self)})"

    def renamed(self, location: Sequence[str], order: Sequence[int]) -> Files:
        """The same files under other locations, in another order."""
        return Files(
            [location[n] for n in order],
            (self.bytes[n] for n in order),
            [self.status[n] for n in order],
            [self.series[n] for n in order],
        )

    def table(self) -> pd.DataFrame:
        """As a table with these columns."""
        columns = {"location": self.location, "bytes": self.bytes, "status": self.status, "series": self.series}
        return pd.DataFrame(columns).astype({"location": str, "bytes": "int64", "status": str, "series": str})


@dataclass(frozen=True)
class Listing:
    """Attributes:
    series: all series of a source.
    files: every file it holds.
    digest: of the tree that was read, where it is one; see ``sources/tree.py``.
    selection: how they were chosen from a larger index: funnel and receipt, where there is one.
    attribution: whose data they are, with citations, where the source knows more than the rows say.
    """

    series: list[Listed]
    files: Files = field(default_factory=Files)
    digest: str = ""
    selection: dict[str, Any] | None = None
    attribution: pd.DataFrame | None = None


class Source(Protocol):
    """A place CT comes from.

    Attributes:
        version: what tells apart data that this source would give under the same names.
    """

    version: str

    def list_series(self, held_out: frozenset[str]) -> Listing:
        """Every series there is, judged by nobody yet.

        Args:
            held_out: keys of patients that are kept for evaluation. A source that chooses leaves them out; one that
                lists what is there lists them, and the cohort marks them.
        """
        ...

    def check(self) -> None:
        """Raise UserError where this machine cannot reach the source, before any series is tried."""
        ...

    def fetch(
        self, row: dict[str, Any], members: list[str], folder: Path, transfer: TransferConfig
    ) -> pd.DataFrame | None:
        """Bring one series' files into ``folder``; returns its annotation rows where the source knows them.

        Args:
            row: of the cohort.
            members: locations of its files, where the source lists them.
            folder: exists and is empty.
            transfer: how long it may take.

        Raises:
            UserError or OSError: the transfer failed; ``folder`` is then thrown away by the caller.
        """
        ...
