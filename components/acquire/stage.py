"""Stage ``acquire``: bring one shard's series in, hash every file, measure the headers, write the receipt."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from components.acquire import raw
from components.acquire.config import AcquireConfig
from components.acquire.headers import measure_series, read_instance
from components.acquire.sources import Source, source_of
from components.cohort.config import CohortConfig
from components.files import read_table, write_table
from components.params import UserError
from components.preprocess.nifti import measure_nifti
from components.progress import map_series

log = logging.getLogger(__name__)

ANNOTATION_COLUMNS = {"series": str, "patient": str, "structure": str, "kind": str, "x": float, "y": float, "z": float,
                      "volume_ml": float, "present": bool}  # fmt: skip


@dataclass(frozen=True)
class SeriesJob:
    """All that a worker process needs to bring in one series."""

    line: str
    row: dict[str, Any]
    members: list[str]
    cohort: CohortConfig
    config: AcquireConfig

    @property
    def bytes(self) -> int:
        """What the source says; 0 where it is known only after the transfer."""
        return int(self.row["bytes"])

    @property
    def source(self) -> Source:
        return source_of(self.row["source"], self.line, self.cohort)

    @property
    def folder(self) -> Path:
        return raw.raw_folder(self.line, self.row, self.members, self.source.version)

    def fetch(self) -> dict[str, str]:
        """Bring the series into the raw cache, trying again as the parameters say; file name to SHA-256.

        Raises:
            StopStageError: the disk is full, or the source itself is gone.
            UserError or OSError: this series did not come, at the last attempt either.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                return raw.fetch(self.source, self.row, self.members, self.folder, self.config.transfer)
            except raw.StopStageError:
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


def jobs_of(line: str, cohort_folder: Path, shard: int, cohort: CohortConfig, config: AcquireConfig) -> list[SeriesJob]:
    """One job per series of the shard, in the order of the cohort."""
    table = read_table(cohort_folder / "cohort.parquet")
    files = read_table(cohort_folder / "files.parquet")
    members = files[files["series"] != ""].groupby("series")["location"].apply(list).to_dict()
    rows = table[table["shard"] == shard].to_dict("records")
    return [SeriesJob(line, {str(k): v for k, v in row.items()}, members.get(row["series"], []), cohort, config)
            for row in rows]  # fmt: skip


def make_ready(jobs: list[SeriesJob]) -> None:
    """Before a shard's series are fetched: each source answers, and cache and disk have room for what is missing.

    Raises:
        UserError: one of these is not so.
    """
    missing = [job for job in jobs if not job.folder.is_dir()]
    for job in {job.row["source"]: job for job in missing}.values():
        job.source.check()
    raw.make_room(sum(job.bytes for job in missing), keep={job.folder for job in jobs})


@dataclass(frozen=True)
class Received:
    """One series as it came in: its receipt row, its files, its annotations."""

    row: dict[str, Any]
    files: list[dict[str, Any]]
    annotations: pd.DataFrame | None


def acquire_series(job: SeriesJob) -> Received:
    """Fetch, hash and measure one series. A failed transfer is a row with status ``failed``, never an exception."""
    try:
        hashes = job.fetch()
    except raw.StopStageError:
        raise
    except (UserError, OSError) as error:
        detail = str(error) if isinstance(error, UserError) else f"{type(error).__name__} {error.strerror}"
        return Received({**job.row, "status": "failed", "detail": detail, **measure_series([])}, [], None)
    paths = raw.data_files(job.folder)
    files = [{"series": job.row["series"], "file": p.name, "bytes": p.stat().st_size, "sha256": hashes[p.name]}
             for p in paths]  # fmt: skip
    row = {**job.row, "status": "acquired", "detail": "", **_measure(paths, job.config.only_largest_stack)}
    row["files"], row["bytes"] = len(files), sum(f["bytes"] for f in files)
    annotations = raw.read_annotations(job.folder)
    if annotations is not None:
        annotations = annotations.assign(series=job.row["series"], patient=job.row["patient"])
    return Received(row, files, annotations)


def _measure(paths: Sequence[Path], only_largest_stack: bool) -> dict[str, Any]:
    if paths and paths[0].name.startswith("volume.nii"):
        return {**measure_series([]), **measure_nifti(paths[0])}
    instances = []
    for path in paths:
        with path.open("rb") as stream:
            instances.append(read_instance(stream, path.name, path.stat().st_size))
    return {**measure_series(instances, only_largest_stack), "kind": "dicom"}


def acquire_shard(
    line: str, shard: int, cohort_folder: Path, cohort: CohortConfig, config: AcquireConfig, folder: Path
) -> None:
    """Bring in every series of a shard; write ``receipt``, ``files`` and ``annotations`` (Parquet) to ``folder``."""
    jobs = jobs_of(line, cohort_folder, shard, cohort, config)
    make_ready(jobs)
    received = map_series(
        acquire_series, jobs, "acquire", workers=config.workers or _workers(jobs), size=lambda job: job.bytes
    )
    receipt = pd.DataFrame([r.row for r in received])
    # Columns that are empty in one shard must not change their type between shards.
    receipt = receipt.astype({c: float for c in receipt if str(c).endswith(("_mm", "_degrees", "_ratio"))})
    write_table(folder / "receipt.parquet", receipt)
    columns = ["series", "file", "bytes", "sha256"]
    write_table(folder / "files.parquet", pd.DataFrame([f for r in received for f in r.files], columns=columns))
    write_table(folder / "annotations.parquet", _annotation_table([r.annotations for r in received]))
    failed = receipt[receipt["status"] == "failed"]
    log.info("shard %d: %d series, %.1f MB, %d failed", shard, len(receipt), receipt["bytes"].sum() / 1e6, len(failed))


def _workers(jobs: list[SeriesJob]) -> int:
    """Phantoms are computed, one per core; of others, one can be hashed and measured while the next comes in."""
    cores = os.cpu_count() or 1
    return cores if all(job.row["plan"] for job in jobs) else 2 * cores


def _annotation_table(tables: Sequence[pd.DataFrame | None]) -> pd.DataFrame:
    known = [table for table in tables if table is not None]
    empty = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in ANNOTATION_COLUMNS.items()})
    joined = pd.concat(known) if known else empty
    return joined[list(ANNOTATION_COLUMNS)].astype(ANNOTATION_COLUMNS)
