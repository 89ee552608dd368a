"""What a selection from the Imaging Data Commons would bring in, as tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from components.files import write_json
from components.sources.idc_index import Selection
from components.tables import write_table

BREAKDOWNS = (
    ("collection", "collection_id"),
    ("licence", "license_short_name"),
    ("manufacturer", "Manufacturer"),
    ("body part", "BodyPartExamined"),
    ("transfer syntax", "transfer_syntax_name"),
)
ROWS = 12


def print_preview(selection: Selection, console: Console) -> None:
    """The funnel, what of it is left to screening, and breakdowns of the chosen series."""
    receipt = selection.receipt
    table = Table(title=f"Query {receipt['query']} on {receipt['index']}", title_justify="left")
    for column in ("criterion", "series", "dropped", "patients", "TB", "left to screening"):
        table.add_column(column, justify="left" if column == "criterion" else "right")
    before = None
    for step in selection.funnel:
        dropped = "" if before is None else f"{before - step.series:,}"
        deferred = f"{step.deferred:,}" if step.deferred else ""
        numbers = (f"{step.series:,}", dropped, f"{step.patients:,}", f"{step.gigabytes / 1000:.2f}", deferred)
        table.add_row(step.criterion, *numbers)
        before = step.series
    console.print(table)
    missing = sorted(name for name, found in receipt["tables"].items() if found == "not on this machine")
    if missing:
        console.print(
            f"Not on this machine: {', '.join(missing)}. What they would tell is judged after the transfer, by header "
            f"screening. Fetch them where the network allows: ctfoundry cohort fetch-index"
        )
    for title, column in BREAKDOWNS:
        console.print(_breakdown(title, selection.series, column))


def _breakdown(title: str, series: pd.DataFrame, column: str) -> Table:
    """The most frequent values of a column, the rest in one row."""
    groups = series.assign(**{column: series[column].fillna("not stated")}).groupby(column)
    counts = groups.agg(series=(column, "size"), patients=("PatientID", "nunique"), mb=("series_size_MB", "sum"))
    counts = counts.reset_index().sort_values(["series", column], ascending=[False, True])
    table = Table(title=f"By {title} ({len(counts)})", title_justify="left")
    for name in (title, "series", "patients", "GB"):
        table.add_column(name, justify="left" if name == title else "right")
    rest = counts.iloc[ROWS:]
    for row in counts.iloc[:ROWS].itertuples(index=False):
        table.add_row(str(row[0]), f"{row[1]:,}", f"{row[2]:,}", f"{row[3] / 1000:,.1f}")
    if len(rest):
        total = rest[["series", "mb"]].sum()
        table.add_row(f"{len(rest)} others", f"{int(total['series']):,}", "", f"{total['mb'] / 1000:,.1f}")
    return table


def write_selection(selection: Selection, folder: Path) -> None:
    """``selection.parquet``, ``attribution.parquet`` and ``selection.json`` (funnel and receipt) into ``folder``."""
    write_table(folder / "selection.parquet", selection.series)
    write_table(folder / "attribution.parquet", selection.attribution)
    write_json(folder / "selection.json", {"funnel": funnel_rows(selection), "receipt": selection.receipt})


def funnel_rows(selection: Selection) -> Sequence[dict[str, object]]:
    """The funnel as plain rows."""
    return [dict(vars(step)) for step in selection.funnel]
