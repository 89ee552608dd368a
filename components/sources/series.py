"""One series on its way in: where it is fetched from, where its raw files and its receipt lie."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.command import cohort_slice
from components.errors import UserError
from components.files import StopStageError
from components.isolation import untimed
from components.sources import raw, receipts
from components.sources.build import source_of
from components.sources.config import AcquireConfig, SourceConfig
from components.sources.interface import Source
from components.sources.kinds import KINDS
from components.sources.roots import place_of
from components.tables import read_table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SeriesJob:
    """All that a worker process needs to bring in one series."""

    line: str
    row: dict[str, Any]
    members: list[str]
    cohort: SourceConfig
    config: AcquireConfig

    @property
    def bytes(self) -> int:
        """What the source says; 0 where it is known only after the transfer."""
        return int(self.row["bytes"])

    @property
    def source(self) -> Source:
        return source_of(self.row["source"], place_of(self.line, self.row["set"]), self.cohort)

    @property
    def folder(self) -> Path:
        return raw.raw_folder(self.line, self.row, self.members)

    @property
    def receipt(self) -> Path:
        return receipts.entry(self.line, self.row, self.members, self.config.mixed_series)

    @property
    def labels(self) -> Path | None:
        """The labels that come with its files; None where its source brings none, or nobody asks for them."""
        name = KINDS[self.row["source"]].labels
        return self.folder / name if name and self.row["role"] == "evaluation" else None

    def fetch(self) -> dict[str, str]:
        """Bring the series into the raw cache, trying again as the parameters say; file name to SHA-256.

        Raises:
            StopStageError: the disk is full, or the source itself is gone.
            UserError or OSError: this series did not come, at the last attempt either.
        """
        attempt = 0
        while True:  # not `retrying`, which tells a log neither the error nor the wait
            attempt += 1
            try:
                with untimed():  # the transfer has its own deadline, by the bytes that are to come
                    return raw.fetch(self.source, self.row, self.members, self.folder, self.config.transfer)
            except StopStageError:
                raise
            except (UserError, OSError) as error:
                if attempt == self.config.transfer.attempts:
                    self._check_source()
                    raise
                wait = self.config.transfer.backoff_s * 2 ** (attempt - 1)
                log.warning(
                    "series %s: attempt %d failed: %s; again in %.0f s", self.row["series"], attempt, error, wait
                )
                time.sleep(wait)

    def _check_source(self) -> None:
        """A source that has gone would fail every series to come, one by one: raise SourceGoneError instead."""
        try:
            self.source.check()
        except UserError as error:
            raise raw.SourceGoneError(str(error)) from None


def jobs_of(
    line: str, cohort_folder: Path, shard: int, sources: Mapping[str, SourceConfig], config: AcquireConfig
) -> list[SeriesJob]:
    """One job per series of the shard, in the order of the cohort. ``sources``: as ``sets.sources_of`` gives them."""
    part = cohort_slice(cohort_folder, shard)
    files = read_table(part / "files.parquet")
    members = files.groupby("series")["location"].apply(list).to_dict() if len(files) else {}
    rows = read_table(part / "cohort.parquet").to_dict("records")
    return [
        SeriesJob(
            line, {str(k): v for k, v in row.items()}, members.get(row["series"], []), sources[row["set"]], config
        )
        for row in rows
    ]


@contextmanager
def ready(jobs: list[SeriesJob], todo: list[SeriesJob]) -> Iterator[None]:
    """The raw folders of ``jobs`` for this run alone, with room for those of ``todo`` that are not there; their sources
    answer.

    Raises:
        UserError: one of these is not so.
    """
    missing = [job for job in todo if not job.folder.is_dir()]
    for job in {(job.row["source"], job.row["set"]): job for job in missing}.values():  # each has a root and a map
        job.source.check()
    to_come = {job.folder: job.bytes for job in missing}
    with raw.reserved({job.folder: to_come.get(job.folder, 0) for job in jobs}):
        yield
