"""What else stands beside an encoder in the report: baselines that it may add to, peers, published figures, and its own
figures on external sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.errors import UserError
from components.evaluate.published import PublishedFigure
from components.evaluate.words import count, method_name, number, verdict, verdict_of_fall, with_interval
from components.tasks.interface import Measure
from components.tasks.scores import PEER


@dataclass(frozen=True)
class Added:
    """What the encoder adds to a baseline, of one part of a task; numbers as text."""

    part: str
    baseline: str
    alone: str
    both: str
    difference: str
    untrained: str
    verdict: str


def what_it_adds(
    metrics: Mapping[str, Any], measures: Mapping[str, Measure], parts: Sequence[str]
) -> tuple[str, tuple[Added, ...]]:
    """By which figure, the first that is measured of both together, and a row for each part and baseline.

    Args:
        metrics: content of ``metrics.json``.
        measures: of the task's kind.
        parts: of the task.
    """
    rows, title = [], ""
    for part in parts:
        for baseline, figures in metrics["adds_to"].get(part, {}).items():
            figure, measure = next((figure, of) for figure, of in measures.items() if figure in figures)
            numbers, title = figures[figure], measure.title
            limits = (numbers["low"], numbers["high"])
            untrained = ""
            if "untrained_low" in numbers:
                of_untrained = (numbers["untrained_difference"], numbers["untrained_low"], numbers["untrained_high"])
                untrained = with_interval(*of_untrained, signed=True)
            judged = {"difference_low": numbers["low"], "difference_high": numbers["high"]}
            rows.append(
                Added(
                    part, method_name(baseline), number(numbers["alone"]), number(numbers["value"]),
                    with_interval(numbers["difference"], *limits, signed=True), untrained, verdict(judged, measure),
                )
            )  # fmt: skip
    return title, tuple(rows)


def other_models(
    metrics: Mapping[str, Any],
    measures: Mapping[str, Measure],
    parts: Sequence[str],
    published: Sequence[PublishedFigure],
) -> tuple[tuple[str, ...], ...]:
    """Peers on the same cases, then what is published of the task: part, figure, model, their value, ours, the
    difference of a peer, source."""
    rows = []
    for part in parts:
        for peer, figures in metrics["peers"].get(part, {}).items():
            figure = next(figure for figure in measures if figure in figures)
            of = figures[figure]
            told = with_interval(of["difference"], of["low"], of["high"], signed=True)
            ours = number(metrics["tasks"][part][figure]["value"])
            title = measures[figure].title
            rows.append((part, title, method_name(PEER + peer), number(of["value"]), ours, told, "judged here"))
    for theirs in published:
        if theirs.figure not in measures:
            told = f"figure {theirs.figure!r} is not allowed: of {theirs.task}, {', '.join(measures)}"
            raise UserError(f"published.figures: {told}")
        numbers = metrics["tasks"].get(theirs.task, {}).get(theirs.figure)
        ours = with_interval(numbers["value"], numbers["low"], numbers["high"]) if numbers else "not evaluated"
        title = measures[theirs.figure].title
        rows.append((theirs.task, title, theirs.model, number(theirs.value), ours, "", theirs.source))
    return tuple(rows)


@dataclass(frozen=True)
class Fall:
    """One figure on a task's own test patients and on those of an external set; numbers as text."""

    figure: str
    internal: str
    external: str
    fall: str
    verdict: str


@dataclass(frozen=True)
class ExternalSet:
    """A task on one of its external sets.

    Attributes:
        name: of the set.
        patients: of both sides.
        said: its first figure in a sentence, or why there is no fall.
        rows: a row for each figure.
    """

    name: str
    patients: str
    said: str
    rows: tuple[Fall, ...]


def external_sets(
    metrics: Mapping[str, Any], measures: Mapping[str, Measure], name: str, sets: Sequence[str]
) -> tuple[ExternalSet, ...]:
    """A task's external sets that were evaluated, in order; of the others the report says why not.

    Args:
        metrics: content of ``metrics.json``; ``falls`` are as :func:`components.evaluate.falls.falls_of` gives them.
        measures: of the task's kind.
        name: of the task.
        sets: that its block names.
    """
    found = []
    for site in sorted(set(sets)):
        figures = metrics["falls"].get(name, {}).get(site, {})
        if figures:
            found.append(_external_set(metrics, measures, name, site, figures))
        elif f"{name}/{site}" in metrics["tasks"]:
            told = f"{site}: no fall, for the internal figures are not of the same parts of the task."
            found.append(ExternalSet(site, "", told, ()))
    return tuple(found)


def _external_set(
    metrics: Mapping[str, Any], measures: Mapping[str, Measure], name: str, site: str, figures: Mapping[str, Any]
) -> ExternalSet:
    rows = []
    for figure in (figure for figure in measures if figure in figures):
        here, there = (metrics["tasks"][part][figure] for part in (name, f"{name}/{site}"))
        numbers, measure = figures[figure], measures[figure]
        rows.append(
            Fall(
                measure.title + (", lower is better" if measure.lower_is_better else ""),
                with_interval(here["value"], here["low"], here["high"]),
                with_interval(there["value"], there["low"], there["high"]),
                with_interval(numbers["fall"], numbers["fall_low"], numbers["fall_high"], signed=True),
                verdict_of_fall(numbers),
            )
        )
    sizes = next(iter(figures.values()))
    internal, external = (count(int(sizes[f"{side}_patients"]), "patient") for side in ("internal", "external"))
    first = rows[0]
    said = (
        f"{site}: {first.figure} {first.external} ({external}), internal {first.internal} ({internal}); "
        f"fall {first.fall}: {first.verdict}."
    )
    return ExternalSet(site, f"{internal} internal, {external} external", said, tuple(rows))
