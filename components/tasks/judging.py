"""Every figure of one method on one table of cases, by probes of its features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from components.figures.arrays import Array, Bools, Integers, Labels
from components.figures.averages import class_mean
from components.figures.calibration import expected_calibration_error, judged, reliability
from components.figures.classification import brier_score, macro_auc, macro_average_precision, rates_at_threshold
from components.figures.resampling import Draws, Sample, draws, sample_of, together
from components.figures.retrieval import over_queries, retrieve
from components.figures.similarity import cosine_similarity
from components.tasks.config import EvaluateConfig
from components.tasks.crossfit import Fitted, fit, hashed
from components.tasks.probes import neighbour_probe, predicted
from components.tasks.scores import DIGITS, Score, per_case

QUERIES = 400  # of a retrieval, at most
RETRIEVAL_REPLICATES = 500  # at most: they give a standard error to 3 %, and each ranks the gallery anew


@dataclass(frozen=True)
class Part:
    """One table of cases, as the probes take it.

    Attributes:
        name: ``organs``, or ``findings/ich``.
        rows: its table, by case, so that nothing depends on the order in which rows come.
        test, labels, patients: (cases,) of the rows.
        classes: sorted.
        sides: draws of the patients of test and of training.
        sample: of the test cases.
        specificity: as in the block; None for more than two classes.
    """

    name: str
    rows: pd.DataFrame
    test: Bools
    labels: Labels
    patients: Labels
    classes: list[str]
    sides: list[Draws]
    sample: Sample
    specificity: float | None

    @classmethod
    def of(cls, name: str, rows: pd.DataFrame, config: EvaluateConfig, specificity: float | None = None) -> Part:
        """Of a part's rows in any order."""
        rows = rows.sort_values("case", ignore_index=True)
        test = (rows["split"] == "test").to_numpy()
        labels, patients = (rows[column].to_numpy(dtype=np.str_) for column in ("label", "patient"))
        classes = sorted(set(labels.tolist()))
        sides = [draws(patients[side].tolist(), config.bootstrap, config.seed) for side in (test, ~test)]
        sample = sample_of(patients[test].tolist(), labels[test].tolist())
        asked = specificity if len(classes) == 2 else None
        return cls(name, rows, test, labels, patients, classes, sides, sample, asked)

    @property
    def weights(self) -> Array:
        """(replicates + 1, test cases)."""
        return self.sides[0].weights(self.patients[self.test].tolist())


@dataclass(frozen=True)
class Judged:
    """One method on one part.

    Attributes:
        scores: its figures.
        cases: what they follow from.
        fitted: its linear probe.
        probabilities: (test cases, classes), calibrated.
    """

    scores: list[Score]
    cases: pd.DataFrame
    fitted: Fitted
    probabilities: Array


def score_task(
    task: str,
    rows: pd.DataFrame,
    features: Mapping[str, Array],
    config: EvaluateConfig,
    specificity: float | None = None,
) -> tuple[list[Score], list[pd.DataFrame]]:
    """Scores and per-case predictions of every method on one table of cases.

    Args:
        task: its name.
        rows: its table.
        features: method to (rows, dimension).
        config: of evaluation.
        specificity: of the operating point; None for none.
    """
    part = Part.of(task, rows, config, specificity)
    order = rows.reset_index(drop=True).sort_values("case").index.to_numpy()
    judged = [judge_method(part, method, vectors[order], config) for method, vectors in features.items()]
    return [score for of in judged for score in of.scores], [of.cases for of in judged]


