"""Figures of merit for many patient resamplings at once.

Every function takes weights of shape (replicates, cases): row 0 holds ones and gives the figure itself; each other row
counts how often a case's patient was drawn. Whole patients are drawn, since cases of one patient are not independent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.str_]


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


def weighted_auc(scores: Array, positive: npt.NDArray[np.bool_], weights: Array) -> Array:
    """Area under the ROC curve by rank, ties counting half; NaN where a replicate lacks one of the two classes.

    Args:
        scores: (cases,), higher is more positive.
        positive: (cases,).
        weights: (replicates, cases).

    Returns:
        (replicates,)
    """
    # scikit-learn's roc_auc_score agrees to 1e-16, but takes one replicate a call: 4 s for 1,001 of them, not 2.5 ms.
    order = np.argsort(scores, kind="stable")
    sorted_scores, sorted_positive = scores[order], positive[order]
    starts = np.flatnonzero(np.concatenate([[True], sorted_scores[1:] != sorted_scores[:-1]]))
    ordered = weights[:, order]
    # One column per distinct score: the weight of positives and of negatives that have it.
    of_positive = np.add.reduceat(ordered * sorted_positive, starts, axis=1)
    of_negative = np.add.reduceat(ordered * ~sorted_positive, starts, axis=1)
    below = np.cumsum(of_negative, axis=1) - of_negative
    concordant = (of_positive * (below + 0.5 * of_negative)).sum(axis=1)
    pairs = of_positive.sum(axis=1) * of_negative.sum(axis=1)
    return _ratio(concordant, pairs)


def macro_auc(scores: Array, labels: Labels, classes: Sequence[str], weights: Array) -> Array:
    """Mean over classes of one-against-rest AUC. ``scores`` (cases, classes); returns (replicates,)."""
    if len(classes) == 2:  # both one-against-rest figures are the same
        return weighted_auc(scores[:, 1], labels == classes[1], weights)
    return mean_defined([weighted_auc(scores[:, i], labels == name, weights) for i, name in enumerate(classes)])


def class_mean(values: Array, labels: Labels, classes: Sequence[str], weights: Array) -> Array:
    """Mean over classes of the mean of ``values`` (cases,) within each class; returns (replicates,).

    Of "prediction is right" it is the balanced accuracy.
    """
    means = []
    for name in classes:
        inside = weights * (labels == name)
        means.append(_ratio(inside @ values, inside.sum(axis=1)))
    return mean_defined(means)


def weighted_mean(values: Array, weights: Array) -> Array:
    """Mean of ``values`` (cases,) in each replicate."""
    return _ratio(weights @ values, weights.sum(axis=1))


def mean_defined(figures: Sequence[Array]) -> Array:
    """Replicate by replicate mean of those figures that are defined; NaN where none is."""
    stacked = np.stack(list(figures))
    defined = np.isfinite(stacked)
    return _ratio(np.where(defined, stacked, 0.0).sum(axis=0), defined.sum(axis=0).astype(np.float64))


def _ratio(numerator: Array, denominator: Array) -> Array:
    out: Array = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out
