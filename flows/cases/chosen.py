"""Which cases of an evaluation are shown: the worst and the best of each task, by its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from components.errors import UserError
from components.evaluate.layout import Layout, table
from components.tasks.scores import DIGITS, ENCODER

SEGMENT, CLASSIFY = "segment", "classify"
PROBES = {SEGMENT: "dice", CLASSIFY: "calibrated"}  # kind to whose rows tell of a case


@dataclass(frozen=True)
class Tables:
    """An evaluation's tables.

    Attributes:
        places: a row for each task and case: ``volume``, and ``x, y, z``, RAS mm, where it is a point.
        scores: of the encoder, a row for each task, case, probe and class.
    """

    places: pd.DataFrame
    scores: pd.DataFrame

    @classmethod
    def read(cls, line: str) -> Tables:
        """Those of a line. Raises UserError where it has not been evaluated."""
        folder = Layout.of(line).evaluate
        scores = table(folder / "cases.parquet")
        return cls(table(folder / "tasks.parquet"), scores[scores["method"] == ENCODER])


@dataclass(frozen=True)
class Chosen:
    """A case that is shown.

    Attributes:
        part: of a task, or the task.
        kind: of the task.
        rank: such as ``worst of 8``.
        case: of its table; of kind ``segment`` the series, whose structures are its cases.
        patient: pseudonym.
        volume: as the table of places names it.
        point_mm: RAS, of a case that is a point.
        label: of kind ``classify``, its true class.
        score: mean Dice over the structures, or the calibrated probability of the true class.
        scores: structure to Dice, or class to probability: as the evaluation has them; of two classes the second.
    """

    part: str
    kind: str
    rank: str
    case: str
    patient: str
    volume: str
    point_mm: tuple[float, float, float] | None
    label: str
    score: float
    scores: dict[str, float]


def choose(tables: Tables, tasks: Mapping[str, Any], wanted: Sequence[str], each: int) -> list[Chosen]:
    """The worst and the best cases of each task that segments or classifies, in the order of the tasks.

    Args:
        tables: of the evaluation.
        tasks: of the line, by name.
        wanted: tasks or parts of them; all where empty.
        each: so many of the worst, and of the best.

    Raises:
        UserError: there is no such task, it is of another kind, or nothing was evaluated.
    """
    parts = {part: kind for name, task in tasks.items() for part, kind in _parts(tables, name, task.kind).items()}
    if not parts:
        raise UserError(f"no task of kind {SEGMENT} or {CLASSIFY} was evaluated: there are no cases to show")
    for name in wanted:
        _require(name, parts, tasks)
    shown = [part for part in parts if not wanted or any(part == name or _root(part) == name for name in wanted)]
    return [one for part in shown for one in _ends(tables, part, parts[part], each)]


def _root(part: str) -> str:
    return part.split("/")[0]


def _parts(tables: Tables, name: str, kind: str) -> dict[str, str]:
    """Of one task, those with cases; of kind ``segment`` the task itself, whose head is released."""
    rows = tables.scores[tables.scores["probe"] == PROBES.get(kind, "")]
    known = [str(part) for part in sorted(rows["task"].unique()) if _root(part) == name]
    return {part: kind for part in known if kind != SEGMENT or part == name}


def _require(name: str, parts: Mapping[str, str], tasks: Mapping[str, Any]) -> None:
    if name in parts or name in map(_root, parts):
        return
    allowed = f"allowed: {', '.join(dict.fromkeys(map(_root, parts)))}, or a part of one"
    if name in tasks:
        why = f"of kind {tasks[name].kind}" if tasks[name].kind not in PROBES else "not evaluated"
        raise UserError(f"task {name!r}: {why}, it has no cases to show; {allowed}")
    raise UserError(f"task {name!r}: not a task of this line; {allowed}")


def _ends(tables: Tables, part: str, kind: str, each: int) -> list[Chosen]:
    rows = tables.scores[(tables.scores["task"] == part) & (tables.scores["probe"] == PROBES[kind])]
    found = (_segmented if kind == SEGMENT else _classified)(tables, part, rows)
    found.sort(key=lambda one: (one.score, one.case))
    count, last = len(found), len(found) - 1
    ends = [at for at in range(count) if at < each or at > last - each]
    return [_ranked(found[at], at, count) for at in ends]


def _ranked(one: Chosen, at: int, count: int) -> Chosen:
    worst = at < count - 1 - at
    place = (at if worst else count - 1 - at) + 1
    rank = f"{'worst' if worst else 'best'} of {count}" if place == 1 else f"{place}. {'worst' if worst else 'best'}"
    return Chosen(**{**vars(one), "rank": rank})


def _segmented(tables: Tables, part: str, rows: pd.DataFrame) -> list[Chosen]:
    """A scan each, by the mean over its structures; one in whose labels none of them is has no score."""
    found = []
    of_series = rows.assign(series=rows["case"].str.split("/").str[0])
    for series, own in of_series.groupby("series", sort=True):
        mean = own["score"].mean()
        if pd.isna(mean):
            continue
        place = _place(tables, part, str(own["case"].iloc[0]))
        dice = {str(name): float(score) for name, score in zip(own["label"], own["score"], strict=True)}
        found.append(
            Chosen(
                part, SEGMENT, "", str(series), str(place["patient"]), str(place["volume"]), None, "",
                round(float(mean), DIGITS), dice,
            )
        )  # fmt: skip
    return found


def _classified(tables: Tables, part: str, rows: pd.DataFrame) -> list[Chosen]:
    found = []
    for case, own in rows.groupby("case", sort=True):
        shares = {str(name): float(score) for name, score in zip(own["of_class"], own["score"], strict=True)}
        label, place = str(own["label"].iloc[0]), _place(tables, part, str(case))
        of_label = shares.get(label, 1 - sum(shares.values()))  # of two classes the table has one
        point = None if pd.isna(place["x"]) else (float(place["x"]), float(place["y"]), float(place["z"]))
        found.append(
            Chosen(
                part, CLASSIFY, "", str(case), str(place["patient"]), str(place["volume"]), point, label,
                round(of_label, DIGITS), shares,
            )
        )  # fmt: skip
    return found


def _place(tables: Tables, part: str, case: str) -> pd.Series[Any]:
    places = tables.places
    return places[(places["task"] == part) & (places["case"] == case)].iloc[0]
