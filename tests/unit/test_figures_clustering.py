"""Figures of clusters equal scikit-learn's on every drawn set of copies."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score, silhouette_score
from sklearn.metrics.cluster import contingency_matrix

from components.figures.arrays import Array, Integers
from components.figures.clustering import k_means, normalised_mutual_information, purity, silhouette
from tests.unit.figure_draws import copies, draws


def embedded(kind: str) -> tuple[Array, Integers]:
    """Features and groups."""
    rng = np.random.default_rng(5)
    groups = rng.integers(0, 3, 30) * 7 - 2
    features = rng.normal(size=(30, 4)) + groups[:, None] * 0.1
    if kind == "ties":
        features = np.round(features)
    elif kind == "constant":
        features = np.ones((30, 4))
    elif kind == "one group":
        groups[:] = 3
    elif kind == "each its own":
        groups = np.arange(30)
    elif kind == "one alone":
        groups = (np.arange(30) == 4).astype(np.int64)
    elif kind == "single case":
        features, groups = features[:1], groups[:1]
    return features, groups


KINDS = ["random", "ties", "constant", "one group", "each its own", "one alone", "single case"]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("kind", KINDS)
def test_silhouette(kind: str, metric: str) -> None:
    features, groups = embedded(kind)
    weights = draws(len(groups))
    found = silhouette(features, groups, weights, metric)
    for row, drawn in enumerate(weights):
        of, names = copies(drawn, features, groups)
        defined = 2 <= len(set(names)) < len(names)
        expected = silhouette_score(of, names, metric=metric) if defined else np.nan
        assert found[row] == pytest.approx(expected, abs=1e-6, nan_ok=True)


CLASSES = {
    "random": np.random.default_rng(1).integers(0, 4, 30),
    "the same": None,
    "one class": np.zeros(30, dtype=np.int64),
    "each its own": np.arange(30),
}


@pytest.mark.parametrize("classes", CLASSES.values(), ids=CLASSES.keys())
@pytest.mark.parametrize("kind", ["random", "one group", "each its own", "one alone", "single case"])
def test_mutual_information_and_purity(kind: str, classes: Integers | None) -> None:
    _, clusters = embedded(kind)
    truth = clusters if classes is None else classes[: len(clusters)]
    weights = draws(len(clusters))
    information, pure = normalised_mutual_information(clusters, truth, weights), purity(clusters, truth, weights)
    for row, drawn in enumerate(weights):
        of, right = copies(drawn, clusters, truth)
        assert information[row] == pytest.approx(normalized_mutual_info_score(right, of), abs=1e-12)
        assert pure[row] == pytest.approx(contingency_matrix(right, of).max(axis=0).sum() / len(of), abs=1e-12)


def test_k_means_finds_what_lies_apart_and_the_same_again() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(60) % 3
    features = rng.normal(size=(60, 5)) + 20 * np.eye(5)[truth]
    found = k_means(features, 3, seed=1)
    ones = np.ones((1, 60))
    assert purity(found, truth, ones)[0] == 1
    assert normalised_mutual_information(found, truth, ones)[0] == pytest.approx(1)
    assert (found == k_means(features, 3, seed=1)).all()
    with pytest.raises(ValueError, match="61 clusters of 60 cases; 1 to 60 is allowed"):
        k_means(features, 61, seed=1)


def test_a_missing_feature_is_named() -> None:
    with pytest.raises(ValueError, match="silhouette: features: nan for case 2"):
        silhouette(np.array([[1.0], [2.0], [np.nan]]), np.array([0, 1, 1]), np.ones((1, 3)))