def judge_method(
    part: Part, method: str, features: Array, config: EvaluateConfig, blocks: Sequence[int] = ()
) -> Judged:
    """Figures of one method on one part.

    Args:
        part: the cases.
        method: its name.
        features: (cases, dimension), in the order of the part's rows.
        config: of evaluation.
        blocks: as :func:`components.tasks.probes.fit_linear`; of features that are put together only the linear probe
            is judged, as of a single number: the rest compares directions.
    """
    test, labels, classes = part.test, part.labels, part.classes
    train, seen = features[~test], features[test]
    fitted = fit(
        train, labels[~test], part.patients[~test], classes, config.linear_c, config.seed, part.specificity, blocks
    )
    # Rounded first: figures follow from the table of cases exactly.
    probes = {"linear": np.round(fitted.linear.probabilities(seen), DIGITS), "calibrated": fitted.calibrated(seen)}
    figures = _of_probe("linear", probes["linear"], part) | _of_probabilities(probes, part, fitted.threshold)
    if features.shape[1] > 1 and not blocks:
        nearest = neighbour_probe(train, labels[~test], seen, classes, config.neighbours)
        probes["knn"] = np.round(nearest, DIGITS)
        figures |= _of_probe("knn", probes["knn"], part) | _retrieval(features, part)
    number = int(test.sum())
    scores = [
        Score(part.name, method, figure, replicates, number, part.sample) for figure, replicates in figures.items()
    ]
    rows = part.rows[test]
    tables = [per_case(rows, part.name, method, probe, classes, of) for probe, of in probes.items()]
    return Judged(scores, pd.concat(tables), fitted, probes["calibrated"])


def judge_probabilities(part: Part, method: str, probe: str, probabilities: Array) -> tuple[list[Score], pd.DataFrame]:
    """AUC and balanced accuracy of what was trained elsewhere, and the table of cases that they follow from.

    Args:
        part: the cases.
        method: its name.
        probe: begins the figures' names.
        probabilities: (test cases, classes).
    """
    rounded, number = np.round(probabilities, DIGITS), int(part.test.sum())
    figures = _of_probe(probe, rounded, part)
    scores = [Score(part.name, method, name, replicates, number, part.sample) for name, replicates in figures.items()]
    return scores, per_case(part.rows[part.test], part.name, method, probe, part.classes, rounded)


def _of_probe(probe: str, scores: Array, part: Part) -> dict[str, Array]:
    labels, weights = part.labels[part.test], part.weights
    right = (predicted(scores, part.classes) == labels).astype(np.float64)
    return {
        f"{probe}_auc": macro_auc(scores, labels, part.classes, weights),
        f"{probe}_balanced_accuracy": class_mean(right, labels, part.classes, weights),
    }


def _of_probabilities(probes: dict[str, Array], part: Part, threshold: float | None) -> dict[str, Array]:
    """How good the probabilities of the linear probe are, and the decisions at its threshold."""
    labels, weights, classes = part.labels[part.test], part.weights, part.classes
    probabilities = probes["calibrated"]
    told = reliability(*judged(probabilities, labels, classes), weights)
    figures = {
        "average_precision": macro_average_precision(probes["linear"], labels, classes, weights),
        "brier": brier_score(probabilities, labels, classes, weights),
        "ece": expected_calibration_error(told),
    }
    if threshold is not None:
        rates = rates_at_threshold(probabilities[:, 1], labels == classes[1], weights, threshold)
        figures["sensitivity"], figures["specificity"] = rates
    return figures


def asking(part: Part) -> Integers:
    """The test cases that ask, in their order: all, or of each class an equal share of :data:`QUERIES`, by a hash of
    the patient, so that the work grows with the number of scans and not with its square."""
    test = np.flatnonzero(part.test)
    if len(test) <= QUERIES:
        return test
    most = QUERIES // len(part.classes)
    order = sorted(test.tolist(), key=lambda case: (hashed(0, str(part.patients[case])), case))
    chosen = [[case for case in order if part.labels[case] == name][:most] for name in part.classes]
    return np.array(sorted(case for of in chosen for case in of), dtype=np.int64)


def _retrieval(features: Array, part: Part) -> dict[str, Array]:
    """Test cases rank the cases of all other patients; queries and gallery are drawn, patient by patient."""
    labels, patients = part.labels, part.patients
    queries = asking(part)
    similarity = cosine_similarity(features[queries], features, features[~part.test].mean(axis=0))
    weights = together(*part.sides).weights(patients.tolist())[: RETRIEVAL_REPLICATES + 1]
    found = retrieve(similarity, queries, labels, patients, weights, at=(1, 5))
    of_figure = {
        "retrieval_map": found.average_precision,
        "retrieval_p1": found.precision[1],
        "retrieval_p5": found.precision[5],
    }
    return {
        name: over_queries(values, labels[queries], part.classes, weights[:, queries])
        for name, values in of_figure.items()
    }
