"""Sources of CT behind one small interface; a new source is one module here and a name in :func:`source_of`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from components.cohort.config import CohortConfig


@dataclass(frozen=True)
class Listed:
    """One series as its source lists it.

    Attributes:
        series, patient: pseudonyms.
        name: short name for funnels and reports.
        location: where the source finds it again, relative to its root.
        files, bytes: size, 0 where it is known only after the transfer.
        role: ``pretrain`` or ``evaluation``. split: ``pretrain``, ``train`` or ``test``.
        retest_of: series whose patient was scanned again, or ''.
        plan: the phantom scanner's plan as JSON, or ''.
        members: locations of its files, in the source's terms.
    """

    series: str
    patient: str
    name: str
    location: str
    files: int
    bytes: int
    role: str = "pretrain"
    split: str = "pretrain"
    retest_of: str = ""
    plan: str = ""
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """All series of a source, and every file it holds: location, bytes, status, series ('' where in none)."""

    series: list[Listed]
    files: list[dict[str, Any]] = field(default_factory=list)


class Source(Protocol):
    """A place CT comes from.

    Attributes:
        version: what tells apart data that this source would give under the same names.
    """

    version: str

    def list_series(self) -> Listing:
        """Every series there is, judged by nobody yet."""
        ...

    def fetch(self, row: dict[str, Any], members: list[str], folder: Path) -> pd.DataFrame | None:
        """Bring one series' files into ``folder``; returns its annotation rows where the source knows them.

        Raises:
            UserError or OSError: the transfer failed; ``folder`` is then thrown away by the caller.
        """
        ...


def source_of(name: str, line: str, config: CohortConfig) -> Source:
    """The source called ``name``; the cohort's config says what it needs."""
    if name == "phantom":
        from components.acquire.sources.phantom import PhantomSource

        return PhantomSource(line, config.phantom, pretrain=config.source == "phantom")
    if name == "dicom":
        from components.acquire.sources.dicom import DicomSource

        return DicomSource(config.source_digest, f"{line}.cohort.source_digest")
    from components.acquire.sources.nifti import NiftiSource

    return NiftiSource(config.source_digest, f"{line}.cohort.source_digest")
