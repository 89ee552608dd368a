"""Stage ``cohort``: every series of the source and of the evaluation set, with role, split and shard."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from components.cohort import labelled
from components.cohort.config import CohortConfig
from components.cohort.masks import OfScans, masks_of, write_masks
from components.cohort.readable import check_readable
from components.cohort.suite import cohort_suite
from components.command import cohort_slice, shard_of
from components.ct.keys import patient_key
from components.files import STATE, write_json
from components.quality import judge
from components.sources.build import source_of
from components.sources.config import SourceConfig
from components.sources.interface import Listed, Listing
from components.sources.lidc import ROOT, read_ratings
from components.sources.roots import root_of
from components.sources.sets import MASKS, LabelledSet
from components.tables import write_table

log = logging.getLogger(__name__)

FORGET_AFTER_DAYS = 30
NO_SHARD = -1  # of a rejected series: no stage brings it in
ATTRIBUTION = ["collection", "licence", "doi"]
FILE_COLUMNS = ("location", "bytes", "status", "series", "set")


def make_cohort(
    line: str,
    config: CohortConfig,
    shards: int,
    held_out: frozenset[str],
    folder: Path,
    sets: Mapping[str, LabelledSet] | None = None,
) -> pd.DataFrame:
    """List, assign, judge and write ``cohort.parquet``, ``files.parquet`` (every file of the source, accounted for),
    ``attribution.parquet`` (whose data they are), ``labelled.parquet`` (which scan a row of a labelled set's table is
    of) with ``labelled.json`` (what of it and of the masks did not fit), ``quality.json`` (suite *cohort*), and for
    each shard its part of the two tables, ``shards/<n>/``, and the masks of its scans, ``masks/<n>/``. A series that
    the suite rejects stays in the table, with its reason and without a shard: nothing transfers it, and ``curate``
    accounts for it.

    Args:
        line: model line.
        config: what to list.
        shards: number of data shards; a series' key decides on its own, so that one more moves no other.
        held_out: patients of external evaluation sets: their series are kept out of pretraining.
        folder: output.
        sets: the line's labelled sets; their patients are held out, too.

    Returns:
        The cohort, sorted by series.

    Raises:
        UserError: a critical expectation failed, too much of the source cannot be read, or labels that fit no scan.
    """
    rows, files, cited = [], [], []
    listings, held_out, masks = _listings(line, config, held_out, sets or {}, folder)
    for of in listings:
        listing = of.listing
        rows += [_row(series, of, held_out) for series in listing.series]
        if len(listing.files):
            files.append(listing.files.table().assign(set=of.set))
        if listing.selection is not None and not of.set:
            write_json(folder / "selection.json", listing.selection)
        if listing.attribution is not None:
            cited.append(listing.attribution)
    cohort = pd.DataFrame(rows).sort_values("series", ignore_index=True)
    of_masks = [of.attribution for of in masks.values() if of.attribution is not None]
    write_table(folder / "attribution.parquet", _attribution(cohort, cited, of_masks))
    cohort["shard"] = [shard_of(series, shards) for series in cohort["series"]]
    cohort = judged(cohort, config, shards, held_out, len(rows), folder)
    write_table(folder / "cohort.parquet", cohort)
    table = pd.concat(files) if files else pd.DataFrame(columns=list(FILE_COLUMNS))
    table = table.sort_values("location", ignore_index=True)
    write_table(folder / "files.parquet", table)
    write_slices(cohort, table, shards, folder)
    home = dict(zip(cohort["series"], cohort["shard"], strict=True))
    write_masks(masks, sets or {}, home, shards, folder)
    forget(line, frozenset(cohort["series"]))
    counts = cohort["role"].value_counts()
    log.info("%d series of %d patients: %s", len(cohort), cohort["patient"].nunique(),
             ", ".join(f"{role} {counts[role]}" for role in sorted(counts.index)))  # fmt: skip
    if len(table):
        statuses = table["status"].value_counts().sort_index()
        log.info("%d files: %s", len(table), ", ".join(f"{name} {n}" for name, n in statuses.items()))
    return cohort


@dataclass(frozen=True)
class _Of:
    """What a source lists.

    Attributes:
        source: its kind.
        version: of its data.
        set: the labelled set whose scans they are, or ''.
    """

    listing: Listing
    source: str
    version: str
    set: str = ""


def _listings(
    line: str, config: CohortConfig, held_out: frozenset[str], sets: Mapping[str, LabelledSet], folder: Path
) -> tuple[list[_Of], frozenset[str], dict[str, OfScans]]:
    """Every source of the line: its labelled sets' own, the one that it is pretrained on, the phantom; all patients who
    are held out; and the masks of the sets that have some."""

    def listed(name: str, place: str, of: SourceConfig, held_out: frozenset[str], set_name: str = "") -> _Of:
        source = source_of(name, place, of)
        listing = source.list_series(held_out)
        check_readable(name, listing.files, len(listing.series), config.quality.max_unreadable_share)
        return _Of(listing, name, source.version, set_name)

    own: list[_Of] = []
    found: dict[str, labelled.Matched] = {}
    masks: dict[str, OfScans | None] = {}
    seen: list[Listing] = []
    brought: dict[str, str] = {}  # series to the set that brings it in
    for name, of_set in sets.items():
        if of_set.source is not None:
            scans = listed(of_set.source.source, of_set.place, of_set.source, frozenset(), name)
            found[name] = labelled.matched(of_set, scans.listing)
            masks[name] = masks_of(of_set, scans.listing, found[name])
            seen.append(scans.listing)
            own.append(replace(scans, listing=labelled.of_the_set(scans.listing, found[name].rows, brought)))
            brought |= {series.series: name for series in own[-1].listing.series}
    theirs = frozenset(patient for of in found.values() for patient in of.rows["patient"])
    main = listed(config.source, line, config, held_out | theirs)
    for name, of_set in sets.items():
        if of_set.source is None:
            found[name] = labelled.matched(of_set, main.listing)
            masks[name] = masks_of(of_set, main.listing, found[name])
    every = [*seen, main.listing]
    named = {name: labelled.named_patients(sets[name], of, every) for name, of in found.items()}
    rows = labelled.joined([of.rows for of in found.values()])
    labelled.check_external(rows, named, sets)
    write_table(folder / "labelled.parquet", rows)
    there = {name: of for name in sets if (of := masks[name]) is not None}
    accounts = {
        name: of.account | ({MASKS: there[name].account} if name in there else {}) for name, of in found.items()
    }
    write_json(folder / "labelled.json", accounts)
    listings = [*own, replace(main, listing=labelled.beside(main.listing, brought, rows))]
    if config.source != "phantom":
        listings.append(listed("phantom", line, config, held_out))
    return listings, held_out.union(*named.values()), there


def write_slices(cohort: pd.DataFrame, files: pd.DataFrame, shards: int, folder: Path) -> None:
    """Each shard's rows of the cohort and of the table of files, in a folder of its own (see ``cohort_slice``)."""
    home = dict(zip(cohort["series"], cohort["shard"], strict=True))
    in_shard = files["series"].map(home).fillna(NO_SHARD)
    for shard in range(shards):
        part = cohort_slice(folder, shard)
        write_table(part / "cohort.parquet", cohort[cohort["shard"] == shard])
        write_table(part / "files.parquet", files[in_shard == shard])


