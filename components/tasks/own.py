"""Cases of a labelled set: what its table says in a column is the class of each scan."""

from __future__ import annotations

import pandas as pd

from components.errors import UserError
from components.sources.sets import require_column, sets_of
from components.tasks.table import Built, Inputs, none_built, task_table

UNKNOWN = frozenset({"", "nan", "na", "n/a", "null", "none", "unknown"})  # no class, however it is written
CLASSES = 20  # more distinct values than this are no classes: a measurement, a date, a report


def classify(name: str, of: str, column: str, inputs: Inputs) -> Built:
    """A case per labelled scan: the value of ``column`` is its class.

    Args:
        name: of the task.
        of: the labelled set whose table holds the labels.
        column: of that table.
        inputs: of the line.

    Raises:
        UserError: no such column, one that holds no classes, or two labels of one scan.
    """
    of_set = sets_of(inputs.line)[of]
    table, where = of_set.table()[0], f"{inputs.line}.tasks.{name}.label"
    require_column(table, column, f"params.yaml: {where}: {of_set.config.labels.table}")
    rows = inputs.labelled[inputs.labelled["set"] == of].merge(
        inputs.curated[["series", "volume", "accepted", "reason"]], on="series", how="left"
    )
    rows["label"] = table[column].str.strip().iloc[rows["row"]].to_numpy()
    known = ~rows["label"].str.lower().isin(UNKNOWN)
    classes = sorted(rows.loc[known, "label"].unique())
    if len(classes) > CLASSES:  # which are not told: they may be names
        raise UserError(
            f"params.yaml: {where}: column {column!r} is not allowed: it has {len(classes)} different values, and "
            f"a task at most {CLASSES} classes"
        )
    of_one = rows[known].groupby("series")["label"].nunique()
    if (of_one > 1).any():
        raise UserError(
            f"params.yaml: {where}: {int((of_one > 1).sum())} scans have two different labels, first {of_one.idxmax()}"
        )
    accepted = rows["accepted"].fillna(False).astype(bool)
    cases = rows[known & accepted].drop_duplicates("series")
    told = _left_out(rows, known, accepted)
    if cases.empty:
        return none_built({name: told or "no labelled scan"})
    nowhere = float("nan")
    table_of = task_table([cases.assign(task=name, case=cases["series"], x=nowhere, y=nowhere, z=nowhere)])
    return Built(table_of, remarks={name: told} if told else {})


def _left_out(rows: pd.DataFrame, known: pd.Series[bool], accepted: pd.Series[bool]) -> str:
    """What became of the scans that are no case."""
    parts = []
    if count := int((~known).sum()):
        parts.append(f"{count} scans without a label")
    lost = rows[known & ~accepted]
    if len(lost):
        reasons = lost["reason"].fillna("").str.split(";").str[0].replace("", "not in the cohort")
        counts = reasons.value_counts().sort_index().to_dict()
        parts.append(f"{len(lost)} labelled scans rejected ({', '.join(f'{name} {n}' for name, n in counts.items())})")
    return f"Left out: {'; '.join(parts)}." if parts else ""
