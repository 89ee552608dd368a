"""Kind ``classify``: which class a place or a scan is of, by probes of frozen features; and is its like found?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from components.figures.arrays import Array, Bools, Labels
from components.settings import StageConfig
from components.sources.lidc import ROOT as LIDC_ROOT
from components.sources.phantom.plan import FINDINGS as PHANTOM_FINDINGS
from components.tasks import annotated, own
from components.tasks.config import LINE, EvaluateConfig
from components.tasks.interface import Kind, Measure, Outcome, Question, Scanned
from components.tasks.nodules import RATINGS, nodules
from components.tasks.scores import DIGITS, Score, family_mean, per_case
from components.tasks.table import Built, Inputs, check_splits, usable

if TYPE_CHECKING:
    from components.figures.resampling import Draws, Sample

DIAMETER = "diameter_only"
FINDINGS = "finding"
FIGURES = {
    "linear_auc": Measure("Linear probe, AUC"),
    "linear_balanced_accuracy": Measure("Linear probe, balanced accuracy"),
    "knn_auc": Measure("Nearest neighbours, AUC"),
    "knn_balanced_accuracy": Measure("Nearest neighbours, balanced accuracy"),
    "retrieval_map": Measure("Retrieval, mean average precision"),
    "retrieval_p1": Measure("Retrieval, precision at 1"),
    "retrieval_p5": Measure("Retrieval, precision at 5"),
}
# Of the set `line`: what its scans' annotations are of.
ANNOTATED: dict[str, Callable[[str, Inputs], Built]] = {
    "organ": annotated.organs,
    "lesion": annotated.lesions,
    FINDINGS: annotated.findings,
}
RATINGS_LABEL = "ratings"
BUILT_IN = {LINE: tuple(ANNOTATED), LIDC_ROOT: (RATINGS_LABEL,)}
POINTS = ("organ", "lesion", RATINGS_LABEL)  # they want an encoder that sees crops


class ClassifyConfig(StageConfig):
    """A block of ``<line>.tasks``: which class a labelled place or scan is of.

    Attributes:
        set: a labelled set; ``line``, the line's own evaluation scans; or ``lidc_nodules``.
        label: of a labelled set the column of its table that holds the class of each scan; of ``line`` the annotations
            ``organ``, ``lesion`` or ``finding``; of ``lidc_nodules`` its ``ratings``.
    """

    kind: Literal["classify"]
    set: Annotated[str, Field(min_length=1)]
    label: Annotated[str, Field(min_length=1)]


def cases(name: str, task: ClassifyConfig, inputs: Inputs) -> Built:
    """The cases of a task; classes with too few patients are left out, with the reason."""
    if task.set == LINE:
        built = ANNOTATED[task.label](name, inputs)
    elif task.set == LIDC_ROOT:
        built = nodules(name, inputs)
    else:
        built = own.classify(name, task.set, task.label, inputs)
    check_splits(built.table)
    return usable(built, inputs.config.minimum_patients)


def judge(question: Question) -> Outcome:
    """Every figure of every method on every part of the task, and of findings the mean over them."""
    scores: list[Score] = []
    parts: list[pd.DataFrame] = []
    for task, rows in question.rows.groupby("task"):
        inputs = {method: question.features.of(method, rows) for method in question.features.methods}
        if rows["diameter_mm"].notna().all():
            inputs[DIAMETER] = rows[["diameter_mm"]].to_numpy(dtype=np.float64)
        of_task, of_cases = score_task(str(task), rows, inputs, question.config)
        scores += of_task
        parts += of_cases
    remarks = {}
    if question.task.set == LINE and question.task.label == FINDINGS:
        means, remark = family_mean(scores, question.name)
        scores, remarks = scores + means, {question.name: remark}
    return Outcome(scores, pd.concat(parts, ignore_index=True), remarks=remarks)


def score_task(
    task: str, rows: pd.DataFrame, features: dict[str, Array], config: EvaluateConfig
) -> tuple[list[Score], list[pd.DataFrame]]:
    """Scores and per-case predictions of every method on one table of cases.

    Args:
        task: its name.
        rows: its table.
        features: method to (rows, dimension).
        config: of evaluation.
    """
    from components.figures.resampling import draws, sample_of

    test = (rows["split"] == "test").to_numpy()
    labels, patients = (rows[name].to_numpy(dtype=np.str_) for name in ("label", "patient"))
    sides = [draws(patients[side].tolist(), config.bootstrap, config.seed) for side in (test, ~test)]
    sample = sample_of(patients[test].tolist(), labels[test].tolist())
    found = [
        _score(task, rows, method, vectors, config, (test, labels, patients, sides, sample))
        for method, vectors in features.items()
    ]
    return [score for scores, _ in found for score in scores], [table for _, table in found]


def _score(
    task: str,
    rows: pd.DataFrame,
    method: str,
    features: Array,
    config: EvaluateConfig,
    of_rows: tuple[Bools, Labels, Labels, list[Draws], Sample],
) -> tuple[list[Score], pd.DataFrame]:
    from components.figures.averages import class_mean
    from components.figures.classification import macro_auc
    from components.tasks.probes import linear_probe, neighbour_probe, predicted

    test, labels, patients, sides, sample = of_rows
    classes = sorted(set(labels.tolist()))
    weights = sides[0].weights(patients[test].tolist())
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
        figures |= _retrieval(features, labels, patients, test, classes, sides)
    number = int(test.sum())
    scored = [Score(task, method, figure, replicates, number, sample) for figure, replicates in figures.items()]
    return scored, pd.concat([per_case(rows[test], task, method, probe, classes, s) for probe, s in probes.items()])


def _retrieval(
    features: Array, labels: Labels, patients: Labels, test: Bools, classes: Sequence[str], sides: list[Draws]
) -> dict[str, Array]:
    """Each test case ranks the cases of all other patients; queries and gallery are drawn, patient by patient."""
    from components.figures.resampling import together
    from components.figures.retrieval import over_queries, retrieve
    from components.figures.similarity import cosine_similarity

    queries = np.flatnonzero(test)
    similarity = cosine_similarity(features[test], features, features[~test].mean(axis=0))
    weights = together(*sides).weights(patients.tolist())
    found = retrieve(similarity, queries, labels, patients, weights, at=(1, 5))
    of_figure = {
        "retrieval_map": found.average_precision,
        "retrieval_p1": found.precision[1],
        "retrieval_p5": found.precision[5],
    }
    return {
        name: over_queries(values, labels[queries], classes, weights[:, queries]) for name, values in of_figure.items()
    }


def _parts(name: str, task: ClassifyConfig, scanned: Scanned) -> list[str]:
    if task.set == LIDC_ROOT:
        return [f"{name}/{rating}" for rating in RATINGS] if scanned.nodules else []
    if task.set != LINE:
        return [name]
    if task.label == FINDINGS:
        return [] if scanned.trunk else [name, *(f"{name}/{finding}" for finding in PHANTOM_FINDINGS)]
    return [name] if scanned.trunk else []


KIND = Kind(
    ClassifyConfig,
    FIGURES,
    cases,
    judge,
    points=lambda task: task.set in BUILT_IN and task.label in POINTS,
    columns=lambda task: {"label": task.label},
    built_in=BUILT_IN,
    parts=_parts,
)
