"""The evaluation report: one HTML page that carries its pictures with it and asks for nothing elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from components.evaluate.bycase import by_case
from components.evaluate.comparisons import Added, ExternalSet, external_sets, other_models, what_it_adds
from components.evaluate.gallery import GROUPS, Picture, embedded, groups_file
from components.evaluate.published import PublishedFigure
from components.evaluate.words import FALLS, NO_FALL, count, method_name, number, question, verdict, with_interval
from components.tasks.attributes import ATTRIBUTES
from components.tasks.config import EvaluateConfig
from components.tasks.interface import Measure
from components.tasks.kinds import kind_of
from components.tasks.plain import PLAIN
from components.tasks.scores import ENCODER, RANDOM

MARKS = {"better": "▲", "undecided": "●", "worse": "▼", "not evaluated": "–", FALLS: "▼", NO_FALL: "●"}
ALWAYS = PLAIN  # beside the encoder in the table of all tasks
WORST = 5  # cases named of a task


@dataclass(frozen=True)
class Evaluated:
    """What the tasks of a line found.

    Attributes:
        line: the model line.
        tasks: by name, their blocks.
        metrics: content of ``metrics.json``.
        figures: table of all methods' figures.
        cases: per-case scores.
        rows: the task table.
        remarks: part to what is to be said of it.
        config: of evaluation.
        subgroups: their table, see :func:`components.evaluate.subgroups.compare`.
    """

    line: str
    tasks: Mapping[str, Any]
    metrics: Mapping[str, Any]
    figures: pd.DataFrame
    cases: pd.DataFrame
    rows: pd.DataFrame
    remarks: Mapping[str, str]
    config: EvaluateConfig
    subgroups: pd.DataFrame


@dataclass(frozen=True)
class Beside:
    """What is told beside the line's figures.

    Attributes:
        curated: every series that reached curation.
        sets: labelled set to its account, see :class:`components.cohort.labelled.Matched`.
        headers: measurements of the series' headers; empty where there are none.
        labelled: which series is of which labelled set: columns series, set.
        published: figures of other models.
        masks: labelled set to what its masks came to, see :func:`components.curate.labels.account`.
    """

    curated: pd.DataFrame
    sets: Mapping[str, Any]
    headers: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"series": pd.Series(dtype="str")}))
    labelled: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["series", "set"], dtype="str"))
    published: tuple[PublishedFigure, ...] = ()
    masks: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One figure of a part, or one part in the table of all tasks; numbers as text."""

    name: str
    verdict: str
    encoder: str = ""
    untrained: str = ""
    difference: str = ""
    others: tuple[str, ...] = ()
    figure: str = ""
    size: str = ""
    anchor: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Part:
    """A task's table of figures, or that of one of its parts."""

    name: str
    size: str
    said: str
    remark: str
    others: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Section:
    """One task of the report.

    Attributes:
        parts: shown; inner: shown on demand.
        external: its external sets that were evaluated.
        adds: what the encoder adds to baselines, and by which figure.
        others: part, figure, model, their value, ours, the difference of peers, source.
        worst: part, case, what it is, what was said of it.
    """

    name: str
    asked: str
    parts: tuple[Part, ...]
    inner: tuple[Part, ...]
    external: tuple[ExternalSet, ...]
    adds_by: str
    adds: tuple[Added, ...]
    others: tuple[tuple[str, ...], ...]
    pictures: tuple[Mapping[str, Any], ...]
    left_out: tuple[tuple[str, str], ...]
    worst_of: str
    worst: tuple[tuple[str, ...], ...]


