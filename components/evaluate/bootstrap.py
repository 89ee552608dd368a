"""Draws of patients, as weights that every figure takes, and intervals of the figures.

Weights are of shape (replicates, cases): row 0 holds ones and gives the figure itself; each other row counts how often
a case's patient was drawn. Whole patients are drawn, since cases of one patient are not independent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from components.figures.arrays import Array


def patient_weights(patients: Sequence[str], replicates: int, seed: int) -> Array:
    """Weights (replicates + 1, cases) for cases that belong to ``patients``; row 0 is ones.

    Tasks with the same patients get the same draws, so their figures can be averaged replicate by replicate.
    """
    unique, case_patient = np.unique(np.asarray(patients, dtype=np.str_), return_inverse=True)
    digest = hashlib.sha256("\n".join([str(seed), *unique.tolist()]).encode()).digest()
    generator = np.random.default_rng(list(digest))
    draws = generator.multinomial(len(unique), np.full(len(unique), 1 / len(unique)), size=replicates)
    counts = np.vstack([np.ones((1, len(unique)), dtype=np.int64), draws])
    weights: Array = counts[:, case_patient].astype(np.float64)
    return weights


def interval(figures: Array) -> tuple[float, float]:
    """The 95 % percentile interval over the replicates (all but row 0).

    A replicate in which a class was never drawn has no figure (NaN) and is left out.

    Raises:
        ValueError: fewer than half of the replicates have a figure.
    """
    drawn = figures[1:]
    finite = drawn[np.isfinite(drawn)]
    if len(finite) * 2 < len(drawn):
        raise ValueError(f"bootstrap: only {len(finite)} of {len(drawn)} replicates have a figure; too few patients")
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)