def forget(line: str, series: frozenset[str], now: float | None = None) -> None:
    """Remove the raw files, receipts and volumes that this machine keeps of series that have left the cohort, once they
    were not in use for :data:`FORGET_AFTER_DAYS`: not at once, for the cohort of an experiment comes and goes."""
    old = (time.time() if now is None else now) - FORGET_AFTER_DAYS * 86_400
    for kind in ("raw", "receipts", "volumes"):
        for path in STATE.glob(f"{kind}/{line}/*-*"):
            if path.name.rpartition("-")[0] in series or path.name.startswith("."):
                continue
            if path.stat().st_mtime < old:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def judged(
    cohort: pd.DataFrame, config: CohortConfig, shards: int, held_out: frozenset[str], listed: int, folder: Path
) -> pd.DataFrame:
    """The cohort with column ``reason`` ('' where accepted); rejected series are in shard -1. Writes ``quality.json``.

    Raises:
        UserError: a critical expectation failed.
    """
    suite = cohort_suite(config, shards, listed, bool((cohort["source"] == "idc").any()))
    judgement = judge.judge(cohort.assign(kept_out=cohort["patient"].isin(held_out), shards=shards), suite)
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


def _attribution(cohort: pd.DataFrame, cited: list[pd.DataFrame], masks: list[pd.DataFrame]) -> pd.DataFrame:
    """Collection, licence and DOI of every series and of its masks, once, with the ``citation`` that its owners ask for
    where the source knows it."""
    used = cohort[ATTRIBUTION].drop_duplicates()
    known = pd.concat([table[[*ATTRIBUTION, "citation"]].fillna("") for table in cited]) if cited else None
    found = used.assign(citation="") if known is None else used.merge(known, on=ATTRIBUTION, how="left")
    every = pd.concat([found.fillna({"citation": ""}), *masks], ignore_index=True).drop_duplicates(ATTRIBUTION)
    return every.sort_values(ATTRIBUTION, ignore_index=True)


def _row(series: Listed, of: _Of, held_out: frozenset[str]) -> dict[str, object]:
    row = {**vars(series), "source": of.source, "set": of.set, "version": series.version or of.version}
    del row["members"], row["folders"]
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
    return frozenset(read_ratings(root_of(ROOT), lidc_nodules)["patient_id"].map(patient_key))
