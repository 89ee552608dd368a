"""Test-retest: does a second scan of a patient give the vector of the first?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from components.evaluate.tasks import RETEST
from components.figures.agreement import compare_pairs
from components.figures.arrays import Array


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
        rows: one stability task of the task table.
        features: (rows, dimension).
    """
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
