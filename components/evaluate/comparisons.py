"""What else stands beside an encoder in the report: baselines that it may add to, peers, and published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.errors import UserError
from components.evaluate.peers import PEER
from components.evaluate.published import PublishedFigure
from components.evaluate.words import method_name, number, verdict, with_interval
from components.tasks.interface import Measure


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
