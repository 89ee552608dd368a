"""Figures of predicted numbers equal scikit-learn's on every drawn set of copies."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import mean_absolute_error as peer_mae
from sklearn.metrics import r2_score

from components.figures.arrays import Array
from components.figures.regression import mean_absolute_error, r2
from tests.unit.figure_draws import copies, draws


def predicted(kind: str) -> tuple[Array, Array]:
    rng = np.random.default_rng(1)
    truth = rng.normal(60, 12, size=30)
    guess = truth + rng.normal(size=30) * 5
    if kind == "ties":
        truth, guess = np.round(truth, -1), np.round(guess, -1)
    elif kind == "offset":
        truth, guess = truth + 1e6, guess + 1e6
    elif kind == "constant guess":
        guess = np.full(30, 60.0)
    elif kind == "constant truth":
        truth = np.full(30, 0.1)  # its mean is not exactly .1
    elif kind == "perfect":
        guess = truth.copy()
    elif kind == "single case":
        truth, guess = truth[:1], guess[:1]
    elif kind == "two cases":
        truth, guess = truth[:2], guess[:2]
    return guess, truth


@pytest.mark.parametrize(
    "kind", ["random", "ties", "offset", "constant guess", "constant truth", "perfect", "single case", "two cases"]
)
def test_mean_absolute_error_and_r2(kind: str) -> None:
    guess, truth = predicted(kind)
    weights = draws(len(truth))
    errors, explained = mean_absolute_error(guess, truth, weights), r2(guess, truth, weights)
    for row, drawn in enumerate(weights):
        of, right = copies(drawn, guess, truth)
        assert errors[row] == pytest.approx(peer_mae(right, of), abs=1e-12)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndefinedMetricWarning)
            expected = r2_score(right, of)
        if len(set(right)) == 1:
            expected = np.nan
        assert explained[row] == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_a_missing_prediction_is_named() -> None:
    with pytest.raises(ValueError, match="R2: predicted: nan for case 1"):
        r2(np.array([1.0, np.nan]), np.zeros(2), np.ones((1, 2)))
