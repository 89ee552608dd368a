"""The labelled sets of a line beside its cohort: which scan each row of a table is of, and who is held out for it."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from components.errors import UserError
from components.sources.interface import Files, Listing
from components.sources.sets import LabelledSet

log = logging.getLogger(__name__)

PRETRAIN, EVALUATION, HELD_OUT = "pretrain", "evaluation", "held_out"
SIDES = ("train", "test")
COLUMNS = ("set", "row", "series", "patient", "split")
SHOWN = 3  # rows or values named in a line of text


@dataclass(frozen=True)
class Matched:
    """The scans that the rows of a set's table are of.

    Attributes:
        rows: a row per row of the table and scan, with :data:`COLUMNS`, sorted.
        keys: the pseudonyms that the table names.
        account: what was counted: rows without a key, rows whose key no scan has, scans that no row names.
    """

    rows: pd.DataFrame
    keys: frozenset[str]
    account: dict[str, Any]


def matched(of_set: LabelledSet, listing: Listing) -> Matched:
    """Find the scans of a set's table in ``listing``, which is of the source that holds them.

    Raises:
        UserError: no row has a scan; a column that says the side of a patient says something else than train or test,
            or both of one patient.
    """
    table, keys = of_set.table()
    scans = _by_key(listing, of_set.config.labels.key)
    rows = [
        (number, series)
        for number, of_row in enumerate(keys)
        for series in sorted({series for key in of_row for series in scans.get(key, ())})
    ]
    named = sum(map(bool, keys))
    if not rows:
        of = of_set.config.labels
        raise UserError(
            f"{of_set.line}.sets.{of_set.name}: no row of {of.table} names a scan of its source: {named} rows have a "
            f"{of.key} in column {of.column!r}, and the source lists {len(listing.series)} scans"
        )
    patients = {series.series: series.patient for series in listing.series}
    found = pd.DataFrame(rows, columns=["row", "series"]).assign(set=of_set.name)
    found["patient"] = found["series"].map(patients)
    found["split"] = _sides(of_set, table, found)
    with_scan = set(found["row"])
    account = {
        "rows": len(table),
        "rows_without_key": len(keys) - named,
        "rows_without_scan": [row for row, of_row in enumerate(keys) if of_row and row not in with_scan],
        "scans": int(found["series"].nunique()),
        "scans_without_row": len(patients.keys() - set(found["series"])),
        "patients": int(found["patient"].nunique()),
        "patients_by_split": found.groupby("split")["patient"].nunique().astype(int).to_dict(),
    }
    _tell(of_set, account)
    in_order = found[list(COLUMNS)].sort_values(["row", "series"], ignore_index=True)
    return Matched(in_order, frozenset(key for of_row in keys for key in of_row), account)


def named_patients(of_set: LabelledSet, found: Matched, listings: Iterable[Listing]) -> frozenset[str]:
    """All who are named in a set's table, whether the scan that it names is in the set's source, in another, or in
    none."""
    patients = set(found.rows["patient"])
    if of_set.config.labels.key == "patient":
        return frozenset(patients | found.keys)
    for listing in listings:
        patients_of = {series.series: series.patient for series in listing.series}
        for key, series in _by_key(listing, of_set.config.labels.key).items():
            if key in found.keys:
                patients.update(patients_of[one] for one in series)
    return frozenset(patients)


def _tell(of_set: LabelledSet, account: Mapping[str, Any]) -> None:
    sides = ", ".join(f"{side} {count}" for side, count in account["patients_by_split"].items())
    log.info("set %s: %d scans of %d patients (%s)", of_set.name, account["scans"], account["patients"], sides)
    lost = len(account["rows_without_scan"])
    if lost or account["rows_without_key"] or account["scans_without_row"]:
        log.warning("set %s: of %d rows %d name no scan of the source, %d name none at all; %d scans have no row",
                    of_set.name, account["rows"], lost, account["rows_without_key"],
                    account["scans_without_row"])  # fmt: skip


def _by_key(listing: Listing, key: str) -> dict[str, list[str]]:
    """Pseudonym, of the kind by which a table names scans, to their series."""
    found: dict[str, list[str]] = defaultdict(list)
    if key == "file":
        for location, series in zip(listing.files.location, listing.files.series, strict=True):
            if series:
                found[location].append(series)
        for series_ in listing.series:
            found[series_.location].append(series_.series)
        return {name: sorted(set(of)) for name, of in found.items()}
    attribute = {"series": "uid"}.get(key, key)
    for series_ in listing.series:
        if named := getattr(series_, attribute):
            found[named].append(series_.series)
    return found


def _sides(of_set: LabelledSet, table: pd.DataFrame, found: pd.DataFrame) -> list[str]:
    if of_set.config.role == "external":
        return ["test"] * len(found)
    split, where = of_set.config.split, f"{of_set.line}.sets.{of_set.name}"
    if split.column is None:
        assert split.seed is not None
        assert split.test is not None
        return [side_of(split.seed, patient, split.test) for patient in found["patient"]]
    sides = [side.strip() for side in table[split.column].iloc[found["row"]]]
    other = [int(row) + 1 for row, side in zip(found["row"], sides, strict=True) if side not in SIDES]
    if other:  # what stands there is not told: of another column it may be a name
        raise UserError(
            f"{where}.split.column {split.column!r}: {len(other)} rows are not allowed, first row {other[0]} of "
            f"{of_set.config.labels.table}: {' or '.join(SIDES)}"
        )
    both = found.assign(side=sides).groupby("patient")["side"].nunique()
    if (both > 1).any():
        rows = found.loc[found["patient"].isin(both[both > 1].index), "row"]
        lines = ", ".join(str(row + 1) for row in sorted(set(rows))[:SHOWN])
        raise UserError(
            f"{where}.split.column {split.column!r}: {int((both > 1).sum())} patients are in train and in test, as in "
            f"the rows {lines} of {of_set.config.labels.table}"
        )
    return sides


def side_of(seed: int, patient: str, test: float) -> str:
    """``train`` or ``test``, by a seeded hash of the patient's key alone: one patient more moves no other."""
    drawn = int.from_bytes(hashlib.sha256(f"{seed}/{patient}".encode()).digest()[:8])
    return "test" if drawn < test * 2**64 else "train"


