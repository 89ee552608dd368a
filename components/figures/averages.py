"""Means and medians over cases, and over figures, replicate by replicate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from components.figures.arrays import Array, Labels


def ratio(numerator: Array, denominator: Array) -> Array:
    """Quotient, NaN where the denominator is not above 0."""
    out: Array = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


def weighted_mean(values: Array, weights: Array) -> Array:
    """Mean of ``values`` (cases,) in each replicate."""
    return ratio(weights @ values, weights.sum(axis=1))


def class_mean(values: Array, labels: Labels, classes: Sequence[str], weights: Array) -> Array:
    """Mean over classes of the mean of ``values`` (cases,) within each class; returns (replicates,).

    Of "prediction is right" it is the balanced accuracy.
    """
    means = []
    for name in classes:
        inside = weights * (labels == name)
        means.append(ratio(inside @ values, inside.sum(axis=1)))
    return mean_defined(means)


def mean_defined(figures: Sequence[Array]) -> Array:
    """Replicate by replicate mean of those figures that are defined; NaN where none is."""
    stacked = np.stack(list(figures))
    defined = np.isfinite(stacked)
    return ratio(np.where(defined, stacked, 0.0).sum(axis=0), defined.sum(axis=0).astype(np.float64))


def mean_of_cases(values: Array, weights: Array) -> Array:
    """Mean over the cases whose value (cases,) is defined, NaN being none; infinite where a drawn value is."""
    present = ~np.isnan(values)
    finite = np.isfinite(values)
    means = ratio(weights[:, finite] @ values[finite], weights[:, present].sum(axis=1))
    for limit in (np.inf, -np.inf):
        means[(weights[:, values == limit] > 0).any(axis=1)] = limit
    return means


def median_of_cases(values: Array, weights: Array) -> Array:
    """Median over the cases whose value (cases,) is defined: for values that may be infinite, as HD95 of a miss.

    The mean of the two middle values where the drawn cases are even in number, as ``numpy.median`` of all copies.
    """
    present = np.flatnonzero(~np.isnan(values))
    medians: Array = np.full(len(weights), np.nan)
    if not len(present):
        return medians
    order = present[np.argsort(values[present], kind="stable")]
    reached = np.cumsum(weights[:, order], axis=1)
    count = reached[:, -1]
    drawn = count > 0
    # The middle copies, counted from 1: both the same where the number is odd.
    lower = np.argmax(reached >= np.floor((count + 1) / 2)[:, None], axis=1)
    upper = np.argmax(reached >= np.floor(count / 2 + 1)[:, None], axis=1)
    low, high = values[order[lower]], values[order[upper]]
    same = low == high  # two infinite ones have no mean
    medians[drawn & same] = low[drawn & same]
    medians[drawn & ~same] = (low[drawn & ~same] + high[drawn & ~same]) / 2
    return medians
