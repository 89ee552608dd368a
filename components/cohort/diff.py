"""Two cohorts side by side: which series came, went and stayed, by collection."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from rich.console import Console
from rich.table import Table

from components.ct.keys import patient_key, series_key

COLUMNS = ["series", "patient", "collection", "licence", "bytes"]


@dataclass(frozen=True)
class Difference:
    """Attributes:
    by_collection: index collection; columns before, after, added, removed, changed (licence or bytes differ).
    patients: number of patients before, after, added and removed.
    """

    by_collection: pd.DataFrame
    patients: dict[str, int]


def of_selection(series: pd.DataFrame) -> pd.DataFrame:
    """A selection from the index, under the keys that cohorts use."""
    table = pd.DataFrame(
        {
            "series": [series_key(uid) for uid in series["SeriesInstanceUID"]],
            "patient": [patient_key(patient) for patient in series["PatientID"]],
            "collection": series["collection_id"],
            "licence": series["license_short_name"],
            "bytes": (series["series_size_MB"] * 1e6).round().astype("int64"),
        }
    )
    return table.reset_index(drop=True)


def of_cohort(cohort: pd.DataFrame) -> pd.DataFrame:
    """A ``cohort.parquet`` or ``selection.parquet``; series for pretraining that the suite *cohort* accepted."""
    if "crdc_series_uuid" in cohort:
        return of_selection(cohort)
    used = cohort["role"] == "pretrain"
    if "reason" in cohort:  # cohorts of earlier versions were not judged
        used &= cohort["reason"] == ""
    return cohort.loc[used, COLUMNS].reset_index(drop=True)


def compare(before: pd.DataFrame, after: pd.DataFrame) -> Difference:
    """Compare two tables of the columns ``COLUMNS``."""
    both = before.merge(after, on="series", how="outer", suffixes=("_before", "_after"), indicator=True)
    both["collection"] = both["collection_after"].fillna(both["collection_before"])
    stayed = both["_merge"] == "both"
    same = (both["licence_before"] == both["licence_after"]) & (both["bytes_before"] == both["bytes_after"])
    flags = pd.DataFrame(
        {
            "collection": both["collection"],
            "before": both["_merge"] != "right_only",
            "after": both["_merge"] != "left_only",
            "added": both["_merge"] == "right_only",
            "removed": both["_merge"] == "left_only",
            "changed": stayed & ~same,
        }
    )
    old, new = set(before["patient"]), set(after["patient"])
    patients = {"before": len(old), "after": len(new), "added": len(new - old), "removed": len(old - new)}
    return Difference(flags.groupby("collection").sum().astype(int), patients)


def print_diff(difference: Difference, before: str, after: str, console: Console) -> None:
    """The collections that differ, and the sums."""
    names = ["before", "after", "added", "removed", "changed"]
    rows = difference.by_collection
    differing = rows[rows[["added", "removed", "changed"]].any(axis=1)]
    table = Table(title=f"{before} to {after}: series for pretraining", title_justify="left")
    for name in ("collection", *names):
        table.add_column(name, justify="left" if name == "collection" else "right")
    for collection, row in differing.iterrows():
        table.add_row(str(collection), *(f"{row[name]:,}" for name in names))
    if len(rows) > len(differing):
        alike = rows.drop(differing.index)[names].sum()
        table.add_row(f"{len(rows) - len(differing)} collections alike", *(f"{alike[name]:,}" for name in names))
    table.add_section()
    table.add_row("series", *(f"{rows[name].sum():,}" for name in names))
    table.add_row("patients", *(f"{difference.patients[name]:,}" for name in names[:4]), "")
    console.print(table)
