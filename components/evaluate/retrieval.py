"""Retrieval: does a case find cases of its own class in other patients?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.figures import retrieval
from components.figures.arrays import Array, Bools, Labels
from components.figures.similarity import cosine_similarity


@dataclass(frozen=True)
class Retrieved:
    """Per query: average precision, and the share of the right class among the first 1 and 5 found; (queries,)."""

    average_precision: Array
    precision_at_1: Array
    precision_at_5: Array


def retrieve(features: Array, labels: Labels, patients: Labels, is_query: Bools) -> Retrieved:
    """Rank, for each query, all cases of all other patients by cosine similarity.

    Features are centred by the mean of the cases that are no queries. Equal similarities keep the order of the cases.

    Args:
        features: (cases, dimension).
        labels: (cases,).
        patients: (cases,); a query's own patient is never in its gallery.
        is_query: (cases,).

    Raises:
        ValueError: a query has no case of its class among other patients.
    """
    centre = features[~is_query].mean(axis=0)
    similarity = cosine_similarity(features[is_query], features, centre)
    found = retrieval.retrieve(
        similarity, np.flatnonzero(is_query), labels, patients, np.ones((1, len(labels))), at=(1, 5)
    )
    # One table: a column of it is summed in another order than an array of its own, and the last digit shows it.
    table = np.stack([found.average_precision[0], found.precision[1][0], found.precision[5][0]], axis=1)
    return Retrieved(table[:, 0], table[:, 1], table[:, 2])
