"""Kind ``retrieve``: does a place or a scan find its like in other patients?

Besides this project's own way, two protocols of CT-FM (arXiv 2501.09001), as its notebooks compute them. In both,
queries are test cases, the gallery is the training cases, and figures are means over queries:

``organmnist3d``: nearest by Euclidean distance. Of k = 3, 5, 10: AP@k, the mean of the precisions at the right ones
among the first k (0 where there is none); HR@k, whether there is one; F1@k, of each query 2 AP HR / (AP + HR).

``3d_mir`` (the benchmark of arXiv 2311.13752): a volume is a set of patches, and its vector is their *elementwise
least*: of each dimension the smallest value of any patch. Nearest by cosine distance of these vectors. Precision at 3,
5 and 10, and AP among the first 10.

Of many test cases an equal share of each class asks (:func:`components.tasks.judging.asking`).
Vectors are pooled as the line's ``evaluate.pooling`` says, where CT-FM took the last level's mean. Patches are those of
the last level; of a whole scan, where the encoder sees crops, the crops that cover it (CT-FM's overlap).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field, model_validator

from components.figures.arrays import Array, Integers
from components.settings import StageConfig
from components.tasks import classify
from components.tasks.classify import ClassifyConfig
from components.tasks.interface import Kind, Measure, Outcome, Question, Scanned
from components.tasks.scores import DIGITS, ENCODER, PEER, RANDOM, Score, family_mean, per_case
from components.tasks.table import Built, Inputs

if TYPE_CHECKING:
    from components.ct.store import StoredVolume, Volume
    from components.figures.retrieval import Found
    from components.models.embed import Embedder
    from components.tasks.judging import Part

AT = (1, 3, 5, 10, 20)
FIGURES = {"map": Measure("Mean average precision")} | {
    f"{figure}_{k}": Measure(f"{title} {k}")
    for figure, title in {
        "precision": "Precision at",
        "hit": "Hit rate at",
        "ap": "Average precision among the first",
        "f1": "F1 of hit rate and average precision at",
    }.items()
    for k in AT
}
Distance = Literal["cosine", "euclidean", "least_patch"]
OF_PROTOCOL: dict[str, Distance] = {"organmnist3d": "euclidean", "3d_mir": "least_patch"}
ASKED = {None: ("precision", "hit"), "organmnist3d": ("ap", "hit", "f1"), "3d_mir": ("precision", "ap")}


class RetrieveConfig(StageConfig):
    """A block of ``<line>.tasks``: test cases look for others of their class, in other patients.

    Attributes:
        set, label: as of kind classify: what a case is, and its class.
        protocol: null, ``organmnist3d`` or ``3d_mir``. With null, whatever other patients have may be found, in
            training and in test, and figures are means over classes.
        distance: with no protocol: ``cosine``, after the training cases' mean was taken off; ``euclidean``; or
            ``least_patch``, as ``3d_mir`` has it. Null with a protocol, which has its own.
        at: the k.
        untrained: encoders whose patches stand beside with ``least_patch``, the first of ``random_seeds``; of vectors
            there are those of all seeds.
    """

    kind: Literal["retrieve"]
    set: Annotated[str, Field(min_length=1)]
    label: Annotated[str, Field(min_length=1)]
    protocol: Literal["organmnist3d", "3d_mir"] | None
    distance: Distance | None
    at: Annotated[tuple[Literal[1, 3, 5, 10, 20], ...], Field(min_length=1)]
    untrained: Annotated[int, Field(ge=2, le=200)]

    @model_validator(mode="after")
    def _one_distance(self) -> RetrieveConfig:
        if (self.protocol is None) == (self.distance is None):
            told = f"has its own, {OF_PROTOCOL[self.protocol]}: null" if self.protocol else "needs one"
            named = f"protocol {self.protocol}" if self.protocol else "no protocol"
            raise ValueError(f"distance {self.distance or 'null'} is not allowed with {named}, which {told}")
        if list(self.at) != sorted(set(self.at)):
            raise ValueError(f"at {list(self.at)} is not allowed: each k once, the least first")
        return self

    @property
    def by(self) -> Distance:
        """The distance that is used."""
        return self.distance or OF_PROTOCOL[str(self.protocol)]

    @property
    def cases(self) -> ClassifyConfig:
        """The task that has the same cases."""
        return ClassifyConfig(
            kind="classify", set=self.set, label=self.label, serve=False, specificity=None, few_shot=None
        )


def cases(name: str, task: RetrieveConfig, inputs: Inputs) -> Built:
    """Those of kind classify; classes with too few patients are left out, with the reason."""
    return classify.cases(name, task.cases, inputs)


def judge(question: Question) -> Outcome:
    """Every figure of every method on every part of the task, and of findings the mean over them."""
    from components.tasks.judging import Part, asking
    from components.tasks.retrieve_pictures import found_by

    task, config = question.task, question.config
    rows = question.rows.sort_values("case", ignore_index=True)
    least = least_patches(question, rows) if task.by == "least_patch" else {}
    asked = [method for method in question.features.methods if not (least and _of_encoder(method))]
    scores: list[Score] = []
    tables: list[pd.DataFrame] = []
    pictures: dict[str, Any] = {}
    for name, own in rows.groupby("task"):
        part = Part.of(str(name), own, config)
        queries = asking(part)
        for method in [*sorted(least), *(method for method in asked if method not in least)]:
            vectors = least[method][own.index] if method in least else question.features.of(method, part.rows)
            alike = similarity(task, vectors, part, queries)
            of, table = _judged(task, part, method, alike, queries)
            scores += of
            tables.append(table)
            if method == ENCODER and not pictures:  # of several parts the first
                pictures |= found_by(question, part, alike, queries, _gallery(task, part))
    remarks = {}
    if rows["task"].nunique() > 1:
        means, remarks[question.name] = family_mean(scores, question.name)
        scores += means
    peers = [method.removeprefix(PEER) for method in question.features.methods if method.startswith(PEER)]
    if least and peers:
        told = f"Without {', '.join(peers)}: of peers there are vectors, and no patches."
        remarks[question.name] = " ".join(filter(None, [remarks.get(question.name), told]))
    return Outcome(scores, pd.concat(tables, ignore_index=True), pictures, remarks)


def _of_encoder(method: str) -> bool:
    return method == ENCODER or method.startswith((f"{RANDOM}_", PEER))


def similarity(task: RetrieveConfig, vectors: Array, part: Part, queries: Integers) -> Array:
    """(queries, cases) of vectors (cases, dimension), by the task's distance."""
    from components.figures.similarity import cosine_similarity, euclidean_similarity

    if task.by == "euclidean":
        return euclidean_similarity(vectors[queries], vectors)
    centre = vectors[~part.test].mean(axis=0) if task.by == "cosine" else np.zeros(vectors.shape[1])
    return cosine_similarity(vectors[queries], vectors, centre)


