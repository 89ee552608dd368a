"""Stage ``cohort``: every series of the source and of the evaluation set, with role, split and shard."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from components.acquire.sources import Listed, source_of
from components.cohort.config import CohortConfig
from components.cohort.keys import patient_key
from components.cohort.roots import root_of
from components.evaluate.nodules import read_labels
from components.files import write_json, write_table

log = logging.getLogger(__name__)

FILE_COLUMNS = ("location", "bytes", "status", "series")


def make_cohort(line: str, config: CohortConfig, shards: int, held_out: frozenset[str], folder: Path) -> pd.DataFrame:
    """List, assign and write ``cohort.parquet`` and ``files.parquet`` (every file of the source, accounted for).

    Args:
        line: model line.
        config: what to list.
        shards: number of data shards; series are dealt out in the order of their keys.
        held_out: patients of external evaluation sets: their series are kept out of pretraining.
        folder: output.

    Returns:
        The cohort, sorted by series.
    """
    names = [config.source] if config.source == "phantom" else [config.source, "phantom"]
    rows, files = [], []
    for name in names:
        listing = source_of(name, line, config).list_series(held_out)
        rows += [_row(series, name, held_out) for series in listing.series]
        files += listing.files
        if listing.selection is not None:
            write_json(folder / "selection.json", listing.selection)
        if listing.attribution is not None:
            write_table(folder / "attribution.parquet", listing.attribution)
    cohort = pd.DataFrame(rows).sort_values("series", ignore_index=True)
    if cohort["series"].duplicated().any():
        raise RuntimeError("cohort: two series share a key")
    cohort["shard"] = cohort.index % shards
    write_table(folder / "cohort.parquet", cohort)
    table = pd.DataFrame(files, columns=list(FILE_COLUMNS)).sort_values("location", ignore_index=True)
    write_table(folder / "files.parquet", table)
    counts = cohort["role"].value_counts()
    log.info("%d series of %d patients: %s", len(cohort), cohort["patient"].nunique(),
             ", ".join(f"{role} {counts[role]}" for role in sorted(counts.index)))  # fmt: skip
    if len(table):
        statuses = table["status"].value_counts().sort_index()
        log.info("%d files: %s", len(table), ", ".join(f"{name} {n}" for name, n in statuses.items()))
    return cohort


def _row(series: Listed, source: str, held_out: frozenset[str]) -> dict[str, object]:
    row = {**vars(series), "source": source}
    del row["members"]
    if series.role == "pretrain" and series.patient in held_out:
        row["role"] = row["split"] = "held_out"
    return row


def external_patients(lidc_nodules: str | None) -> frozenset[str]:
    """Patients of the external evaluation sets that the line's parameters pin.

    Raises:
        UserError: the pinned data are not on this machine, or have changed.
    """
    if lidc_nodules is None:
        return frozenset()
    return frozenset(read_labels(root_of("lidc_nodules"), lidc_nodules)["patient_id"].map(patient_key))
