"""Cases of a labelled set: what its table says in a column is the class, the number or the time of each scan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from components.errors import UserError
from components.figures.arrays import Array, Bools
from components.sources.sets import NO_VALUE, require_column, sets_of
from components.tasks.config import STRUCTURE, check_reserved
from components.tasks.mapped import structures
from components.tasks.table import Built, Inputs, none_built, task_table

CLASSES = 20  # more distinct values than this are no classes: a measurement, a date, a report
EVENT = {"1": True, "0": False, "true": True, "false": False, "yes": True, "no": False}
EVENT |= {"1.0": True, "0.0": False}  # as a column with gaps is written
CENSORED = "+"  # ends a time that is not of the event, as in tables of survival


def classify(name: str, of: str, column: str, inputs: Inputs, external: Sequence[str] = ()) -> Built:
    """A case per labelled scan: the value of ``column`` is its class.

    Args:
        name: of the task.
        of: the labelled set whose table holds the labels.
        column: of that table; or :data:`STRUCTURE`, for a case per structure of its masks.
        inputs: of the line.
        external: sets of other sites, with a column of the same name. Each makes a part of its own, ``<task>/<set>``,
            which trains on the cases of ``of`` that the task trains on, and tests on all cases of that set.

    Raises:
        UserError: no such column, one that holds no classes, two labels of one scan, or a column that is named as
            :data:`STRUCTURE`.
    """
    built = _classified(name, name, of, column, inputs)
    trained = built.table[built.table["split"] == "train"]
    tables, reasons, remarks = [built.table], dict(built.not_evaluated), dict(built.remarks)
    for site in external:
        part = f"{name}/{site}"
        there = _classified(name, part, site, column, inputs)
        tables += [trained.assign(task=part), there.table] if len(there.table) else []
        reasons, remarks = reasons | there.not_evaluated, remarks | there.remarks
    return Built(task_table(tables), reasons, remarks)


def _classified(name: str, part: str, of: str, column: str, inputs: Inputs) -> Built:
    where = f"params.yaml: {inputs.line}.tasks.{name}.label"
    if column == STRUCTURE:
        sets = sets_of(inputs.line)
        if of in sets and not sets[of].planned:
            check_reserved(sets[of].table()[0].columns, f"{where}:")
        return structures(part, of, inputs)
    rows, known = _labelled(name, of, {"label": column}, inputs)
    classes = sorted(rows.loc[known, "label"].unique())
    if len(classes) > CLASSES:  # which are not told: they may be names
        raise UserError(
            f"{where}: column {column!r} is not allowed: it has {len(classes)} different values, and "
            f"a task at most {CLASSES} classes"
        )
    return _cases(part, rows, known, f"{where}:")


def numbers(name: str, of: str, column: str, inputs: Inputs) -> Built:
    """A case per labelled scan: the number in ``column`` is its label.

    Args:
        name, of, column, inputs: as of :func:`classify`.

    Raises:
        UserError: no such column, a value that is no finite number, or two labels of one scan.
    """
    where = f"params.yaml: {inputs.line}.tasks.{name}.label: column {column!r}"
    rows, known = _labelled(name, of, {"label": column}, inputs)
    _numbers(rows.loc[known, "label"], where)
    return _cases(name, rows, known, f"{where}:")


def times(name: str, of: str, time: str, event: str, inputs: Inputs) -> Built:
    """A case per labelled scan: its label is the time in column ``time``, ending in ``+`` where column ``event`` says
    that the patient was last seen then without the event.

    Args:
        name, of, inputs: as of :func:`classify`.
        time: 0 or more, in any unit.
        event: 1 or 0, true or false, yes or no.

    Raises:
        UserError: no such column, a time that is no number of 0 or more, an event that is neither, or two labels of one
            scan.
    """
    where = f"params.yaml: {inputs.line}.tasks.{name}"
    rows, known = _labelled(name, of, {"time": time, "event": event}, inputs)
    found = _numbers(rows.loc[known, "time"], f"{where}.time: column {time!r}")
    if (found < 0).any():
        raise UserError(f"{where}.time: column {time!r}: {found.min():g} is not allowed: a time of 0 or more")
    had = rows.loc[known, "event"].str.lower()
    wrong = sorted(set(had) - set(EVENT))
    if wrong:  # which are not told: of another column, they may be names
        raise UserError(
            f"{where}.event: column {event!r}: {len(wrong)} different values are neither 1 nor 0, true nor false, yes "
            "nor no"
        )
    rows["label"] = ""
    rows.loc[known, "label"] = rows.loc[known, "time"] + had.map(EVENT).map({True: "", False: CENSORED})
    return _cases(name, rows, known, f"{where}:")


def time_of(labels: pd.Series[str]) -> tuple[Array, Bools]:
    """Times (cases,), and whether the event was then, of the labels that :func:`times` makes."""
    censored: Bools = np.array([label.endswith(CENSORED) for label in labels], dtype=np.bool_)
    return np.array([float(label.removesuffix(CENSORED)) for label in labels]), ~censored


def _labelled(name: str, of: str, columns: dict[str, str], inputs: Inputs) -> tuple[pd.DataFrame, pd.Series[bool]]:
    """The scans of a set with the values of ``columns`` (setting to column), and whether each has all of them."""
    of_set = sets_of(inputs.line)[of]
    table = of_set.table()[0]
    rows = inputs.labelled[inputs.labelled["set"] == of].merge(
        inputs.curated[["series", "volume", "accepted", "reason"]], on="series", how="left"
    )
    known = pd.Series(True, index=rows.index)
    for setting, column in columns.items():
        where = f"params.yaml: {inputs.line}.tasks.{name}.{setting}: {of_set.config.labels.table}"
        require_column(table, column, where)
        rows[setting] = table[column].str.strip().iloc[rows["row"]].to_numpy()
        known &= ~rows[setting].str.lower().isin(NO_VALUE)
    return rows, known


def _numbers(values: pd.Series[str], where: str) -> Array:
    found = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64)
    wrong = int((~np.isfinite(found)).sum())
    if wrong:  # which are not told: they may be names
        raise UserError(f"{where}: {wrong} of {len(values)} values are no finite numbers")
    return found


def _cases(name: str, rows: pd.DataFrame, known: pd.Series[bool], where: str) -> Built:
    of_one = rows[known].groupby("series")["label"].nunique()
    if (of_one > 1).any():
        raise UserError(f"{where} {int((of_one > 1).sum())} scans have two different labels, first {of_one.idxmax()}")
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