def part_of(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a task and of what it is made of."""
    return table[(table["task"] == name) | table["task"].str.startswith(f"{name}/")]


def render_report(evaluated: Evaluated, beside: Beside, pictures: Mapping[str, Sequence[Picture]]) -> str:
    """The report's HTML.

    Args:
        evaluated: what the tasks found.
        beside: what is told of the data.
        pictures: task to its pictures; those of all tasks under '', of subgroups under
            :data:`~components.evaluate.gallery.GROUPS`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    curated = beside.curated[beside.curated["role"] == "evaluation"]
    accepted = curated[curated["status"] == "accepted"]
    sections = [_section(evaluated, name, pictures[name], beside.published) for name in evaluated.tasks]
    return environment.get_template("report.html.j2").render(
        line=evaluated.line,
        patients=evaluated.metrics["patients"],
        evaluation_data=evaluated.metrics["evaluation_data"],
        marks=MARKS,
        overview=_overview(evaluated),
        overview_others=[method_name(name) for name in ALWAYS],
        pictures=[embedded(picture) for picture in pictures[""]],
        sections=sections,
        external=any(section.external for section in sections),
        groups=[of for name in evaluated.tasks for of in _groups(evaluated, name, pictures[GROUPS])],
        sets=sorted(beside.sets.items()),
        masks=[
            (name, account["masks"], beside.masks[name])
            for name, account in sorted(beside.sets.items())
            if "masks" in account and name in beside.masks
        ],
        scans=len(curated),
        accepted=len(accepted),
        rejected=_rejected(curated),
        sources=sorted(accepted["source"].unique()),
        config=evaluated.config,
        seeds=len(evaluated.config.random_seeds),
        nodules=any(task.startswith("lidc_nodules/") for task in evaluated.metrics["tasks"]),
    )


def _overview(evaluated: Evaluated) -> list[Row]:
    """A row per task; per part where there is no figure of the whole; and what was not evaluated."""
    rows = []
    metrics = evaluated.metrics
    for name in evaluated.tasks:
        parts = [part for part in sorted(metrics["tasks"]) if _of(name, part)]
        for part in [name] if name in parts else parts:
            rows.append(_summary(evaluated, name, part))
        for part, why in sorted(metrics["not_evaluated"].items()):
            if _of(name, part):
                rows.append(Row(part, "not evaluated", reason=why, anchor=_anchor(name)))
    return rows


def _of(name: str, part: str) -> bool:
    return part == name or part.startswith(f"{name}/")


def _anchor(task: str) -> str:
    return f"task-{task}"


def _summary(evaluated: Evaluated, name: str, part: str) -> Row:
    figure = evaluated.metrics["primary"][part]
    row = _row(evaluated, name, part, figure, ALWAYS)
    averaged = averaged_parts(part, evaluated.metrics["tasks"], evaluated.rows, evaluated.tasks[name])
    size = _size(evaluated, part) + (f"; mean over {len(averaged)} parts" if averaged else "")
    return Row(part, row.verdict, row.encoder, row.untrained, row.difference, row.others, row.name, size, _anchor(name))


def averaged_parts(name: str, judged: Iterable[str], rows: pd.DataFrame, task: Any) -> list[str]:
    """The parts that a task's figure is the mean of; none where it has cases of its own. External sets are no parts of
    it, and neither are fewer labelled scans or fine-tuning.

    Args:
        name: of the task.
        judged: names of tasks and parts.
        rows: the task table.
        task: its block.
    """
    if name in set(rows["task"]):
        return []
    external = {f"{name}/{site}" for site in getattr(task, "external", ())}
    return [part for part in judged if part.rpartition("/")[0] == name and part not in external]


def _size(evaluated: Evaluated, part: str) -> str:
    own = evaluated.figures[(evaluated.figures["task"] == part) & (evaluated.figures["method"] == ENCODER)].iloc[0]
    return f"{count(int(own['n_cases']), 'case')} of {count(int(own['n_patients']), 'patient')}"


def _measures(evaluated: Evaluated, name: str) -> Mapping[str, Measure]:
    return kind_of(evaluated.tasks[name]).figures


def _row(evaluated: Evaluated, name: str, part: str, figure: str, others: Sequence[str]) -> Row:
    measure, numbers = _measures(evaluated, name)[figure], evaluated.metrics["tasks"][part][figure]
    own = evaluated.figures[(evaluated.figures["task"] == part) & (evaluated.figures["figure"] == figure)]
    of = own.set_index("method")
    seeds = of[of.index.str.startswith(f"{RANDOM}_")]["value"]
    span = f"{number(numbers['random'])} ({number(seeds.min())} to {number(seeds.max())})"
    numbers_of = {
        str(m): (float(v), float(a), float(b))
        for m, v, a, b in zip(of.index, of["value"], of["low"], of["high"], strict=True)
    }
    limits = (numbers["difference_low"], numbers["difference_high"])
    return Row(
        measure.title + (", lower is better" if measure.lower_is_better else ""),
        verdict(numbers, measure),
        with_interval(numbers["value"], numbers["low"], numbers["high"]),
        span,
        with_interval(numbers["difference"], *limits, signed=True),
        tuple(with_interval(*numbers_of[method]) if method in numbers_of else "" for method in others),
    )


def _part(evaluated: Evaluated, name: str, part: str) -> Part:
    own = evaluated.figures[evaluated.figures["task"] == part]
    shown = [str(m) for m in own["method"].unique() if m not in (ENCODER, RANDOM) and not m.startswith(f"{RANDOM}_")]
    others = sorted(shown, key=lambda method: ([*ALWAYS, method].index(method), method))
    found = evaluated.metrics["tasks"][part]
    rows = [_row(evaluated, name, part, figure, others) for figure in _measures(evaluated, name) if figure in found]
    return Part(
        part,
        f"{_size(evaluated, part)} tested{_classes(part, evaluated.rows)}.",
        f"{rows[0].name} {rows[0].encoder}; untrained encoders {rows[0].untrained}; difference to one more of them "
        f"{rows[0].difference}: {rows[0].verdict}.",
        evaluated.remarks.get(part, ""),
        tuple(method_name(method) for method in others),
        tuple(rows),
    )  # fmt: skip


def _classes(part: str, table: pd.DataFrame) -> str:
    rows = table[table["task"] == part]
    tested = rows[rows["split"] == "test"]["label"].value_counts().sort_index()
    if rows.empty or (rows["split"] == "retest").any() or len(tested) > 40:  # numbers are no classes
        return ""
    train = int((rows["split"] == "train").sum())
    return f" ({', '.join(f'{found} {name}' for name, found in tested.items())}); {count(train, 'training case')}"


def _section(
    evaluated: Evaluated, name: str, pictures: Sequence[Picture], published: Sequence[PublishedFigure]
) -> Section:
    parts = [part for part in sorted(evaluated.metrics["tasks"]) if _of(name, part)]
    shown = [name] if name in parts else parts
    worst_of, worst = _worst(evaluated, name)
    own = [theirs for theirs in published if _of(name, theirs.task)]
    return Section(
        name,
        question(evaluated.tasks[name]),
        tuple(_part(evaluated, name, part) for part in shown),
        tuple(_part(evaluated, name, part) for part in parts if part not in shown),
        external_sets(
            evaluated.metrics, _measures(evaluated, name), name, getattr(evaluated.tasks[name], "external", ())
        ),
        *what_it_adds(evaluated.metrics, _measures(evaluated, name), parts),
        other_models(evaluated.metrics, _measures(evaluated, name), parts, own),
        tuple(embedded(picture) for picture in pictures),
        tuple((part, why) for part, why in sorted(evaluated.metrics["not_evaluated"].items()) if _of(name, part)),
        worst_of,
        worst,
    )


def _worst(evaluated: Evaluated, name: str) -> tuple[str, tuple[tuple[str, ...], ...]]:
    """The cases of a task that went worst, and by which figure."""
    found, title = [], ""
    measures = _measures(evaluated, name)
    for part, rows in part_of(name, evaluated.cases).groupby("task"):
        of = by_case(rows, measures)
        if of is None:
            continue
        title = "the linear probe" if of.of_classes else measures[of.figure].title
        quality = of.quality() * (-1 if measures[of.figure].lower_is_better else 1)
        for at in np.argsort(np.where(np.isnan(quality), np.inf, quality), kind="stable")[:WORST]:
            said = number(float(of.quality()[at]))
            if of.of_classes:
                best = int(np.argmax(of.scores[at]))
                said = f"{of.classes[best]} ({of.scores[at][best]:.0%}; its own class {of.quality()[at]:.0%})"
            found.append((float(quality[at]), (str(part), of.cases[at], of.labels[at], said)))
    return title, tuple(row for _, row in sorted(found, key=lambda one: one[0])[:WORST])


@dataclass(frozen=True)
class Groups:
    """A task's subgroups.

    Attributes:
        gaps: attribute, its groups, the worst of them, its gap; numbers as text.
        rows: attribute, group, size and figure of each group that has one.
        small: attribute and its groups without a figure.
        pictures: of the figures.
    """

    name: str
    figure: str
    gaps: tuple[tuple[str, ...], ...]
    rows: tuple[tuple[str, ...], ...]
    small: tuple[tuple[str, str], ...]
    pictures: tuple[Mapping[str, Any], ...]


def _groups(evaluated: Evaluated, name: str, pictures: Sequence[Picture]) -> list[Groups]:
    """Of a task, or of its parts where it has no figure of the whole."""
    own = part_of(name, evaluated.subgroups)
    parts = sorted(own["task"].unique())
    found = []
    for part in [name] if name in parts else parts:
        of, measure = own[own["task"] == part], own.loc[own["task"] == part, "figure"].iloc[0]
        gaps = []
        for attribute, numbers in evaluated.metrics["subgroups"][part].items():
            told = "no two groups are large enough to be compared"
            if "worst" in numbers:
                limits = (numbers["gap_low"], numbers["gap_high"])
                told = f"{numbers['worst']}: {with_interval(numbers['gap'], *limits, signed=True)}"
            gaps.append((ATTRIBUTES[attribute], str(numbers["groups"]), told))
        large, small = of[of["why_not"] == ""], of[of["why_not"] != ""]
        rows = [
            (ATTRIBUTES[str(row["attribute"])], str(row["group"]), _sized(row),
             with_interval(float(row["value"]), float(row["low"]), float(row["high"])))
            for row in large.to_dict("records")
        ]  # fmt: skip
        told_small = []
        for (attribute, why), rows_of in small.groupby(["attribute", "why_not"], sort=False):
            named = ", ".join(f"{row['group']} ({row['patients']})" for row in rows_of.to_dict("records"))
            told_small.append((ATTRIBUTES[str(attribute)], f"{why}: {named}"))
        drawn = [embedded(picture) for picture in pictures if picture.path.name == groups_file(part)]
        title = _measures(evaluated, name)[measure].title
        found.append(Groups(part, title, tuple(gaps), tuple(rows), tuple(told_small), tuple(drawn)))
    return found


def _sized(row: Mapping[Any, Any]) -> str:
    return f"{count(int(row['cases']), 'case')}, {count(int(row['patients']), 'patient')}"


def _rejected(curated: pd.DataFrame) -> list[tuple[str, int]]:
    """Reason to number of scans that were to be evaluated on; of several reasons the first."""
    lost = curated[curated["status"] != "accepted"]
    reasons = lost["reason"].str.split(";").str[0].replace("", "no reason given")
    return [
        (str(reason).replace("_", " "), int(found)) for reason, found in reasons.value_counts().sort_index().items()
    ]
