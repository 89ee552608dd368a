"""Kind ``regress``: a number that a labelled set's table gives of each scan, by ridge regression of frozen features."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from components.figures.arrays import Array, Bools
from components.settings import StageConfig
from components.tasks import own
from components.tasks.interface import Kind, Measure, Outcome, Question
from components.tasks.scores import DIGITS, Score, per_case
from components.tasks.table import Built, Inputs, check_splits, none_built

FIGURES = {
    "mae": Measure("Mean absolute error, in the label's unit", bounds=(0.0, np.inf), lower_is_better=True),
    "r2": Measure("Share of the variance explained", bounds=(-np.inf, 1.0)),
}
CONSTANT = "no_features"  # of the training cases: the mean, or the curve of all
PREDICTED = "ridge"


class RegressConfig(StageConfig):
    """A block of ``<line>.tasks``: a number.

    Attributes:
        set: a labelled set.
        label: the column of its table that holds the number of each scan.
    """

    kind: Literal["regress"]
    set: Annotated[str, Field(min_length=1)]
    label: Annotated[str, Field(min_length=1)]


def cases(name: str, task: RegressConfig, inputs: Inputs) -> Built:
    """A case per labelled scan; none where those of a side have all the same number."""
    built = own.numbers(name, task.set, task.label, inputs)
    check_splits(built.table)
    built = enough(name, built, inputs.config.minimum_patients)
    numbers = built.table["label"].astype(float).groupby(built.table["split"]).nunique()
    if (numbers > 1).all():
        return built
    return not_asked(name, built, f"one number only in {numbers.idxmin()}: there is nothing to tell apart")


def enough(name: str, built: Built, minimum: int) -> Built:
    """The cases, or none where one side of the split has fewer patients than ``minimum``."""
    if built.table.empty:
        return built
    counts = {side: built.table.loc[built.table["split"] == side, "patient"].nunique() for side in ("train", "test")}
    if min(counts.values()) >= minimum:
        return built
    few = f"{counts['train']} patients in train, {counts['test']} in test; at least {minimum} each are needed"
    return not_asked(name, built, few)


def not_asked(name: str, built: Built, why: str) -> Built:
    """None of the cases, with the reason before what else was said of them."""
    return none_built({name: ". ".join(filter(None, [why, built.remarks.get(name, "")]))})


def judge(question: Question) -> Outcome:
    """Error and explained variance of every method, and of the training cases' mean."""
    from components.figures.regression import mean_absolute_error, r2
    from components.figures.resampling import draws, sample_of

    rows = question.rows.sort_values("case", ignore_index=True)
    test = (rows["split"] == "test").to_numpy()
    truth, patients = np.array([float(label) for label in rows["label"]]), rows["patient"].to_numpy(dtype=np.str_)
    judged = patients[test].tolist()
    weights = draws(judged, question.config.bootstrap, question.config.seed).weights(judged)
    sample, scores, parts = sample_of(judged), [], []
    methods = {method: question.features.of(method, rows) for method in question.features.methods}
    for method, features in {**methods, CONSTANT: np.zeros((len(rows), 0))}.items():
        found = ridge(features[~test], truth[~test], features[test], patients[~test].tolist(), question.config.seed)
        found = np.round(found, DIGITS)  # first: figures follow from the table of cases exactly
        for figure, values in (
            ("mae", mean_absolute_error(found, truth[test], weights)),
            ("r2", r2(found, truth[test], weights)),
        ):
            scores.append(Score(question.name, method, figure, values, len(found), sample))
        errors = np.abs(found - truth[test])
        parts.append(per_case(rows[test], question.name, method, PREDICTED, ["predicted"], found[:, None]))
        parts.append(per_case(rows[test], question.name, method, "mae", ["error"], errors[:, None]))
    return Outcome(scores, pd.concat(parts, ignore_index=True))


def ridge(train: Array, truth: Array, test: Array, patients: list[str], seed: int) -> Array:
    """Predicted numbers (test cases,) of a ridge regression whose penalty is chosen on the training patients.

    Args:
        train: (training cases, dimension), of any dimension; of 0 the mean is predicted.
        truth: (training cases,)
        test: (test cases, dimension)
        patients: (training cases,) keys.
        seed: of the folds.
    """
    from sklearn.linear_model import Ridge

    from components.tasks.penalty import chosen, folds, scaled

    seen, asked = scaled(train, test)
    if not seen.shape[1]:
        return np.full(len(test), truth.mean())

    def loss(fitted: Bools, penalty: float) -> float:
        model = Ridge(alpha=penalty).fit(seen[fitted], truth[fitted])
        return float(np.square(model.predict(seen[~fitted]) - truth[~fitted]).sum())

    of_fold = folds(patients, seed)
    alpha = chosen(loss, of_fold)
    predicted: Array = Ridge(alpha=alpha).fit(seen, truth).predict(asked)
    return predicted


KIND = Kind(RegressConfig, FIGURES, cases, judge, columns=lambda task: {"label": task.label})
