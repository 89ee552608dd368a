"""Figures of every method with bootstrap replicates, and what they become: a table, and the encoder beside untrained
ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from components.figures.arrays import Array
from components.figures.averages import mean_defined
from components.figures.resampling import Estimate, Sample, beside_untrained, figure, gate_level
from components.tasks.measure import Measure

ENCODER, RANDOM = "encoder", "random"
PEER = "peer_"  # begins the method of another's encoder; its name in the parameters follows
DIGITS = 6
CASE_COLUMNS = ["task", "method", "probe", "case", "patient", "label", "of_class", "score"]
FIGURE_COLUMNS = ["task", "method", "figure", "value", "low", "high", "n_cases", "n_patients"]


@dataclass(frozen=True)
class Score:
    """One figure of one method on one task.

    Attributes:
        replicates: (bootstrap + 1,); the first is the figure itself.
        cases: how many test cases it rests on.
        sample: of their patients.
    """

    task: str
    method: str
    figure: str
    replicates: Array
    cases: int
    sample: Sample

    @property
    def value(self) -> float:
        return float(self.replicates[0])


def per_case(
    rows: pd.DataFrame, task: str, method: str, probe: str, classes: Sequence[str], scores: Array
) -> pd.DataFrame:
    """One row per test case and class; of two classes only the second, since the other is its complement.

    Args:
        rows: the cases.
        task, method, probe: whose scores they are.
        classes: names of the columns.
        scores: (cases, classes).
    """
    shown = list(enumerate(classes))[1:] if len(classes) == 2 else list(enumerate(classes))
    named = rows[["case", "patient", "label"]].assign(task=task, method=method, probe=probe)
    return pd.concat([named.assign(of_class=name, score=scores[:, index]) for index, name in shown])[CASE_COLUMNS]


def family_mean(scores: Sequence[Score], family: str) -> tuple[list[Score], str]:
    """Mean of each figure over the tasks ``<family>/<one>``, replicate by replicate, for they share their patients; and
    a remark on what it is the mean of. Of their samples it has the one with the fewest degrees of freedom."""
    parts = [score for score in scores if score.task.rpartition("/")[0] == family]
    names = sorted({score.task.removeprefix(f"{family}/") for score in parts})
    means = [_mean_of(of, family, of[0].method) for of in _grouped(parts, lambda s: (s.method, s.figure))]
    return means, f"Mean over {len(names)} {family}: {', '.join(names)}."


def _grouped(scores: Sequence[Score], key: Any) -> list[list[Score]]:
    grouped: dict[Any, list[Score]] = {}
    for score in scores:
        grouped.setdefault(key(score), []).append(score)
    return list(grouped.values())


def _mean_of(scores: Sequence[Score], task: str, method: str) -> Score:
    first = scores[0]
    least = min((score.sample for score in scores), key=lambda sample: sample.freedom)
    return Score(task, method, first.figure, mean_defined([s.replicates for s in scores]), first.cases, least)


def _untrained(scores: Sequence[Score]) -> list[list[Score]]:
    """The untrained encoders' scores, by task and figure."""
    random = [score for score in scores if score.method.startswith(f"{RANDOM}_")]
    return _grouped(random, lambda score: (score.task, score.figure))


def figure_table(scores: Sequence[Score], measures: Mapping[str, Measure]) -> pd.DataFrame:
    """Sorted table with ``FIGURE_COLUMNS``; low and high are 95 % limits over patients.

    Method ``random`` is the mean over the untrained encoders.
    """
    means = [_mean_of(of, of[0].task, RANDOM) for of in _untrained(scores)]
    rows = []
    for score in [*scores, *means]:
        low, high = _estimate(score, measures).interval()
        numbers = (round(score.value, DIGITS), round(low, DIGITS), round(high, DIGITS))
        rows.append((score.task, score.method, score.figure, *numbers, score.cases, score.sample.patients))
    table = pd.DataFrame(rows, columns=FIGURE_COLUMNS)
    return table.sort_values(["task", "method", "figure"], ignore_index=True)


def _estimate(score: Score, measures: Mapping[str, Measure]) -> Estimate:
    low, high = measures[score.figure].bounds
    inside = np.where(np.isfinite(score.replicates), np.clip(score.replicates, low, high), score.replicates)
    return figure(inside, score.sample, (low, high))


def task_metrics(scores: Sequence[Score], measures: Mapping[str, Measure]) -> dict[str, dict[str, Mapping[str, float]]]:
    """The encoder's figures beside the untrained ones': task, figure, then numbers.

    ``value`` with ``low`` and ``high``; ``random``, the mean of the untrained encoders, with their ``spread``;
    ``difference``, encoder less one more untrained encoder, with its 95 % limits, which hold patients' chance and
    seeds' (see :func:`components.figures.resampling.beside_untrained`); ``least_gain``, by how much the encoder is at
    least better at the level at which at most 5 % of untrained encoders would pass (where lower is better, by how much
    lower); ``p_worse``, one-sided, of "it is not worse than an untrained encoder".
    """
    untrained = {(of[0].task, of[0].figure): of for of in _untrained(scores)}
    metrics: dict[str, dict[str, Mapping[str, float]]] = {}
    for score in scores:
        if score.method == ENCODER:
            numbers = _numbers(score, untrained[(score.task, score.figure)], measures)
            metrics.setdefault(score.task, {})[score.figure] = {
                name: round(number, DIGITS) for name, number in numbers.items()
            }
    return metrics


def _numbers(score: Score, untrained: Sequence[Score], measures: Mapping[str, Measure]) -> dict[str, float]:
    sign = -1.0 if measures[score.figure].lower_is_better else 1.0
    theirs = sign * np.stack([other.replicates for other in untrained])
    beside = beside_untrained(sign * score.replicates, theirs, score.sample)
    low, high = _estimate(score, measures).interval()
    limits = sorted(sign * limit for limit in beside.to_another.interval())
    return {
        "value": score.value,
        "low": low,
        "high": high,
        "random": sign * beside.untrained,
        "spread": beside.spread,
        "difference": sign * beside.to_another.value,
        "difference_low": limits[0],
        "difference_high": limits[1],
        "least_gain": beside.to_another.interval(1 - 2 * gate_level(len(untrained)))[0],
        "p_worse": beside.to_another.p_below(),
    }