def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all sets, sorted; none where there is no set."""
    empty = pd.DataFrame({name: pd.Series(dtype="int64" if name == "row" else "str") for name in COLUMNS})
    return (pd.concat(tables) if tables else empty).sort_values(["set", "row", "series"], ignore_index=True)


def check_external(rows: pd.DataFrame, named: Mapping[str, frozenset[str]], sets: Mapping[str, LabelledSet]) -> None:
    """Raise UserError where a patient who is named in an external set is one that heads are trained on."""
    trained = set(rows.loc[rows["split"] == "train", "patient"])
    for name, of_set in sets.items():
        both = trained & named[name]
        if of_set.config.role == "external" and both:
            raise UserError(
                f"{of_set.line}.sets.{name}: {len(both)} of its patients are also in the training side of another set, "
                f"first {min(both)}: it is not external to it"
            )


def of_the_set(listing: Listing, rows: pd.DataFrame, taken: set[str]) -> Listing:
    """Of a set's own scans those that its table names, to evaluate with, and that are not ``taken``: another set has
    brought them. Files of others belong to no series."""
    named = set(rows["series"]) - taken
    series = [replace(s, role=EVALUATION, split=HELD_OUT) for s in listing.series if s.series in named]
    return replace(listing, series=series, files=without(listing.files, named, keep=True))


def beside(listing: Listing, elsewhere: Iterable[str], rows: pd.DataFrame) -> Listing:
    """The line's own source beside its labelled sets.

    Args:
        listing: what it lists.
        elsewhere: series that come from a set's own source; they are not listed twice.
        rows: of all sets: those of the line's own scans serve to evaluate.
    """
    gone, named = set(elsewhere), set(rows["series"])
    series = [
        replace(s, role=EVALUATION, split=HELD_OUT) if s.series in named and s.role == PRETRAIN else s
        for s in listing.series
        if s.series not in gone
    ]
    return replace(listing, series=series, files=without(listing.files, gone, keep=False))


def without(files: Files, series: set[str], keep: bool) -> Files:
    """The same files; those of ``series`` (or, with ``keep``, of all others) belong to none, as their status says."""
    lost = [bool(of) and (of in series) != keep for of in files.series]
    if not any(lost):
        return files
    return Files(
        files.location,
        files.bytes,
        ["no_label" if gone and keep else "labelled_set" if gone else status
         for gone, status in zip(lost, files.status, strict=True)],
        ["" if gone else of for gone, of in zip(lost, files.series, strict=True)],
    )  # fmt: skip
