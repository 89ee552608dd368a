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
from components.sources.sets import LabelledSet, first_rows

log = logging.getLogger(__name__)

PRETRAIN, EVALUATION, HELD_OUT = "pretrain", "evaluation", "held_out"
SIDES = ("train", "test")
COLUMNS = ("set", "row", "series", "patient", "split")  # rows are counted from 0
FEW = 10  # patients of a side; an AUC of 5 against 5 has an interval of .7 in width
NO_LABEL = "no_label"


@dataclass(frozen=True)
class Matched:
    """The scans that the rows of a set's table are of.

    Attributes:
        rows: a row per row of the table and scan, with :data:`COLUMNS`, sorted.
        keys: the pseudonyms that the table names.
        account: what of the table and of the source fits, and what does not: see :func:`_account`.
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
    scans = by_key(listing, of_set.config.labels.key)
    rows = [
        (number, series)
        for number, of_row in enumerate(keys)
        for series in sorted({series for key in of_row for series in scans.get(key, ())})
    ]
    if not rows:
        of = of_set.config.labels
        raise UserError(
            f"{of_set.line}.sets.{of_set.name}: no row of {of.table} names a scan of its source: "
            f"{sum(map(bool, keys))} rows have a {of.key} in column {of.column!r}, and the source lists "
            f"{len(listing.series)} scans"
        )
    patients = {series.series: series.patient for series in listing.series}
    found = pd.DataFrame(rows, columns=["row", "series"]).assign(set=of_set.name)
    found["patient"] = found["series"].map(patients)
    found["split"] = _sides(of_set, table, found)
    account = _account(keys, found, len(patients))
    _check_sides(of_set, account["patients_by_split"])
    _tell(of_set, account)
    in_order = found[list(COLUMNS)].sort_values(["row", "series"], ignore_index=True)
    return Matched(in_order, frozenset(key for of_row in keys for key in of_row), account)


def _account(keys: Sequence[tuple[str, ...]], found: pd.DataFrame, listed: int) -> dict[str, Any]:
    """What ``labelled.json`` says of a set. Each row of the table is in one of three: ``rows_with_scan`` (how many),
    ``rows_without_key`` and ``rows_without_scan`` (which, counted from 1 below the head). Each scan that the set's
    source lists is one of ``scans`` or of ``scans_without_row``. Each of ``scans`` and of ``patients`` is on one side;
    both sides are told, also where nobody is.

    Args:
        keys: of each row, what it may name.
        found: a row per row and scan.
        listed: how many scans the set's source has.
    """
    with_scan = set(found["row"])
    by_split = found.groupby("split")
    return {
        "rows": len(keys),
        "rows_with_scan": len(with_scan),
        "rows_without_key": [row for row, of_row in enumerate(keys, start=1) if not of_row],
        "rows_without_scan": [row for row, of_row in enumerate(keys, start=1) if of_row and row - 1 not in with_scan],
        "scans": int(found["series"].nunique()),
        "scans_without_row": listed - int(found["series"].nunique()),
        "patients": int(found["patient"].nunique()),
        **{
            f"{what}s_by_split": {side: int(by_split[column].nunique().get(side, 0)) for side in SIDES}
            for what, column in (("scan", "series"), ("patient", "patient"))
        },
    }


def _check_sides(of_set: LabelledSet, patients: Mapping[str, int]) -> None:
    """Say which side has few patients. Raises UserError where one of an internal set has nobody: no task could ever be
    evaluated on it."""
    external, split = of_set.config.role == "external", of_set.config.split
    where, sides = f"{of_set.line}.sets.{of_set.name}", ("test",) if external else SIDES
    counts = ", ".join(f"{side} {patients[side]}" for side in sides)
    remedy = (
        f"change split.test ({split.test:g}), or name the sides in a column of the table (split.column)"
        if split.column is None
        else f"change the sides in column {split.column!r}, or have them drawn (split.seed, split.test)"
    )
    if not all(patients[side] for side in sides):
        raise UserError(
            f"{where}: nobody is on one of the sides ({counts}): {remedy}; a set that is only tested on has role: "
            "external"
        )
    if any(patients[side] < FEW for side in sides):
        log.warning("%s: fewer than %d patients on a side (%s), too few for a figure to say much; label more%s",
                    where, FEW, counts, "" if external else f", or {remedy}")  # fmt: skip


def named_patients(of_set: LabelledSet, found: Matched, listings: Iterable[Listing]) -> frozenset[str]:
    """All who are named in a set's table, whether the scan that it names is in the set's source, in another, or in
    none. Files are named below the set's own root: under the same name, another tree holds another's."""
    patients = set(found.rows["patient"])
    if of_set.config.labels.key == "patient":
        return frozenset(patients | found.keys)
    if of_set.config.labels.key == "file":
        return frozenset(patients)
    for listing in listings:
        patients_of = {series.series: series.patient for series in listing.series}
        for key, series in by_key(listing, of_set.config.labels.key).items():
            if key in found.keys:
                patients.update(patients_of[one] for one in series)
    return frozenset(patients)


def _tell(of_set: LabelledSet, account: Mapping[str, Any]) -> None:
    sides = ", ".join(f"{side} {count}" for side, count in account["patients_by_split"].items())
    log.info("set %s: %d scans of %d patients (%s)", of_set.name, account["scans"], account["patients"], sides)
    lost, without = account["rows_without_scan"], account["rows_without_key"]
    if lost or without or account["scans_without_row"]:
        log.warning("set %s: of %d rows %d name no scan of the source%s, %d have no %s%s; %d scans have no row",
                    of_set.name, account["rows"], len(lost), _first(lost), len(without), of_set.config.labels.key,
                    _first(without), account["scans_without_row"])  # fmt: skip


def _first(rows: Sequence[int]) -> str:
    return f" (row {first_rows(rows)})" if rows else ""


def by_key(listing: Listing, key: str) -> dict[str, list[str]]:
    """Pseudonym, of the kind by which a table names scans, to their series."""
    found: dict[str, list[str]] = defaultdict(list)
    if key == "file":
        for location, series in zip(listing.files.location, listing.files.series, strict=True):
            if series:
                found[location].append(series)
        for series_ in listing.series:
            for folder in series_.folders:
                found[folder].append(series_.series)
        return found
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
    other = sorted({int(row) + 1 for row, side in zip(found["row"], sides, strict=True) if side not in SIDES})
    if other:  # what stands there is not told: of another column it may be a name
        raise UserError(
            f"{where}.split.column {split.column!r}: {len(other)} rows are not allowed, first row {other[0]} of "
            f"{of_set.config.labels.table}: {' or '.join(SIDES)}"
        )
    both = found.assign(side=sides).groupby("patient")["side"].nunique()
    if (both > 1).any():
        of_both = found.loc[found["patient"].isin(both[both > 1].index), "row"]
        rows = first_rows(sorted({int(row) + 1 for row in of_both}))
        raise UserError(
            f"{where}.split.column {split.column!r}: {int((both > 1).sum())} patients are in train and in test, as in "
            f"the rows {rows} of {of_set.config.labels.table}"
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


def of_the_set(listing: Listing, rows: pd.DataFrame, brought: Mapping[str, str]) -> Listing:
    """Of a set's own scans those that its table names, to evaluate with, and that no other set has brought.

    Args:
        listing: of the set's source.
        rows: of its table.
        brought: series that an earlier set brings in, to that set.
    """
    named = set(rows["series"])
    kept = [s for s in listing.series if s.series in named and s.series not in brought]
    elsewhere = {s.series: NO_LABEL for s in listing.series if s.series not in named} | _by_set(brought)
    series = [replace(s, role=EVALUATION, split=HELD_OUT) for s in kept]
    return replace(listing, series=series, files=without(listing.files, elsewhere))


def beside(listing: Listing, brought: Mapping[str, str], rows: pd.DataFrame) -> Listing:
    """The line's own source beside its labelled sets.

    Args:
        listing: what it lists.
        brought: series that a set brings in from its own source, to that set; they are not listed twice.
        rows: of all sets: those of the line's own scans serve to evaluate.
    """
    named = set(rows["series"])
    series = [
        replace(s, role=EVALUATION, split=HELD_OUT) if s.series in named and s.role == PRETRAIN else s
        for s in listing.series
        if s.series not in brought
    ]
    return replace(listing, series=series, files=without(listing.files, _by_set(brought)))


def _by_set(brought: Mapping[str, str]) -> dict[str, str]:
    """Series to the status of their files in another listing than that of the set that brings them in."""
    return {series: f"set:{name}" for series, name in brought.items()}


def without(files: Files, gone: Mapping[str, str]) -> Files:
    """The same files; those of a series in ``gone`` belong to none, and have the status that it is mapped to."""
    if gone.keys().isdisjoint(files.series):
        return files
    statuses = [gone.get(of, status) for of, status in zip(files.series, files.status, strict=True)]
    return Files(files.location, files.bytes, statuses, ["" if of in gone else of for of in files.series])
