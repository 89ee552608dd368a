"""Retrieval: does a case find cases of its own class in other patients?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from components.evaluate.bootstrap import Array, Labels
from components.evaluate.probes import cosine_similarity


@dataclass(frozen=True)
class Retrieved:
    """Per query: average precision, and the share of the right class among the first 1 and 5 found; (queries,)."""

    average_precision: Array
    precision_at_1: Array
    precision_at_5: Array


def retrieve(
    features: Array, labels: Labels, patients: npt.NDArray[np.str_], is_query: npt.NDArray[np.bool_]
) -> Retrieved:
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
    found = [
        _one_query(similarity[row], labels == labels[case], patients != patients[case])
        for row, case in enumerate(np.flatnonzero(is_query))
    ]
    table = np.asarray(found, dtype=np.float64)
    return Retrieved(table[:, 0], table[:, 1], table[:, 2])


def _one_query(
    similarity: Array, relevant: npt.NDArray[np.bool_], allowed: npt.NDArray[np.bool_]
) -> tuple[float, float, float]:
    order = np.argsort(-similarity[allowed], kind="stable")
    hits = relevant[allowed][order]
    if not hits.any():
        raise ValueError("retrieval: a query has no case of its class in another patient")
    ranks = np.flatnonzero(hits) + 1
    # Not scikit-learn's average_precision_score: it takes equal similarities as one rank, and 1.07 ms for .05 ms.
    average_precision = float(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    return average_precision, float(hits[0]), float(hits[:5].mean())
