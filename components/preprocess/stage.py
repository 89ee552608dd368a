"""Stage ``preprocess``: one shard's accepted series to the volume store, with measurements of their voxels."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from components.acquire import raw
from components.acquire.stage import SeriesJob, make_ready
from components.files import read_table, replacing, sha256_file, write_table
from components.params import UserError
from components.preprocess.config import PreprocessConfig
from components.preprocess.dicom import read_series
from components.preprocess.measure import measure_volume
from components.preprocess.nifti import read_nifti
from components.preprocess.standardise import crop_to_body, find_body, resample_only
from components.preprocess.store import Volume, write_volume
from components.progress import map_series

log = logging.getLogger(__name__)

CARRIED = ["series", "patient", "name", "source", "collection", "role", "split", "retest_of", "shard"]


@dataclass(frozen=True)
class VolumeJob:
    """One accepted series on its way into the store."""

    series: SeriesJob
    receipt: pd.DataFrame
    config: PreprocessConfig
    store: Path


def read_raw(paths: list[Path]) -> Volume:
    """The volume in a series' raw files: DICOM instances or one NIfTI. Raises UserError where it does not decode."""
    if len(paths) == 1 and paths[0].name.startswith("volume.nii"):
        return read_nifti(paths[0])
    return read_series(paths)


def preprocess_series(job: VolumeJob) -> dict[str, Any]:
    """Decode, standardise, measure and store one series; its catalogue row.

    A series that does not decode is a row with ``decoded`` false and the cause; it costs that series only.

    Raises:
        UserError: the raw files are gone for good, or are not those of the receipt.
    """
    folder = job.series.folder
    raw.check(job.series.row["series"], job.series.fetch(), job.receipt)
    row: dict[str, Any] = {key: job.series.row[key] for key in CARRIED}
    try:
        native = read_raw(raw.data_files(folder))
    except UserError as error:
        return {**row, "decoded": False, "detail": str(error)}
    resampled = resample_only(native, job.config)
    body = find_body(resampled, job.config.foreground_hu)
    volume = crop_to_body(resampled, body, job.config.foreground_margin_mm)
    path = job.store / f"{row['series']}.b2nd"
    write_volume(path, volume, {"series": row["series"], "source": row["source"], "grid": job.config.model_dump()})
    sizes = dict(zip(("n0", "n1", "n2"), volume.hu.shape, strict=True))
    return {
        **row,
        "decoded": True,
        "detail": "",
        **sizes,
        **measure_volume(native, resampled, body),
        "sha256": sha256_file(path),
    }


def preprocess_shard(
    jobs: list[SeriesJob], acquired: Path, screened: pd.DataFrame, config: PreprocessConfig, folder: Path
) -> pd.DataFrame:
    """Write ``volumes/<series>.b2nd`` and ``catalogue.parquet``, then evict the shard's raw bytes.

    Args:
        jobs: every series of the shard.
        acquired: folder of the shard's receipt.
        screened: the shard's judged table; only accepted series are read.
        config: the line's grid.
        folder: output.
    """
    files = dict(tuple(read_table(acquired / "files.parquet").groupby("series")))
    accepted = set(screened.loc[screened["accepted"], "series"])
    with replacing(folder / "volumes") as store:
        store.mkdir(parents=True)
        make_ready([job for job in jobs if job.row["series"] in accepted])
        todo = [
            VolumeJob(job, files[job.row["series"]], config, store) for job in jobs if job.row["series"] in accepted
        ]
        rows = map_series(preprocess_series, todo, "preprocess")
    catalogue = pd.DataFrame(rows, columns=None if rows else [*CARRIED, "decoded", "detail"])
    write_table(folder / "catalogue.parquet", catalogue)
    for job in jobs:  # rejected series too: their bytes can be fetched again
        raw.evict(job.folder)
    log.info("%d volumes, %d not decoded", int(catalogue["decoded"].sum()), int((~catalogue["decoded"]).sum()))
    return catalogue
