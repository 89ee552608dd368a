"""How alike two vectors of features are."""

from __future__ import annotations

import numpy as np

from components.figures.arrays import Array


def cosine_similarity(queries: Array, gallery: Array, centre: Array) -> Array:
    """Cosine similarity (queries, gallery) after subtracting ``centre``, the direction that all features share."""
    # scikit-learn's differs in the last bit, by which near ties would be decided anew, and takes twice as long.
    return _unit(queries - centre) @ _unit(gallery - centre).T


def euclidean_similarity(queries: Array, gallery: Array) -> Array:
    """Euclidean distance (queries, gallery) with its sign turned: the nearest is the most alike."""
    from scipy.spatial.distance import cdist

    found: Array = -cdist(queries, gallery)
    return found


def _unit(features: Array) -> Array:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit: Array = features / np.maximum(length, 1e-12)
    return unit
