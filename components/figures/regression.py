"""Figures of predicted numbers."""

from __future__ import annotations

import numpy as np

from components.figures.arrays import Array, check
from components.figures.averages import ratio, weighted_mean


def mean_absolute_error(predicted: Array, truth: Array, weights: Array) -> Array:
    """Mean of the absolute differences (cases,), in the unit of the truth; (replicates,)."""
    check("mean absolute error", weights, predicted=predicted, truth=truth)
    return weighted_mean(np.abs(predicted - truth), weights)


def r2(predicted: Array, truth: Array, weights: Array) -> Array:
    """Share of the truth's variance that the prediction explains, negative where their mean would do better.

    scikit-learn's ``r2_score``, but NaN where all drawn truths are equal: there is nothing to explain, and it would
    say 1 or 0. Returns (replicates,).
    """
    check("R2", weights, predicted=predicted, truth=truth)
    drawn = weights > 0
    lowest, highest = np.where(drawn, truth, np.inf).min(axis=1), np.where(drawn, truth, -np.inf).max(axis=1)
    spread = (weights * np.square(truth - weighted_mean(truth, weights)[:, None])).sum(axis=1)
    spread[lowest >= highest] = 0.0  # rounding of the mean leaves a little
    return 1 - ratio(weights @ np.square(predicted - truth), spread)
