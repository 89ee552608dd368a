"""Two probes of frozen features: a linear classifier and the nearest neighbours. Both deterministic, nothing tuned."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from components.figures.arrays import Array, Labels
from components.figures.similarity import cosine_similarity
from components.models.heads import Linear

NEIGHBOUR_TEMPERATURE = 0.07  # of similarity in the votes, as in DINO's k-NN protocol (arXiv 2104.14294)


def fit_linear(train: Array, labels: Labels, classes: Sequence[str], c: float, blocks: Sequence[int] = ()) -> Linear:
    """A logistic regression with balanced classes.

    Features are standardised by the training cases, then divided by the square root of their number, so that ``c``
    penalises encoders and baselines of any dimension alike.

    Args:
        train: (cases, dimension).
        labels: (cases,).
        classes: sorted; each has a case.
        c: inverse strength of the L2 penalty.
        blocks: dimensions of the parts of which the features are put together: each part is scaled by itself, so that
            all weigh alike, and what one of them adds is not paid for by the others. Empty: all are one part.
    """
    mean, spread = train.mean(axis=0), train.std(axis=0)
    varying = spread > 1e-8 * (1 + np.abs(mean))
    weight, scale = np.zeros((len(classes), train.shape[1])), np.ones(train.shape[1])
    if not varying.any():
        return Linear(mean, scale, weight, np.zeros(len(classes)))
    part = np.repeat(np.arange(len(blocks) or 1), blocks or (train.shape[1],))
    sizes = np.bincount(part, weights=varying)[part]
    scale[varying] = spread[varying] * np.sqrt(sizes[varying])
    model = LogisticRegression(C=c, class_weight="balanced", max_iter=2000, tol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        model.fit((train[:, varying] - mean[varying]) / scale[varying], labels)
    assert list(model.classes_) == list(classes)
    if len(classes) == 2:  # one row, of the second class against the first
        weight[1, varying], bias = model.coef_[0], np.array([0.0, model.intercept_[0]])
    else:
        weight[:, varying], bias = model.coef_, model.intercept_
    return Linear(mean, scale, weight, bias)


def linear_probe(train: Array, labels: Labels, test: Array, classes: Sequence[str], c: float) -> Array:
    """Probabilities (test cases, classes) of :func:`fit_linear`."""
    return fit_linear(train, labels, classes, c).probabilities(test)


def neighbour_probe(train: Array, labels: Labels, test: Array, classes: Sequence[str], neighbours: int) -> Array:
    """Class scores (test cases, classes), each row summing to 1, of a weighted vote of the nearest training cases.

    A vote weighs exp(similarity / 0.07) over its class's frequency: rare classes are not outvoted.
    """
    similarity = cosine_similarity(test, train, train.mean(axis=0))
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbours]
    best = np.take_along_axis(similarity, nearest, axis=1)
    weight = np.exp((best - best[:, :1]) / NEIGHBOUR_TEMPERATURE)
    of_class = [
        np.where(labels[nearest] == name, weight, 0.0).sum(axis=1) / np.mean(labels == name) for name in classes
    ]
    votes = np.stack(of_class, axis=1)
    scores: Array = votes / votes.sum(axis=1, keepdims=True)
    return scores


def predicted(scores: Array, classes: Sequence[str]) -> Labels:
    """The class of the highest score of each row; the first of equals."""
    names: npt.NDArray[np.str_] = np.asarray(classes, dtype=np.str_)
    best: Labels = names[np.argmax(scores, axis=1)]
    return best
