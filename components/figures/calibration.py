"""Are probabilities what they say? Reliability, expected calibration error, and the temperature that mends most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from components.figures.arrays import Array, Bools, Integers, Labels, check, check_classes
from components.figures.averages import ratio
from components.figures.classification import check_probabilities

BINS = 15  # as Guo et al. 2017
TEMPERATURES = (0.01, 100.0)  # a likelihood that rises for ever, as of separated classes, ends at a bound


@dataclass(frozen=True)
class Reliability:
    """What was said beside what was found, in bins of equal width of the probability.

    A bin holds the probabilities above its lower edge up to its upper edge; the first holds 0 as well.

    Attributes:
        edges: (bins + 1,), from 0 to 1.
        weight: (replicates, bins), drawn cases.
        predicted: (replicates, bins), mean probability; NaN where none was drawn.
        observed: (replicates, bins), share of cases in which it happened; NaN where none was drawn.
    """

    edges: Array
    weight: Array
    predicted: Array
    observed: Array


def judged(probabilities: Array, labels: Labels, classes: Sequence[str]) -> tuple[Array, Bools]:
    """The probability (cases,) that calibration is about, and whether what it speaks of is so.

    Of two classes: the second's, which is what a reader sees. Of more: the highest, of the predicted one (Guo et al.).
    """
    check_classes("calibration", labels, classes)
    if len(classes) == 2:
        return probabilities[:, 1], labels == classes[1]
    best = np.argmax(probabilities, axis=1)
    names: Labels = np.asarray(classes, dtype=np.str_)
    return probabilities[np.arange(len(best)), best], labels == names[best]


def reliability(probability: Array, happened: Bools, weights: Array, bins: int = BINS) -> Reliability:
    """The reliability table of one probability (cases,) per case, for every replicate."""
    check("reliability", weights, probability=probability, happened=happened)
    check_probabilities("reliability", probability)
    edges = np.linspace(0, 1, bins + 1)
    inside = np.searchsorted(edges[1:-1], probability)[:, None] == np.arange(bins)[None]
    weight: Array = weights @ inside.astype(np.float64)
    predicted = ratio(weights @ (inside * probability[:, None]), weight)
    observed = ratio(weights @ (inside * happened[:, None]).astype(np.float64), weight)
    return Reliability(edges, weight, predicted, observed)


def expected_calibration_error(table: Reliability) -> Array:
    """Mean over the cases of the gap between said and found in their bin (Guo et al. 2017, arXiv 1706.04599)."""
    gap = np.where(table.weight > 0, np.abs(table.predicted - table.observed), 0.0)
    return ratio((table.weight * gap).sum(axis=1), table.weight.sum(axis=1))


def fit_temperature(logits: Array, labels: Integers, priors: Array | None = None) -> float:
    """The T whose softmax(logits / T) makes the labels likeliest (Guo et al. 2017), within ``TEMPERATURES``.

    Fit it on logits of cases that the classifier was not fitted on, for instance by cross-validation: on its own
    training cases every classifier looks too modest.

    Args:
        logits: (cases, classes), or (cases,) of the second of two classes.
        labels: (cases,) index of the class.
        priors: (classes,) how frequent the classes are, for a classifier that was fitted as if they were equally
            frequent: then it is the T of softmax(logits / T + log priors), which ends at the priors where nothing is
            known. None leaves the logits alone.

    Returns:
        1 where the logits of every case are equal, so that T changes nothing.
    """
    logits = _of_classes(logits)
    check("temperature", np.ones((1, len(labels))), logits=logits, labels=labels)
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"temperature: labels {labels.min()} to {labels.max()}; 0 to {logits.shape[1] - 1} is allowed")
    lead = logits - logits[np.arange(len(labels)), labels][:, None]
    if not lead.any():
        return 1.0
    offsets = 0.0 if priors is None else np.log(priors)

    def slope(log_temperature: float) -> float:
        """Of the log loss by 1 / T: it rises with 1 / T, since the loss is convex in it. Its root is exact, where
        a minimum searched by values is good to the root of the rounding error only."""
        return float((_softmax(lead / np.exp(log_temperature) + offsets) * lead).sum(axis=1).mean())

    low, high = np.log(TEMPERATURES[0]), np.log(TEMPERATURES[1])
    if slope(low) <= 0:
        return TEMPERATURES[0]
    if slope(high) >= 0:
        return TEMPERATURES[1]
    return float(np.exp(brentq(slope, low, high, xtol=1e-12)))


def tempered(logits: Array, temperature: float) -> Array:
    """Probabilities (cases, classes) of logits (cases, classes), or (cases,) of the second of two classes."""
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: above 0 is allowed")
    return _softmax(_of_classes(logits) / temperature)


def _of_classes(logits: Array) -> Array:
    return np.column_stack([np.zeros_like(logits), logits]) if logits.ndim == 1 else logits


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Array = powers / powers.sum(axis=1, keepdims=True)
    return shares
