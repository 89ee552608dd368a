"""Kind ``cluster``: do organs lie apart in the embedding, and does clustering without labels find them?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from components.figures.arrays import Array
from components.settings import StageConfig
from components.tasks import annotated
from components.tasks.interface import Kind, Measure, Outcome, Question, of_organs
from components.tasks.scores import DIGITS, ENCODER, RANDOM, Score, per_case
from components.tasks.table import Built, Inputs, none_built, task_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = {
    "nmi": Measure("Clusters and organs, normalised mutual information"),
    "purity": Measure("Clusters, share of their commonest organ"),
    "silhouette": Measure("Organs, silhouette", bounds=(-1.0, 1.0)),
}
LEAST_PATIENTS, LEAST_CLASSES = 2, 2  # of a class; of one patient there is no interval, and one class has no structure


class ClusterConfig(StageConfig):
    """A block of ``<line>.tasks``: the structure of the embedding on the line's annotated organs.

    Attributes:
        starts: of k-means, the best of which counts.
    """

    kind: Literal["cluster"]
    starts: Annotated[int, Field(ge=1, le=1000)]


def cases(name: str, task: ClusterConfig, inputs: Inputs) -> Built:
    """The organ points of test patients: nothing is trained, and training patients would only blur whose chance it is.

    A class of fewer than two patients is left out, with a remark.
    """
    built = annotated.organs(name, inputs)
    rows = built.table[built.table["split"] == "test"]
    if rows.empty:
        return none_built(built.not_evaluated or {name: "no organ point of a test patient"})
    patients = rows.groupby("label")["patient"].nunique()
    few = [f"{label}: {count} patients" for label, count in patients.items() if count < LEAST_PATIENTS]
    classes = patients.index[patients >= LEAST_PATIENTS]
    if len(classes) < LEAST_CLASSES:
        told = f"; {'; '.join(few)}" if few else ""
        return none_built({name: f"{len(classes)} classes of at least {LEAST_PATIENTS} test patients, 2 needed{told}"})
    remarks = {name: f"Classes left out, too few patients: {'; '.join(few)}."} if few else {}
    return Built(task_table([rows[rows["label"].isin(classes)]]), remarks=remarks)


def judge(question: Question) -> Outcome:
    """As many clusters as classes, by every method, against the classes."""
    rows = question.rows.sort_values("case", ignore_index=True)  # k-means depends on the order of cases
    scores: list[Score] = []
    parts: list[pd.DataFrame] = []
    for method in question.features.methods:
        of_method, of_cases = _judged(question, rows, method, directions(question.features.of(method, rows)))
        scores += of_method
        parts += of_cases
    return Outcome(scores, pd.concat(parts, ignore_index=True), _pictures(question, rows))


def _judged(
    question: Question, rows: pd.DataFrame, method: str, vectors: Array
) -> tuple[list[Score], list[pd.DataFrame]]:
    from sklearn.metrics import silhouette_samples

    from components.figures.clustering import k_means, normalised_mutual_information, purity, silhouette
    from components.figures.resampling import draws, sample_of

    labels, patients = rows["label"].tolist(), rows["patient"].tolist()
    names, of_case = np.unique(np.asarray(labels, dtype=np.str_), return_inverse=True)
    classes = of_case.astype(np.int64)
    clusters = k_means(vectors, len(names), question.config.seed, question.task.starts)
    weights = draws(patients, question.config.bootstrap, question.config.seed).weights(patients)
    found = {
        "nmi": normalised_mutual_information(clusters, classes, weights),
        "purity": purity(clusters, classes, weights),
        "silhouette": silhouette(vectors, classes, weights),
    }
    sample, name = sample_of(patients, labels), question.name
    scores = [Score(name, method, figure, replicates, len(rows), sample) for figure, replicates in found.items()]
    widths = np.round(silhouette_samples(vectors, classes), DIGITS)
    return scores, [
        per_case(rows, name, method, "cluster", ["number"], clusters[:, None].astype(np.float64)),
        per_case(rows, name, method, "silhouette", ["own"], widths[:, None]),
    ]


def directions(features: Array) -> Array:
    """Features (cases, dimension) less their mean, of length 1: compared by angle, as in every other task."""
    centred = features - features.mean(axis=0)
    unit: Array = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    return unit


def _pictures(question: Question, rows: pd.DataFrame) -> dict[str, tuple[Figure, str]]:
    from components.tasks.pictures import projected

    seed = question.config.random_seeds[0]
    shown = {"this encoder": ENCODER, f"untrained encoder, seed {seed}": f"{RANDOM}_{seed}"}
    panels = {title: directions(question.features.of(method, rows)) for title, method in shown.items()}
    caption = (
        "Two principal components of the vectors at organs' centres, test patients only. "
        "Figures are of all dimensions: what overlaps here need not overlap there."
    )
    return {"components": (projected(panels, rows["label"].tolist()), caption)}


KIND = Kind(ClusterConfig, FIGURES, cases, judge, points=lambda _: True, parts=of_organs)
