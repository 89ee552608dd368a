"""The user's own tasks: a block of ``<line>.tasks`` asks of a labelled set what its table says in a column."""

from __future__ import annotations

import pandas as pd

from components.errors import UserError
from components.evaluate.config import ClassifyConfig
from components.evaluate.tasks import Built, none_built, task_table
from components.sources.sets import LabelledSet, require_column

UNKNOWN = frozenset({"", "nan", "na", "n/a", "null", "none", "unknown"})  # no class, however it is written
CLASSES = 20  # more distinct values than this are no classes: a measurement, a date, a report


def classify(
    name: str, task: ClassifyConfig, of_set: LabelledSet, labelled: pd.DataFrame, curated: pd.DataFrame
) -> Built:
    """A case per labelled scan: the value of the task's column is its class.

    Args:
        name: of the task.
        task: its block.
        of_set: whose table holds the labels.
        labelled: of the cohort: which scan a row of the table is of, and on which side its patient is.
        curated: every series that reached curation, accepted or not.

    Raises:
        UserError: no such column, one that holds no classes, or two labels of one scan.
    """
    table, where = of_set.table()[0], f"{of_set.line}.tasks.{name}.label"
    require_column(table, task.label, f"params.yaml: {where}: {of_set.config.labels.table}")
    rows = labelled[labelled["set"] == of_set.name].merge(
        curated[["series", "volume", "accepted", "reason"]], on="series", how="left"
    )
    rows["label"] = table[task.label].str.strip().iloc[rows["row"]].to_numpy()
    known = ~rows["label"].str.lower().isin(UNKNOWN)
    classes = sorted(rows.loc[known, "label"].unique())
    if len(classes) > CLASSES:  # which are not told: they may be names
        raise UserError(
            f"params.yaml: {where}: column {task.label!r} is not allowed: it has {len(classes)} different values, and "
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
