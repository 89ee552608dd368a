"""Kind ``survive``: a time to an event, of which some patients were last seen without it, by Cox's model of frozen
features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from components.figures.arrays import Array, Bools
from components.settings import StageConfig
from components.tasks import own
from components.tasks.cox import Cox, fit, log_partial_likelihood
from components.tasks.interface import Kind, Measure, Outcome, Question
from components.tasks.regress import CONSTANT, enough, not_asked
from components.tasks.scores import DIGITS, Score, per_case
from components.tasks.table import Built, Inputs, check_splits

FIGURES = {
    "c_index": Measure("Order in time, C-index"),
    "integrated_brier": Measure("Integrated Brier score", bounds=(0.0, np.inf), lower_is_better=True),
}
LEAST_EVENTS = 5  # in train and in test: with fewer, nothing is known of the order
TIMES, SPAN = 20, (10, 80)  # of the Brier score: evenly between these percentiles of the training events' times


class SurviveConfig(StageConfig):
    """A block of ``<line>.tasks``: a time to an event.

    Attributes:
        set: a labelled set.
        time: the column of its table that holds the time, of the event or when the patient was last seen.
        event: the column that says whether the event was then: 1 or 0, true or false, yes or no.
    """

    kind: Literal["survive"]
    set: Annotated[str, Field(min_length=1)]
    time: Annotated[str, Field(min_length=1)]
    event: Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class Followed:
    """Cases of one side of the split.

    Attributes:
        time: (cases,) of the event, or of the last time seen without it.
        event: (cases,), False where censored.
        patients: (cases,) keys.
    """

    time: Array
    event: Bools
    patients: list[str]


def cases(name: str, task: SurviveConfig, inputs: Inputs) -> Built:
    """A case per labelled scan; none with too few events on a side, or without an order in time."""
    built = own.times(name, task.set, task.time, task.event, inputs)
    check_splits(built.table)
    built = enough(name, built, inputs.config.minimum_patients)
    if built.table.empty:
        return built
    sides = {side: _side(built.table[built.table["split"] == side]) for side in ("train", "test")}
    events = {side: int(of.event.sum()) for side, of in sides.items()}
    if min(events.values()) < LEAST_EVENTS:
        few = f"{events['train']} events in train, {events['test']} in test; at least {LEAST_EVENTS} each are needed"
        return not_asked(name, built, few)
    for side, of in sides.items():
        first = of.time[of.event].min()
        if not ((of.time > first) | ((of.time == first) & ~of.event)).any():
            return not_asked(name, built, f"nobody in {side} is known to outlive the first event: there is no order")
    return built


def judge(question: Question) -> Outcome:
    """C-index and integrated Brier score of every method, and of the curve of all training cases."""
    from components.figures.resampling import draws, sample_of
    from components.figures.survival import brier_by_case, concordance, integrated_brier

    rows = question.rows.sort_values("case", ignore_index=True)
    test = (rows["split"] == "test").to_numpy()
    train, judged = _side(rows[~test]), _side(rows[test])
    weights = draws(judged.patients, question.config.bootstrap, question.config.seed).weights(judged.patients)
    sample, at, scores, parts = sample_of(judged.patients), brier_times(train, judged), [], []
    methods = {method: question.features.of(method, rows) for method in question.features.methods}
    for method, features in {**methods, CONSTANT: np.zeros((len(rows), 0))}.items():
        model, asked = cox(features[~test], features[test], train, question.config.seed)
        risk = np.round(model.risk(asked), DIGITS)  # first: figures follow from the table of cases exactly
        found = {"c_index": concordance(risk, judged.time, judged.event, weights)}
        if len(at):
            survival = np.round(model.survival(asked, at), DIGITS)
            of_train = (train.time, train.event)
            errors = brier_by_case(survival, at, judged.time, judged.event, *of_train)
            found["integrated_brier"] = integrated_brier(survival, at, judged.time, judged.event, weights, *of_train)
            names = [f"{moment:.6g}" for moment in at]
            parts.append(per_case(rows[test], question.name, method, "survival", names, survival))
            parts.append(per_case(rows[test], question.name, method, "integrated_brier", ["error"], errors[:, None]))
        scores += [Score(question.name, method, figure, of, len(risk), sample) for figure, of in found.items()]
        parts.append(per_case(rows[test], question.name, method, "risk", ["log_hazard"], risk[:, None]))
    told = {} if len(at) else {question.name: "No Brier score: the test cases end before the training cases' events."}
    return Outcome(scores, pd.concat(parts, ignore_index=True), remarks=told)


def _side(rows: pd.DataFrame) -> Followed:
    time, event = own.time_of(rows["label"])
    return Followed(time, event, rows["patient"].tolist())


def brier_times(train: Followed, judged: Followed) -> Array:
    """Times (times,) at which survival is judged: the same of every method, and such that the cases judged reach
    beyond the last; none where that leaves fewer than two."""
    low, high = np.percentile(train.time[train.event], SPAN)
    at: Array = np.unique(np.linspace(low, high, TIMES))
    at = at[(at >= judged.time.min()) & (at < judged.time.max()) & (at <= train.time.max())]
    return at if len(at) > 1 else at[:0]


def cox(train: Array, test: Array, of_train: Followed, seed: int) -> tuple[Cox, Array]:
    """Cox's model with a penalty chosen on the training patients by cross-validated partial likelihood (Verweij and van
    Houwelingen, Stat. Med. 1993), and the test cases' features as it takes them.

    Args:
        train: (training cases, dimension), of any dimension; of 0 all cases have the same risk.
        test: (test cases, dimension)
        of_train: what became of the training cases.
        seed: of the folds.
    """
    from components.tasks.penalty import chosen, folds, scaled

    seen, asked = scaled(train, test)
    time, event = of_train.time, of_train.event
    if not seen.shape[1]:
        return fit(np.zeros((len(train), 1)), time, event, 1.0), np.zeros((len(test), 1))

    def loss(fitted: Bools, penalty: float) -> float:
        if not event[fitted].any():
            return 0.0
        risk = fit(seen[fitted], time[fitted], event[fitted], penalty).risk(seen)
        inside = log_partial_likelihood(risk[fitted], time[fitted], event[fitted])
        return inside - log_partial_likelihood(risk, time, event)

    return fit(seen, time, event, chosen(loss, folds(of_train.patients, seed))), asked


KIND = Kind(SurviveConfig, FIGURES, cases, judge, columns=lambda task: {"time": task.time, "event": task.event})
