"""Every figure of every method on every task, with bootstrap replicates, and the comparison with random encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from components.evaluate.bootstrap import interval, patient_weights
from components.evaluate.config import EvaluateConfig
from components.evaluate.features import Features
from components.evaluate.probes import linear_probe, neighbour_probe, predicted
from components.evaluate.retrieval import retrieve
from components.evaluate.stability import compare
from components.evaluate.tasks import STABILITY
from components.figures.arrays import Array
from components.figures.averages import class_mean, mean_defined, weighted_mean
from components.figures.classification import macro_auc

ENCODER, RANDOM, DIAMETER = "encoder", "random", "diameter_only"
DIGITS = 6
CASE_COLUMNS = ["task", "method", "probe", "case", "patient", "label", "of_class", "score"]
FIGURES = {
    "linear_auc": "Linear probe, AUC",
    "linear_balanced_accuracy": "Linear probe, balanced accuracy",
    "knn_auc": "Nearest neighbours, AUC",
    "knn_balanced_accuracy": "Nearest neighbours, balanced accuracy",
    "retrieval_map": "Retrieval, mean average precision",
    "retrieval_p1": "Retrieval, precision at 1",
    "retrieval_p5": "Retrieval, precision at 5",
    "cosine": "Test-retest, cosine similarity",
    "identification": "Test-retest, identification rate",
}


@dataclass(frozen=True)
class Score:
    """One figure of one method on one task.

    Attributes:
        replicates: (bootstrap + 1,); the first is the figure itself.
        cases: how many test cases it rests on.
        patients: of how many patients.
    """

    task: str
    method: str
    figure: str
    replicates: Array
    cases: int
    patients: int

    @property
    def value(self) -> float:
        return float(self.replicates[0])


@dataclass(frozen=True)
class Scored:
    """All scores, and the per-case predictions that they can be computed from again."""

    scores: list[Score]
    cases: pd.DataFrame


def score_all(table: pd.DataFrame, features: Features, config: EvaluateConfig) -> Scored:
    """Score every task of the (usable) task table with every method, and the summary of tasks of one family."""
    scores: list[Score] = []
    cases: list[pd.DataFrame] = []
    for task, rows in table.groupby("task"):
        inputs = {method: features.of(method, rows) for method in sorted(features.by_method)}
        if rows["diameter_mm"].notna().all():
            inputs[DIAMETER] = rows[["diameter_mm"]].to_numpy(dtype=np.float64)
        for method, vectors in inputs.items():
            found, per_case = _score(str(task), rows, method, vectors, config)
            scores += found
            cases.append(per_case)
    scores += _family_means(scores, "findings")
    scores += _random_means(scores)
    empty = pd.DataFrame({name: pd.Series(dtype="str") for name in CASE_COLUMNS}).astype({"score": "float64"})
    return Scored(scores, pd.concat(cases, ignore_index=True) if cases else empty)


def _score(
    task: str, rows: pd.DataFrame, method: str, features: Array, config: EvaluateConfig
) -> tuple[list[Score], pd.DataFrame]:
    if task.startswith(STABILITY):
        return _stability(task, rows, method, features, config)
    test = (rows["split"] == "test").to_numpy()
    labels = rows["label"].to_numpy(dtype=np.str_)
    classes = sorted(set(labels.tolist()))
    patients = rows["patient"].to_numpy(dtype=np.str_)
    weights = patient_weights(patients[test].tolist(), config.bootstrap, config.seed)
    linear = linear_probe(features[~test], labels[~test], features[test], classes, config.linear_c)
    probes = {"linear": np.round(linear, DIGITS)}  # rounded first: figures follow from the table of cases exactly
    if method != DIAMETER:  # directions are compared, and one number has none
        nearest = neighbour_probe(features[~test], labels[~test], features[test], classes, config.neighbours)
        probes["knn"] = np.round(nearest, DIGITS)
    figures: dict[str, Array] = {}
    for probe, scores in probes.items():
        right = (predicted(scores, classes) == labels[test]).astype(np.float64)
        figures[f"{probe}_auc"] = macro_auc(scores, labels[test], classes, weights)
        figures[f"{probe}_balanced_accuracy"] = class_mean(right, labels[test], classes, weights)
    if method != DIAMETER:
        found = retrieve(features, labels, patients, test)
        figures["retrieval_map"] = class_mean(found.average_precision, labels[test], classes, weights)
        figures["retrieval_p1"] = class_mean(found.precision_at_1, labels[test], classes, weights)
        figures["retrieval_p5"] = class_mean(found.precision_at_5, labels[test], classes, weights)
    sizes = int(test.sum()), len(set(patients[test].tolist()))
    scored = [Score(task, method, figure, replicates, *sizes) for figure, replicates in figures.items()]
    return scored, pd.concat([_per_case(rows[test], task, method, probe, classes, s) for probe, s in probes.items()])


def _stability(
    task: str, rows: pd.DataFrame, method: str, features: Array, config: EvaluateConfig
) -> tuple[list[Score], pd.DataFrame]:
    pairs = compare(rows, features)
    weights = patient_weights(pairs.patients, config.bootstrap, config.seed)
    sizes = len(pairs.patients), len(set(pairs.patients))
    again = rows[rows["split"] == "retest"].sort_values("label", kind="stable")
    per_case = _per_case(again, task, method, "cosine", ["same"], np.round(pairs.cosine[:, None], DIGITS))
    return [
        Score(task, method, "cosine", weighted_mean(pairs.cosine, weights), *sizes),
        Score(task, method, "identification", weighted_mean(pairs.identified, weights), *sizes),
    ], per_case


def _per_case(
    rows: pd.DataFrame, task: str, method: str, probe: str, classes: Sequence[str], scores: Array
) -> pd.DataFrame:
    """One row per test case and class; of two classes only the second, since the other is its complement."""
    shown = list(enumerate(classes))[1:] if len(classes) == 2 else list(enumerate(classes))
    named = rows[["case", "patient", "label"]].assign(task=task, method=method, probe=probe)
    return pd.concat([named.assign(of_class=name, score=scores[:, index]) for index, name in shown])[CASE_COLUMNS]


def _family_means(scores: Sequence[Score], family: str) -> list[Score]:
    """Mean of each figure over the tasks ``family/...``, replicate by replicate: they share their patients."""
    grouped: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        if score.task.startswith(f"{family}/"):
            grouped.setdefault((score.method, score.figure), []).append(score)
    return [
        Score(family, method, figure, mean_defined([s.replicates for s in of]), of[0].cases, of[0].patients)
        for (method, figure), of in grouped.items()
    ]


def _random_means(scores: Sequence[Score]) -> list[Score]:
    """Mean over the random seeds, as method ``random``."""
    grouped: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        if score.method.startswith(f"{RANDOM}_"):
            grouped.setdefault((score.task, score.figure), []).append(score)
    return [
        Score(task, RANDOM, figure, mean_defined([s.replicates for s in of]), of[0].cases, of[0].patients)
        for (task, figure), of in grouped.items()
    ]


def figure_table(scores: Sequence[Score]) -> pd.DataFrame:
    """Sorted table: task, method, figure, value, low, high (95 %), n_cases, n_patients."""
    rows = []
    for score in scores:
        low, high = interval(score.replicates)
        numbers = (round(score.value, DIGITS), round(low, DIGITS), round(high, DIGITS))
        rows.append((score.task, score.method, score.figure, *numbers, score.cases, score.patients))
    columns = ["task", "method", "figure", "value", "low", "high", "n_cases", "n_patients"]
    return pd.DataFrame(rows, columns=columns).sort_values(["task", "method", "figure"], ignore_index=True)


def task_metrics(scores: Sequence[Score]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The encoder's figures beside the mean of the random encoders': task, figure, then seven numbers.

    ``difference`` is encoder less random, paired: both are computed on the same drawn patients in every replicate.
    """
    by_key = {(s.task, s.method, s.figure): s for s in scores}
    metrics: dict[str, dict[str, Mapping[str, Any]]] = {}
    for (task, method, figure), score in by_key.items():
        if method != ENCODER:
            continue
        other = by_key[(task, RANDOM, figure)]
        difference = score.replicates - other.replicates
        numbers = [score.value, *interval(score.replicates), other.value, float(difference[0]), *interval(difference)]
        names = ["value", "low", "high", "random", "difference", "difference_low", "difference_high"]
        metrics.setdefault(task, {})[figure] = dict(zip(names, (round(n, DIGITS) for n in numbers), strict=True))
    return metrics
