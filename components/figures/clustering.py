"""Figures of the structure of an embedding: do its clusters, or the classes, lie apart, and are they the same?

Replicates take the clusters as they are: they say how far the figure depends on the patients judged. Clusters are not
made anew from drawn patients, whose copies would lie at distance 0 and make clusters of their own.
"""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances

from components.figures.arrays import Array, Integers, check
from components.figures.averages import ratio


def k_means(features: Array, clusters: int, seed: int, starts: int = 10) -> Integers:
    """Cluster (cases,) of each of ``features`` (cases, dimension): the best of several starts, by scikit-learn.

    The same for the same seed, cases and order of cases, on one thread.
    """
    if not 1 <= clusters <= len(features):
        raise ValueError(f"k-means: {clusters} clusters of {len(features)} cases; 1 to {len(features)} is allowed")
    found: Integers = KMeans(clusters, n_init=starts, random_state=seed).fit_predict(features).astype(np.int64)
    return found


def silhouette(features: Array, groups: Integers, weights: Array, metric: str = "euclidean") -> Array:
    """Mean silhouette of the drawn cases (Rousseeuw 1987, doi 10.1016/0377-0427(87)90125-7); (replicates,).

    scikit-learn's ``silhouette_score`` of the drawn copies, which are neighbours of one another at distance 0. NaN
    where fewer than two groups were drawn, or every drawn case is a group of its own.

    Args:
        features: (cases, dimension).
        groups: (cases,) cluster or class of each.
        weights: (replicates, cases).
        metric: of scikit-learn's ``pairwise_distances``.
    """
    check("silhouette", weights, features=features, groups=groups)
    distance = pairwise_distances(features, metric=metric)
    names, of_case = np.unique(groups, return_inverse=True)
    within, nearest = np.zeros(weights.shape), np.full(weights.shape, np.inf)
    own_size = np.zeros(weights.shape)
    present = np.zeros(len(weights))
    for group in range(len(names)):
        inside = of_case == group
        size = weights[:, inside].sum(axis=1)
        summed = weights[:, inside] @ distance[inside]
        present += size > 0
        own_size[:, inside] = size[:, None]
        within[:, inside] = summed[:, inside] / np.maximum(size - 1, 1)[:, None]
        others = np.where(size[:, None] > 0, summed[:, ~inside] / np.maximum(size, 1)[:, None], np.inf)
        nearest[:, ~inside] = np.minimum(nearest[:, ~inside], others)
    defined = (present >= 2) & (present < weights.sum(axis=1))
    nearest[~defined] = 0.0
    width = np.maximum(within, nearest)
    value = np.divide(nearest - within, width, out=np.zeros_like(width), where=(width > 0) & (own_size > 1))
    return np.where(defined, ratio((weights * value).sum(axis=1), weights.sum(axis=1)), np.nan)


def normalised_mutual_information(clusters: Integers, classes: Integers, weights: Array) -> Array:
    """Mutual information over the mean of both entropies; (replicates,).

    scikit-learn's ``normalized_mutual_info_score``: 1 where both the drawn clusters and classes are one.
    """
    joint = _joint("mutual information", clusters, classes, weights)
    of_cluster, of_class = joint.sum(axis=2), joint.sum(axis=1)
    entropies = _entropy(of_cluster), _entropy(of_class)
    shared = entropies[0] + entropies[1] - _entropy(joint.reshape(len(joint), -1))
    mean = (entropies[0] + entropies[1]) / 2
    one = ((of_cluster > 0).sum(axis=1) == 1) & ((of_class > 0).sum(axis=1) == 1)
    nothing = (mean <= 0) | (shared <= np.finfo(np.float64).eps * len(clusters))
    values = np.where(nothing, 0.0, np.divide(shared, mean, out=np.zeros_like(mean), where=mean > 0))
    return np.where(joint.sum(axis=(1, 2)) > 0, np.where(one, 1.0, values), np.nan)


def purity(clusters: Integers, classes: Integers, weights: Array) -> Array:
    """Share of the drawn cases that are of their cluster's commonest class; (replicates,).

    It rises with the number of clusters: compare at equal numbers only.
    """
    joint = _joint("purity", clusters, classes, weights)
    return ratio(joint.max(axis=2).sum(axis=1), joint.sum(axis=(1, 2)))


def _joint(figure: str, clusters: Integers, classes: Integers, weights: Array) -> Array:
    """Drawn cases by (replicates, cluster, class)."""
    check(figure, weights, clusters=clusters, classes=classes)
    rows, columns = (np.unique(of, return_inverse=True)[1] for of in (clusters, classes))
    shape = int(rows.max()) + 1, int(columns.max()) + 1
    cell = np.zeros((weights.shape[1], shape[0] * shape[1]))
    cell[np.arange(len(rows)), rows * shape[1] + columns] = 1.0
    joint: Array = (weights @ cell).reshape(len(weights), *shape)
    return joint


def _entropy(counts: Array) -> Array:
    """In nats, of (replicates, cells)."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    out: Array = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=1)
    return out