def _gallery(task: RetrieveConfig, part: Part) -> npt.NDArray[np.bool_]:
    return np.ones(len(part.test), dtype=np.bool_) if task.protocol is None else ~part.test


def _judged(
    task: RetrieveConfig, part: Part, method: str, alike: Array, queries: Integers
) -> tuple[list[Score], pd.DataFrame]:
    from components.figures.resampling import together
    from components.figures.retrieval import over_queries, retrieve
    from components.tasks.judging import RETRIEVAL_REPLICATES

    weights = together(*part.sides).weights(part.patients.tolist())[: RETRIEVAL_REPLICATES + 1]
    cut = () if task.protocol is None else task.at if task.protocol == "organmnist3d" else task.at[-1:]
    found = retrieve(alike, queries, part.labels, part.patients, weights, task.at, cut, _gallery(task, part))
    labels, classes = part.labels[queries], part.classes
    if task.protocol is not None:  # no class weighs more than its queries
        labels, classes = np.full(len(queries), "all"), ["all"]
    scores, tables = [], []
    for name, of_queries in figures_of(task, found).items():
        replicates = over_queries(of_queries, labels, classes, weights[:, queries])
        scores.append(Score(part.name, method, name, replicates, len(queries), part.sample))
        of_case = np.round(of_queries[0][:, None], DIGITS)
        tables.append(per_case(part.rows.iloc[queries], part.name, method, name, [name], of_case))
    return scores, pd.concat(tables)


