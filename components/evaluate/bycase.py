"""Figures that follow from single cases: of a group of them, and which went worst."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from components.figures.arrays import Array, Bools
from components.figures.averages import mean_defined, mean_of_cases, ratio
from components.figures.classification import macro_auc
from components.tasks.interface import Measure
from components.tasks.scores import ENCODER

LINEAR, LINEAR_AUC = "linear", "linear_auc"


@dataclass(frozen=True)
class ByCase:
    """The encoder's scores of the cases of a task or of a part of it.

    Attributes:
        figure: that they make, one of its kind's.
        classes: the columns of ``scores``: the classes, or what a score is of.
        cases: index of ``scores``: names.
        patients, labels: (cases,)
        scores: (cases, classes); NaN where a case has none. Of classes their probabilities.
    """

    figure: str
    classes: tuple[str, ...]
    cases: tuple[str, ...]
    patients: tuple[str, ...]
    labels: tuple[str, ...]
    scores: Array

    @property
    def of_classes(self) -> bool:
        return self.figure == LINEAR_AUC

    def value(self, inside: Bools, weights: Array) -> Array:
        """The figure of the cases ``inside`` (cases,) under weights (replicates, cases); returns (replicates,)."""
        scores, drawn = self.scores[inside], weights[:, inside]
        if self.of_classes:
            return macro_auc(scores, np.asarray(self.labels)[inside], self.classes, drawn)
        return mean_defined([mean_of_cases(column, drawn) for column in scores.T])

    def quality(self) -> Array:
        """(cases,) How well each went: the probability of its class, or the mean of its scores."""
        if not self.of_classes:
            present = np.isfinite(self.scores)
            total = np.where(present, self.scores, 0.0).sum(axis=1)
            return ratio(total, present.sum(axis=1).astype(np.float64))
        own = [self.classes.index(label) for label in self.labels]
        found: Array = self.scores[np.arange(len(own)), own]
        return found


def by_case(rows: pd.DataFrame, measures: Mapping[str, Measure]) -> ByCase | None:
    """The figure of a task, or of one part of it, that follows from single cases: the AUC of the linear probe, or the
    first of its kind's figures of which the table holds a score per case; None where there is none.

    Args:
        rows: of the task's ``cases.parquet``.
        measures: of its kind.
    """
    own = rows[rows["method"] == ENCODER]
    probes = set(own["probe"])
    classed = LINEAR in probes and LINEAR_AUC in measures
    figure = LINEAR_AUC if classed else next((name for name in measures if name in probes), None)
    if figure is None:
        return None
    own = own[own["probe"] == (LINEAR if classed else figure)]
    scores = own.pivot(index="case", columns="of_class", values="score")
    of_case = own.drop_duplicates("case").set_index("case").loc[scores.index]
    values, classes = scores.to_numpy(dtype=np.float64), [str(name) for name in scores.columns]
    if classed and len(classes) == 1:  # of two, the table holds the second
        (other,) = set(of_case["label"]) - set(classes) or {""}
        values, classes = np.column_stack([1 - values, values]), [other, *classes]
    names = tuple(str(name) for name in scores.index)
    return ByCase(figure, tuple(classes), names, tuple(of_case["patient"]), tuple(of_case["label"]), values)
