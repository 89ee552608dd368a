"""Draws of cases for the tests of figures: an independent implementation is asked about the drawn copies themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float64]


def draws(cases: int, replicates: int = 25, seed: int = 0) -> Weights:
    """(replicates + 1, cases): ones, then how often each case was drawn of as many."""
    counts = np.random.default_rng(seed).multinomial(cases, np.full(cases, 1 / cases), size=replicates)
    return np.vstack([np.ones((1, cases)), counts]).astype(np.float64)


def copies(weights: Weights, *arrays: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """Each array with its rows as often as one row of weights says."""
    return tuple(np.repeat(array, weights.astype(int), axis=0) for array in arrays)
