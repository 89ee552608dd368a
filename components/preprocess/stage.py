"""Stage ``preprocess``: one shard's accepted series to the volume store, with measurements of their voxels."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from components.cluster import map_on_ray
from components.ct.dicom import read_series
from components.ct.labels.onto_grid import label_map
from components.ct.labels.stored import FOLDER, LabelMap
from components.ct.measure import measure_volume
from components.ct.nifti import read_nifti
from components.ct.origin import Origin, origin_of
from components.ct.standardise import crop_to_body, find_body, resample_only
from components.ct.store import Volume
from components.errors import UserError
from components.files import StopStageError, replacing, sha256_file
from components.isolation import GIB, Lost, check_unexpected
from components.preprocess import kept
from components.preprocess.config import PreprocessConfig
from components.preprocess.masks import SeriesMasks, found_in
from components.sources import raw, receipts
from components.sources.kinds import KINDS
from components.sources.series import SeriesJob, ready
from components.tables import read_table, write_table

log = logging.getLogger(__name__)

WORKER_BYTES, COPIES = GIB // 2, 3  # measured by tests/benchmarks/bench_memory.py
_NUMBERED = re.compile(r"\b\d{6}\.dcm\b")
CARRIED = ["series", "patient", "name", "source", "collection", "role", "split", "retest_of", "shard"]


@dataclass(frozen=True)
class VolumeJob:
    """One accepted series on its way into the store.

    Attributes:
        series, receipt: the series, and its files (columns file, sha256).
        config: the grid.
        entry: where its finished volume is kept.
        voxels: that its headers promise.
        masks: that a labelled set has of it.
    """

    series: SeriesJob
    receipt: pd.DataFrame
    config: PreprocessConfig
    entry: Path
    voxels: int
    masks: SeriesMasks | None = None


def read_raw(paths: list[Path], only_largest_stack: bool = False, digests: dict[str, str] | None = None) -> Volume:
    """The volume in a series' raw files: DICOM instances or one NIfTI. Raises UserError where it does not decode.

    Args: as :func:`components.ct.dicom.read_series` has them.
    """
    if len(paths) == 1 and paths[0].name.startswith("volume.nii"):
        if digests is not None:
            digests[paths[0].name] = sha256_file(paths[0])
        return read_nifti(paths[0])
    return read_series(paths, only_largest_stack, digests)


def read_received(job: VolumeJob) -> Volume:
    """The volume in a series' raw files, which are those of its receipt: that is seen while they are read. Files that
    are not there any more, or have changed on the disk, are fetched again.

    Raises:
        StopStageError: the files are gone for good, or are not those of the receipt.
        UserError: the series does not decode.
    """
    folder, only_largest = job.series.folder, job.series.config.only_largest_stack
    expected = dict(zip(job.receipt["file"], job.receipt["sha256"], strict=True))
    if folder.is_dir():
        found: dict[str, str] = {}
        try:
            volume = read_raw(raw.data_files(folder), only_largest, found)
        except UserError:
            found = {}  # perhaps for a change on the disk
        if found == expected:
            return volume
    try:
        found = job.series.fetch()
    except UserError as error:
        raise StopStageError(str(error)) from None
    try:
        raw.check(job.series.row["series"], found, job.receipt)
    except UserError as error:
        job.series.receipt.unlink(missing_ok=True)  # or `acquire` would take it for known for ever
        raise StopStageError(str(error)) from None
    return read_raw(raw.data_files(folder), only_largest)


def preprocess_series(job: VolumeJob) -> None:
    """Decode, standardise, measure and keep one series.

    A series that does not decode is kept as a row with ``decoded`` false and the cause; it costs that series only.

    Raises:
        UserError: the raw files are gone for good, or are not those of the receipt; the same of its masks.
    """
    series = job.series.row
    try:
        native = read_received(job)
    except StopStageError:
        raise
    except UserError as error:
        kept.keep(job.entry, {"decoded": False, "detail": findable(str(error), job.series.members)}, None, {})
        return
    resampled = resample_only(native, job.config)
    body = find_body(resampled, job.config.foreground_hu)
    volume = crop_to_body(resampled, body, job.config.foreground_margin_mm)
    sizes = dict(zip(("n0", "n1", "n2"), volume.hu.shape, strict=True))
    origin = origin_of(raw.data_files(job.series.folder))
    labels, told = _labels(job, native, volume, origin)
    row = {"decoded": True, "detail": "", **sizes, **measure_volume(native, resampled, body), **told}
    provenance = {"series": series["series"], "source": series["source"], "frame": origin.frame,
                  "patient": origin.patient, "grid": job.config.grid}  # fmt: skip
    kept.keep(job.entry, row, volume, provenance, labels)


def _labels(job: VolumeJob, native: Volume, volume: Volume, origin: Origin) -> tuple[LabelMap | None, dict[str, str]]:
    """The label map of an evaluation scan, where its source brings one or a labelled set has masks of it; and the
    catalogue's columns: ``labels_detail``, why there is none in spite of that, and ``labels_found``, what is in it. It
    costs the scan nothing: only a task of labels does without it."""
    series, masked = job.series, None
    try:
        if job.masks is not None:
            # Only of DICOM a key is drawn from UIDs, which labels name.
            known = origin if KINDS[series.row["source"]].nifti else replace(origin, series=series.row["series"])
            masked = job.masks.on(volume, native, known)
            labels = masked.labels
        elif series.labels is None:
            return None, {"labels_detail": "", "labels_found": ""}
        elif not series.labels.is_file():
            raise UserError(f"labels {series.labels.name}: not among the files that the source brought")
        else:
            labels = label_map(series.labels, volume, origin)
    except StopStageError:
        raise
    except UserError as error:
        log.warning("series %s: %s", series.row["series"], error)
        return None, {"labels_detail": str(error), "labels_found": ""}
    return labels, {"labels_detail": "", "labels_found": found_in(labels, masked)}


def findable(detail: str, members: list[str]) -> str:
    """``detail`` with the raw cache's own numbers as the files that ``ctfoundry locate`` finds, or without them.

    Args:
        members: of a series from a tree, whose files the cache numbers in this order.
    """
    numbers = {f"{number:06d}.dcm": member for number, member in enumerate(members)}
    return _NUMBERED.sub(lambda match: f"file {numbers[match[0]]}" if match[0] in numbers else "a file", detail)


def preprocess_shard(
    jobs: list[SeriesJob],
    acquired: Path,
    screened: pd.DataFrame,
    config: PreprocessConfig,
    folder: Path,
    masks: Mapping[str, SeriesMasks] | None = None,
) -> pd.DataFrame:
    """Write ``volumes/<series>.b2nd``, ``labels/<series>.b2nd`` of evaluation scans whose source brings labels or that
    a labelled set has masks of, and ``catalogue.parquet``, then let the shard's raw bytes go.

    Series whose bytes, grid and code are those of an earlier run are taken from it; their raw files are not needed.

    Args:
        jobs: every series of the shard.
        acquired: folder of the shard's receipt.
        screened: the shard's judged table; only accepted series are read.
        config: the line's grid.
        folder: output.
        masks: series to the masks that a labelled set has of it.
    """
    masks = masks or {}
    files = dict(tuple(read_table(acquired / "files.parquet").groupby("series")))
    accepted = screened[screened["accepted"].astype(bool)].set_index("series")
    voxels = (accepted["rows"] * accepted["columns"] * accepted["instances"]).astype(int).to_dict()
    all_jobs = [
        VolumeJob(job, receipt, config, kept.entry(job, receipt, config, own), voxels[job.row["series"]], own)
        for job in jobs
        if job.row["series"] in voxels
        for receipt, own in [(files[job.row["series"]], masks.get(job.row["series"]))]
    ]
    known = {job.entry: row for job in all_jobs if (row := kept.read_whole(job.entry)) is not None}
    todo = [job for job in all_jobs if job.entry not in known]
    with ready(jobs, [job.series for job in todo]):
        limit = int(config.max_memory_gib * GIB)
        results = map_on_ray(preprocess_series, todo, "preprocess", memory=_memory, max_memory=limit)
        known.update(_new_rows(todo, results))
        catalogue = _write(all_jobs, known, folder)
        receipts.forget_others([job.entry for job in all_jobs])
        for series in jobs:  # rejected series too: their bytes can be fetched again
            raw.let_go(series.folder, series.config.raw)
    log.info("%d volumes, %d of them from an earlier run, %d not decoded", int(catalogue["decoded"].sum()),
             len(all_jobs) - len(todo), int((~catalogue["decoded"].astype(bool)).sum()))  # fmt: skip
    return catalogue


def _new_rows(todo: list[VolumeJob], results: list[Lost | None]) -> dict[Path, dict[str, Any]]:
    """Entry to what was measured. What was lost is not kept: it may have come from outside, and a forced run tries it
    again.

    Raises:
        UserError: more are lost than ``acquire.max_unexpected``.
    """
    rows = {}
    for job, lost in zip(todo, results, strict=True):
        if lost:
            log.warning("series %s: %s", job.series.row["series"], lost.detail)
        rows[job.entry] = {"decoded": False, "detail": lost.detail} if lost else kept.read(job.entry)
    if todo:
        details = (lost.detail for lost in results if lost)
        check_unexpected("preprocess", details, todo[0].series.config.max_unexpected)
    return rows


def _write(jobs: list[VolumeJob], known: dict[Path, dict[str, Any]], folder: Path) -> pd.DataFrame:
    """The store's folders, and the catalogue."""
    rows = []
    with (
        replacing(folder / "volumes", durable=False) as store,  # the catalogue holds the digest of each file
        replacing(folder / FOLDER, durable=False) as labels,
    ):
        for made in (store, labels):
            made.mkdir(parents=True)
        for job in jobs:
            rows.append({**{key: job.series.row[key] for key in CARRIED}, **known[job.entry]})
            if known[job.entry]["decoded"]:
                name = f"{job.series.row['series']}.b2nd"
                kept.place(job.entry, store / name, labels / name)
    catalogue = pd.DataFrame(rows, columns=None if rows else [*CARRIED, "decoded", "detail"])
    write_table(folder / "catalogue.parquet", catalogue)
    return catalogue


def _memory(job: VolumeJob) -> int:
    """Bytes that a series is expected to take: the worker itself, its voxels, and what is made of them."""
    return WORKER_BYTES + COPIES * 2 * job.voxels
