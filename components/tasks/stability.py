"""Kind ``stability``: does a second scan of a patient give the vector of the first?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from components.figures.arrays import Array
from components.settings import StageConfig
from components.tasks.config import LINE
from components.tasks.interface import Kind, Measure, Outcome, Question, Scanned
from components.tasks.scores import DIGITS, Score, per_case
from components.tasks.table import RETEST, Built, Inputs, none_built, task_table

FIGURES = {
    "identification": Measure("Test-retest, identification rate"),
    "cosine": Measure("Test-retest, cosine similarity", bounds=(-1.0, 1.0)),
}
LEAST_PAIRS = 2  # patients; of one there is no interval


class StabilityConfig(StageConfig):
    """A block of ``<line>.tasks``: patients who were scanned twice.

    Attributes:
        set: ``line``, the line's own; or a labelled set. Of its patients with two accepted scans or more, on whichever
            side, the first in the order of its table and the next one are a pair; it has whole volumes only.
        gallery: other patients' volumes among which a second scan's first must be found; 0 leaves whole volumes out.
    """

    kind: Literal["stability"]
    set: Annotated[str, Field(min_length=1)] = LINE
    gallery: Annotated[int, Field(ge=0, le=10_000)]


def cases(name: str, task: StabilityConfig, inputs: Inputs) -> Built:
    """Whole volumes, and for an encoder that sees crops the same organ's points.

    Rows of split ``retest`` are second scans; their first scans and other patients' first scans are the gallery.
    """
    scans, second = (inputs.scans(), inputs.retests()) if task.set == LINE else _of_set(task.set, inputs)
    second = second[second["retest_of"].isin(scans["series"])]
    volume, organs = f"{name}/volume", f"{name}/organs"
    annotated = task.set == LINE and inputs.sees == "crop"
    names = [volume, organs] if annotated else [volume]
    if second["patient"].nunique() < LEAST_PAIRS:
        few = f"{len(second)} accepted pairs of first and second scan; at least {LEAST_PAIRS} patients are needed"
        return none_built(dict.fromkeys(names, few if len(second) else "no accepted pair of first and second scan"))
    parts, reasons = [], {}
    if task.gallery:
        parts.append(_volumes(volume, scans, second, task.gallery))
    else:
        reasons[volume] = f"left out by {name}.gallery: 0"
    if annotated:
        points = _points(organs, inputs, scans, second)
        if points.loc[points["split"] == "retest", "patient"].nunique() < LEAST_PAIRS:
            reasons[organs] = f"no organ point in both scans of a pair, of at least {LEAST_PAIRS} patients"
        else:
            parts.append(points)
    return Built(task_table(parts), reasons)


def _of_set(of: str, inputs: Inputs) -> tuple[pd.DataFrame, pd.DataFrame]:
    """First and second scans of the patients of a labelled set, in the order of its table."""
    rows = inputs.labelled[inputs.labelled["set"] == of].sort_values(["row", "series"])
    scans = rows[["series"]].drop_duplicates().merge(inputs.scans_of(of), on="series")
    which = scans.groupby("patient").cumcount()
    first = scans[which == 0]
    again = scans[which == 1]
    return first, again.assign(retest_of=again["patient"].map(first.set_index("patient")["series"]))


def _volumes(task: str, scans: pd.DataFrame, second: pd.DataFrame, gallery: int) -> pd.DataFrame:
    first = scans[scans["series"].isin(second["retest_of"])]
    # Series keys are hashes: the first of them are a random choice of other patients.
    others = scans[~scans["patient"].isin(first["patient"])].drop_duplicates("patient").head(gallery)
    rows = pd.concat(
        [
            pd.concat([first, others]).assign(split="test", case=lambda part: part["series"]),
            second.assign(split="retest", case=second["retest_of"] + RETEST),
        ]
    )
    nowhere = float("nan")
    return rows.assign(task=task, label="volume", x=nowhere, y=nowhere, z=nowhere)


def _points(task: str, inputs: Inputs, scans: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    first = inputs.annotated("organ", scans).drop_duplicates(["series", "structure"])
    again = inputs.annotated("organ", second).drop_duplicates(["series", "structure"])
    again["case"] = again["series"].map(second.set_index("series")["retest_of"]) + "/" + again["structure"] + RETEST
    again = again[again["case"].str.removesuffix(RETEST).isin(first["case"])]
    first = first[first["structure"].isin(again["structure"])]
    rows = pd.concat([first.assign(split="test"), again.assign(split="retest")])
    return rows.assign(task=task, label=rows["structure"])


@dataclass(frozen=True)
class Pairs:
    """Per pair, in the order of the retest rows.

    Attributes:
        patients: (pairs,) keys.
        cosine: (pairs,) cosine similarity of the two vectors, after subtracting the mean of all first scans.
        identified: (pairs,) 1 where the patient's own first scan is the nearest of all first scans, else 0.
    """

    patients: list[str]
    cosine: Array
    identified: Array


def compare(rows: pd.DataFrame, features: Array) -> Pairs:
    """Compare every retest row with the first scans of the same label (structure, or the whole volume).

    The mean of the first scans is subtracted per label: what all livers share says nothing about whose liver it is.

    Args:
        rows: of one part of the task.
        features: (rows, dimension).
    """
    from components.figures.agreement import compare_pairs

    patients: list[str] = []
    cosine, identified = [], []
    for _, same in rows.reset_index(drop=True).groupby("label", sort=True):
        first, again = same[same["split"] == "test"], same[same["split"] == "retest"]
        own = [first["case"].tolist().index(case.removesuffix(RETEST)) for case in again["case"]]
        alike, found = compare_pairs(
            features[first.index.to_numpy()], features[again.index.to_numpy()], np.asarray(own)
        )
        patients += again["patient"].tolist()
        cosine.append(alike)
        identified.append(found)
    return Pairs(patients, np.concatenate(cosine), np.concatenate(identified))


def judge(question: Question) -> Outcome:
    """Cosine and identification of every method, over patients."""
    from components.figures.averages import weighted_mean
    from components.figures.resampling import draws, sample_of

    scores: list[Score] = []
    parts: list[pd.DataFrame] = []
    for task, rows in question.rows.groupby("task"):
        again = rows[rows["split"] == "retest"].sort_values("label", kind="stable")
        for method in question.features.methods:
            pairs = compare(rows, question.features.of(method, rows))
            weights = draws(pairs.patients, question.config.bootstrap, question.config.seed).weights(pairs.patients)
            sample, count = sample_of(pairs.patients), len(pairs.patients)
            for figure, values in (("identification", pairs.identified), ("cosine", pairs.cosine)):
                scores.append(Score(str(task), method, figure, weighted_mean(values, weights), count, sample))
            parts.append(
                per_case(again, str(task), method, "cosine", ["same"], np.round(pairs.cosine[:, None], DIGITS))
            )
    return Outcome(scores, pd.concat(parts, ignore_index=True))


def _parts(name: str, task: StabilityConfig, scanned: Scanned) -> list[str]:
    if task.set != LINE:
        return [f"{name}/volume"] if task.gallery else []
    asked = {f"{name}/organs": scanned.trunk and scanned.sees == "crop", f"{name}/volume": task.gallery > 0}
    return [part for part, there in asked.items() if there and scanned.retests]


KIND = Kind(
    StabilityConfig, FIGURES, cases, judge, columns=lambda _: {}, trained=False, built_in={LINE: ()}, parts=_parts
)
