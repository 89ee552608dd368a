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
from components.quality import judge, suites

log = logging.getLogger(__name__)

NO_SHARD = -1  # of a rejected series: no stage brings it in
ATTRIBUTION = ["collection", "licence", "doi"]
FILE_COLUMNS = ("location", "bytes", "status", "series")


def make_cohort(line: str, config: CohortConfig, shards: int, held_out: frozenset[str], folder: Path) -> pd.DataFrame:
    """List, assign, judge and write ``cohort.parquet``, ``files.parquet`` (every file of the source, accounted for),
    ``attribution.parquet`` (whose data they are) and ``quality.json`` (suite *cohort*). A series that the suite rejects
    stays in the table, with its reason and without a shard: nothing transfers it, and ``curate`` accounts for it.

    Args:
        line: model line.
        config: what to list.
        shards: number of data shards; series are dealt out in the order of their keys.
        held_out: patients of external evaluation sets: their series are kept out of pretraining.
        folder: output.

    Returns:
        The cohort, sorted by series.

    Raises:
        UserError: a critical expectation failed.
    """
    names = [config.source] if config.source == "phantom" else [config.source, "phantom"]
    rows, files, cited = [], [], []
    for name in names:
        listing = source_of(name, line, config).list_series(held_out)
        rows += [_row(series, name, held_out) for series in listing.series]
        if len(listing.files):
            files.append(listing.files.table())
        if listing.selection is not None:
            write_json(folder / "selection.json", listing.selection)
        if listing.attribution is not None:
            cited.append(listing.attribution)
    cohort = pd.DataFrame(rows).sort_values("series", ignore_index=True)
    write_table(folder / "attribution.parquet", _attribution(cohort, cited))
    cohort["shard"] = cohort.index % shards
    cohort = judged(cohort, config, shards, held_out, len(rows), folder)
    write_table(folder / "cohort.parquet", cohort)
    table = pd.concat(files) if files else pd.DataFrame(columns=list(FILE_COLUMNS))
    table = table.sort_values("location", ignore_index=True)
    write_table(folder / "files.parquet", table)
    counts = cohort["role"].value_counts()
    log.info("%d series of %d patients: %s", len(cohort), cohort["patient"].nunique(),
             ", ".join(f"{role} {counts[role]}" for role in sorted(counts.index)))  # fmt: skip
    if len(table):
        statuses = table["status"].value_counts().sort_index()
        log.info("%d files: %s", len(table), ", ".join(f"{name} {n}" for name, n in statuses.items()))
    return cohort


def judged(
    cohort: pd.DataFrame, config: CohortConfig, shards: int, held_out: frozenset[str], listed: int, folder: Path
) -> pd.DataFrame:
    """The cohort with column ``reason`` ('' where accepted); rejected series are in shard -1. Writes ``quality.json``.

    Raises:
        UserError: a critical expectation failed.
    """
    suite = suites.cohort(config, shards, listed)
    judgement = judge.judge(cohort.assign(kept_out=cohort["patient"].isin(held_out)), suite)
    out = cohort.assign(reason=[";".join(judgement.reasons.get(series, [])) for series in cohort["series"]])
    out["shard"] = out["shard"].where(out["reason"] == "", NO_SHARD)
    write_json(
        folder / "quality.json", {"suite": suite.name, "rules": judgement.results, "warnings": judgement.warnings}
    )
    rejected = out[out["reason"] != ""]["reason"].str.split(";").str[0].value_counts().sort_index()
    if len(rejected):
        log.warning("%d series rejected before any transfer: %s", int(rejected.sum()),
                    ", ".join(f"{reason} {n}" for reason, n in rejected.items()))  # fmt: skip
    for warning in judgement.warnings:
        log.warning("expected %s", warning)
    return out


def _attribution(cohort: pd.DataFrame, cited: list[pd.DataFrame]) -> pd.DataFrame:
    """Collection, licence and DOI of every series, once, with the ``citation`` that its owners ask for where the source
    knows it."""
    used = cohort[ATTRIBUTION].drop_duplicates()
    known = pd.concat([table[[*ATTRIBUTION, "citation"]].fillna("") for table in cited]) if cited else None
    found = used.assign(citation="") if known is None else used.merge(known, on=ATTRIBUTION, how="left")
    return found.fillna({"citation": ""}).sort_values(ATTRIBUTION, ignore_index=True)


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