def figures_of(task: RetrieveConfig, found: Found) -> dict[str, Array]:
    """Figure to (replicates, queries), those that the protocol asks for."""
    figures = {"map": found.average_precision}
    for k in task.at:
        of: dict[str, Array] = {"precision": found.precision[k], "hit": found.hit_rate[k]}
        if k in found.cut:
            both = found.cut[k] + of["hit"]
            of["ap"] = found.cut[k]
            of["f1"] = np.where(both > 0, 2 * found.cut[k] * of["hit"] / np.where(both > 0, both, 1.0), both)
        figures |= {f"{name}_{k}": of[name] for name in ASKED[task.protocol] if name in of}
    return figures


def least_patches(question: Question, rows: pd.DataFrame) -> dict[str, Array]:
    """Method to the elementwise least of each case's patches (cases, dimension); each scan is opened once."""
    from components.progress import track
    from components.tasks.features import place_of

    untrained = {f"{RANDOM}_{seed}" for seed in question.config.random_seeds[: question.task.untrained]}
    names = [name for name in question.encoders if not name.startswith(f"{RANDOM}_") or name in untrained]
    encoders = {name: question.encoders[name]() for name in names}
    places = rows.assign(place=place_of(rows)).drop_duplicates("place")
    found: dict[str, dict[str, Array]] = {name: {} for name in names}
    for volume, of in track(places.groupby("volume"), [1] * places["volume"].nunique(), "embedding patches"):
        opened = question.volumes.open(str(volume))
        for place, x, y, z in of[["place", "x", "y", "z"]].itertuples(index=False):
            point = None if np.isnan(x) else [x, y, z]
            for name, least in least_patch(encoders, opened, point).items():
                found[name][place] = least
    return {name: np.stack([of[place] for place in place_of(rows)]) for name, of in found.items()}


def least_patch(
    encoders: Mapping[str, Embedder], volume: StoredVolume | Volume, point_mm: npt.ArrayLike | None
) -> dict[str, Array]:
    """Encoder to the elementwise least of the patches of a whole scan, or of the crop round a point.

    Args:
        encoders: by name; what those of one input see is made once.
        volume: on the line's grid.
        point_mm: (3,) in RAS millimetres; None for the whole scan.
    """
    import torch

    from components.models.embed import fixed_threads

    found: dict[str, Array] = {}
    seen: dict[str, torch.Tensor] = {}
    with torch.inference_mode(), fixed_threads():
        for name, of in encoders.items():
            if point_mm is None and of.config.input.sees == "crop":
                found[name] = of.embed_grid(volume).vectors.min(axis=0).astype(np.float64)
                continue
            view = of.config.input.model_dump_json()
            if view not in seen:
                seen[view] = of.seen(volume, point_mm)
            found[name] = of.encoder.levels(seen[view])[-1][0].flatten(1).amin(dim=1).double().cpu().numpy()
    return found


def _parts(name: str, task: RetrieveConfig, scanned: Scanned) -> list[str]:
    return classify.KIND.parts(name, task.cases, scanned)


KIND = Kind(
    RetrieveConfig,
    FIGURES,
    cases,
    judge,
    points=lambda task: classify.KIND.points(task.cases),
    columns=classify.KIND.columns,
    built_in=classify.BUILT_IN,
    parts=_parts,
)
