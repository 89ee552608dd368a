"""Figures of a classifier: how well its scores order the cases, and what its decisions and probabilities are worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from components.figures.arrays import Array, Bools, Labels, check, check_classes
from components.figures.averages import class_mean, mean_defined, ratio, weighted_mean


def weighted_auc(scores: Array, positive: Bools, weights: Array) -> Array:
    """Area under the ROC curve by rank, ties counting half; NaN where a replicate lacks one of the two classes.

    Args:
        scores: (cases,), higher is more positive.
        positive: (cases,).
        weights: (replicates, cases).

    Returns:
        (replicates,)
    """
    # scikit-learn's roc_auc_score agrees to 1e-16, but takes one replicate a call: 4 s for 1,001 of them, not 2.5 ms.
    check("AUC", weights, scores=scores, positive=positive)
    _, of_positive, of_negative = _by_score(scores, positive, weights)
    below = np.cumsum(of_negative, axis=1) - of_negative
    concordant = (of_positive * (below + 0.5 * of_negative)).sum(axis=1)
    pairs = of_positive.sum(axis=1) * of_negative.sum(axis=1)
    return ratio(concordant, pairs)


def macro_auc(scores: Array, labels: Labels, classes: Sequence[str], weights: Array) -> Array:
    """Mean over classes of one-against-rest AUC. ``scores`` (cases, classes); returns (replicates,)."""
    check_classes("AUC", labels, classes)
    if len(classes) == 2:  # both one-against-rest figures are the same
        return weighted_auc(scores[:, 1], labels == classes[1], weights)
    return mean_defined([weighted_auc(scores[:, i], labels == name, weights) for i, name in enumerate(classes)])


def average_precision(scores: Array, positive: Bools, weights: Array) -> Array:
    """Precision at every distinct score, weighed by the recall that it adds; NaN where no positive case was drawn.

    scikit-learn's ``average_precision_score``: equal scores are taken together, nothing is interpolated. Without
    negative cases it is 1.

    Args:
        scores: (cases,), higher is more positive.
        positive: (cases,).
        weights: (replicates, cases).

    Returns:
        (replicates,)
    """
    check("average precision", weights, scores=scores, positive=positive)
    _, of_positive, of_negative = _by_score(scores, positive, weights)
    of_positive, of_negative = of_positive[:, ::-1], of_negative[:, ::-1]
    found = np.cumsum(of_positive, axis=1)
    precision = ratio(found, found + np.cumsum(of_negative, axis=1))
    added = np.where(of_positive > 0, of_positive * precision, 0.0)
    return ratio(added.sum(axis=1), found[:, -1])


def macro_average_precision(scores: Array, labels: Labels, classes: Sequence[str], weights: Array) -> Array:
    """Mean over classes of one-against-rest average precision; of two classes, the second's.

    The two classes' differ, unlike their AUC: the second is the one that is looked for. ``scores`` (cases, classes);
    returns (replicates,).
    """
    check_classes("average precision", labels, classes)
    if len(classes) == 2:
        return average_precision(scores[:, 1], labels == classes[1], weights)
    return mean_defined([average_precision(scores[:, i], labels == name, weights) for i, name in enumerate(classes)])


def balanced_accuracy(predicted: Labels, labels: Labels, classes: Sequence[str], weights: Array) -> Array:
    """Mean over those classes that were drawn of the share predicted right; (replicates,)."""
    check("balanced accuracy", weights, predicted=predicted, labels=labels)
    check_classes("balanced accuracy", labels, classes)
    return class_mean((predicted == labels).astype(np.float64), labels, classes, weights)


def sensitivity_at_specificity(
    scores: Array, positive: Bools, weights: Array, specificity: float
) -> tuple[Array, Array]:
    """Share of the positives that is called positive at a specificity, and the threshold; (replicates,) each.

    A case is called positive where its score is at least the threshold: the lowest drawn score at which the share of
    negatives below it is at least ``specificity``, or infinity, and a sensitivity of 0, where no score does. Every
    replicate sets its own threshold, so that the interval holds the chance in it. NaN where a class was not drawn.

    Args:
        scores: (cases,), higher is more positive.
        positive: (cases,).
        weights: (replicates, cases).
        specificity: above 0, at most 1.
    """
    if not 0 < specificity <= 1:
        raise ValueError(f"sensitivity at a specificity of {specificity}: above 0 and at most 1 is allowed")
    check("sensitivity at specificity", weights, scores=scores, positive=positive)
    distinct, of_positive, of_negative = _by_score(scores, positive, weights)
    negatives, positives = of_negative.sum(axis=1), of_positive.sum(axis=1)
    below = np.cumsum(of_negative, axis=1) - of_negative
    # Divided, not multiplied: 19 / 20 is the number that .95 is read as; .95 * 20 need not be 19.
    reached = ratio(below, np.broadcast_to(negatives[:, None], below.shape)) >= specificity
    reached &= of_positive + of_negative > 0
    first = np.argmax(reached, axis=1)
    rows = np.arange(len(weights))
    above = positives - (np.cumsum(of_positive, axis=1) - of_positive)[rows, first]
    exists = reached.any(axis=1)
    sensitivity = ratio(np.where(exists, above, 0.0), positives)
    threshold = np.where(exists, distinct[first], np.inf)
    missing = (negatives == 0) | (positives == 0)
    sensitivity[missing], threshold[missing] = np.nan, np.nan
    return sensitivity, threshold


def rates_at_threshold(scores: Array, positive: Bools, weights: Array, threshold: float) -> tuple[Array, Array]:
    """Sensitivity and specificity of a threshold fixed beforehand (at least: positive); (replicates,) each."""
    check("rates at a threshold", weights, scores=scores, positive=positive)
    called = (scores >= threshold).astype(np.float64)
    of_positive, of_negative = weights * positive, weights * ~positive
    sensitivity = ratio(of_positive @ called, of_positive.sum(axis=1))
    return sensitivity, ratio(of_negative @ (1 - called), of_negative.sum(axis=1))


def brier_score(probabilities: Array, labels: Labels, classes: Sequence[str], weights: Array) -> Array:
    """Mean squared error of the probabilities (cases, classes), summed over classes; of two, of the second class alone.

    So it is between 0 and 1 for two classes and between 0 and 2 for more, as ``brier_score_loss`` of scikit-learn
    (Brier 1950, doi 10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2). Returns (replicates,).
    """
    check("Brier score", weights, probabilities=probabilities, labels=labels)
    check_classes("Brier score", labels, classes)
    check_probabilities("Brier score", probabilities)
    truth = labels[:, None] == np.asarray(classes, dtype=np.str_)[None]
    squared = np.square(probabilities - truth)
    return weighted_mean(squared[:, 1] if len(classes) == 2 else squared.sum(axis=1), weights)


def check_probabilities(figure: str, probabilities: Array) -> None:
    """Raise ValueError for a number outside [0, 1]."""
    outside = np.argwhere((probabilities < 0) | (probabilities > 1))
    if len(outside):
        first = tuple(outside[0])
        raise ValueError(f"{figure}: {probabilities[first]:g} for case {first[0]}; a probability is between 0 and 1")


def _by_score(scores: Array, positive: Bools, weights: Array) -> tuple[Array, Array, Array]:
    """The distinct scores, rising, and the weight (replicates, distinct) of positives and negatives that have each."""
    order = np.argsort(scores, kind="stable")
    sorted_scores, sorted_positive = scores[order], positive[order]
    starts = np.flatnonzero(np.concatenate([[True], sorted_scores[1:] != sorted_scores[:-1]]))
    ordered = weights[:, order]
    of_positive = np.add.reduceat(ordered * sorted_positive, starts, axis=1)
    of_negative = np.add.reduceat(ordered * ~sorted_positive, starts, axis=1)
    return sorted_scores[starts], of_positive, of_negative
