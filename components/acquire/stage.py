"""Stage ``acquire``: bring one shard's series in, hash every file, measure the headers, write the receipt."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from components.command import cohort_slice
from components.ct.headers import measure_series, read_instance
from components.ct.nifti import measure_nifti
from components.errors import UserError
from components.files import StopStageError
from components.isolation import GIB, Lost, check_unexpected
from components.processes import map_isolated
from components.sources import raw, receipts
from components.sources.config import AcquireConfig, SourceConfig
from components.sources.series import SeriesJob, jobs_of, ready
from components.tables import read_table, write_table

log = logging.getLogger(__name__)

ANNOTATION_COLUMNS = {"series": str, "patient": str, "structure": str, "kind": str, "x": float, "y": float, "z": float,
                      "volume_ml": float, "present": bool}  # fmt: skip


@dataclass(frozen=True)
class Received:
    """One series as it came in: its receipt row, its files, its annotations."""

    row: dict[str, Any]
    files: list[dict[str, Any]]
    annotations: pd.DataFrame | None


def acquire_series(job: SeriesJob) -> Received:
    """Fetch, hash and measure one series, and keep its receipt. A failed transfer is a row with status ``failed``."""
    try:
        hashes = job.fetch()
    except StopStageError:
        raise
    except (UserError, OSError) as error:
        detail = str(error) if isinstance(error, UserError) else f"{type(error).__name__} {error.strerror}"
        return _without_files(job, "failed", detail)
    paths, known = raw.data_files(job.folder), measure_series([])
    annotations = raw.read_annotations(job.folder)
    receipt = {
        "measured": receipts.plain(_measure(paths, job.config.only_largest_stack), known),
        "files": [[path.name, path.stat().st_size, hashes[path.name]] for path in paths],
        "annotations": None if annotations is None else annotations.to_dict("records"),
    }
    receipts.keep(job.receipt, receipt)
    return _received(job, receipt)


def _received(job: SeriesJob, receipt: dict[str, Any]) -> Received:
    """A row from what is kept: of the series as the cohort has it now, with whatever role and split."""
    series, patient = job.row["series"], job.row["patient"]
    files = [{"series": series, "file": name, "bytes": size, "sha256": digest}
             for name, size, digest in receipt["files"]]  # fmt: skip
    row = {**job.row, "status": "acquired", "detail": "", **receipt["measured"]}
    row["files"], row["bytes"] = len(files), sum(f["bytes"] for f in files)
    known = receipt["annotations"]
    annotations = None if known is None else pd.DataFrame(known).assign(series=series, patient=patient)
    return Received(row, files, annotations)


def _without_files(job: SeriesJob, status: str, detail: str) -> Received:
    return Received({**job.row, "status": status, "detail": detail, **measure_series([])}, [], None)


def _measure(paths: Sequence[Path], only_largest_stack: bool) -> dict[str, Any]:
    if paths and paths[0].name.startswith("volume.nii"):
        return {**measure_series([]), **measure_nifti(paths[0])}
    instances = []
    for path in paths:
        with path.open("rb") as stream:
            instances.append(read_instance(stream, path.name, path.stat().st_size))
    return {**measure_series(instances, only_largest_stack), "kind": "dicom"}


def acquire_shard(
    line: str, shard: int, cohort_folder: Path, sources: Mapping[str, SourceConfig], config: AcquireConfig, folder: Path
) -> None:
    """Bring in every series of a shard; write ``receipt``, ``files`` and ``annotations`` (Parquet) to ``folder``.

    Series that are what an earlier run received are not transferred again. One whose headers cannot be read, for a
    reason that nobody foresaw, has status ``lost``.

    Raises:
        UserError: source, cache or disk fail every series; or more series are lost than ``max_unexpected``.
    """
    jobs = jobs_of(line, cohort_folder, shard, sources, config)
    known = {job.row["series"]: receipt for job in jobs if (receipt := receipts.read(job.receipt)) is not None}
    todo = [job for job in jobs if job.row["series"] not in known]
    with ready(jobs, todo):
        results = map_isolated(
            acquire_series,
            todo,
            "acquire",
            workers=config.workers or _workers(todo),
            size=lambda job: job.bytes,
            max_memory=int(config.max_memory_gib * GIB),
        )
    fetched = [
        _without_files(job, "lost", result.detail) if isinstance(result, Lost) else result
        for job, result in zip(todo, results, strict=True)
    ]
    receipts.forget_others([job.receipt for job in jobs if job.receipt.is_file()])
    new = {result.row["series"]: result for result in fetched}
    received = [
        new[job.row["series"]] if job.row["series"] in new else _received(job, known[job.row["series"]]) for job in jobs
    ]
    check_unexpected("acquire", (r.row["detail"] for r in fetched if r.row["status"] == "lost"), config.max_unexpected)
    table = _receipt_table(received, cohort_folder, shard)
    write_table(folder / "receipt.parquet", table)
    columns = ["series", "file", "bytes", "sha256"]
    write_table(folder / "files.parquet", pd.DataFrame([f for r in received for f in r.files], columns=columns))
    write_table(folder / "annotations.parquet", _annotation_table([r.annotations for r in received]))
    counts = table["status"].value_counts()
    log.info("shard %d: %d series, %.1f MB, %d of them from an earlier run, %d failed, %d lost", shard, len(table),
             table["bytes"].sum() / 1e6, len(known), counts.get("failed", 0), counts.get("lost", 0))  # fmt: skip


def _receipt_table(received: list[Received], cohort_folder: Path, shard: int) -> pd.DataFrame:
    """One row per series. Columns that are empty in one shard have the type that they have in others."""
    if not received:
        listed = read_table(cohort_slice(cohort_folder, shard) / "cohort.parquet")
        table = listed.assign(status="", detail="", **measure_series([]))
    else:
        table = pd.DataFrame([r.row for r in received])
    return table.astype({c: float for c in table if str(c).endswith(("_mm", "_degrees", "_ratio"))})


def _workers(jobs: list[SeriesJob]) -> int:
    """Phantoms are computed, one per core; of others, one can be hashed and measured while the next comes in."""
    cores = os.cpu_count() or 1
    return cores if all(job.row["plan"] for job in jobs) else 2 * cores


def _annotation_table(tables: Sequence[pd.DataFrame | None]) -> pd.DataFrame:
    known = [table for table in tables if table is not None]
    empty = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in ANNOTATION_COLUMNS.items()})
    joined = pd.concat(known) if known else empty
    return joined[list(ANNOTATION_COLUMNS)].astype(ANNOTATION_COLUMNS)
