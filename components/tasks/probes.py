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

NEIGHBOUR_TEMPERATURE = 0.07  # of similarity in the votes, as in DINO's k-NN protocol (arXiv 2104.14294)


def linear_probe(train: Array, labels: Labels, test: Array, classes: Sequence[str], c: float) -> Array:
    """Class probabilities (test cases, classes) of a logistic regression with balanced classes.

    Features are standardised by the training cases, then divided by the square root of their number, so that ``c``
    penalises encoders and baselines of any dimension alike.
    """
    mean, spread = train.mean(axis=0), train.std(axis=0)
    varying = spread > 1e-8 * (1 + np.abs(mean))
    if not varying.any():
        return np.full((len(test), len(classes)), 1 / len(classes))
    scale = spread[varying] * np.sqrt(varying.sum())
    model = LogisticRegression(C=c, class_weight="balanced", max_iter=2000, tol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        model.fit((train[:, varying] - mean[varying]) / scale, labels)
    assert list(model.classes_) == list(classes)
    probabilities: Array = model.predict_proba((test[:, varying] - mean[varying]) / scale)
    return probabilities


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
