"""A small world in which the statistics of evaluation are tried: patients, and encoders of which nothing was trained.

A case is a vector of what the scan shows: its anatomy or finding, its patient, noise. An encoder is two random layers;
those of one architecture differ in what they take up of each direction, as seeds do. Among real untrained encoders the
standard deviation of seeds was .4 to 1.3 times what patients did to each by itself, of AUC on 24 to 200 patients with
lung nodules, and 4.5 times of the organs' mAP on 28 phantom patients; here it is .5 to 2 times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from components.figures.arrays import Array, Bools, Integers, Labels
from components.figures.averages import class_mean
from components.figures.retrieval import over_queries, retrieve
from components.figures.similarity import cosine_similarity
from components.tasks.probes import linear_probe

SHOWN, SIGNAL = 32, 8  # directions of a case, and how many of them tell classes apart
ORGANS = ("liver", "spleen")


@dataclass(frozen=True)
class Cases:
    """``shown`` (cases, SHOWN), ``labels`` (cases,), ``patients`` (cases,); cases of a patient lie together."""

    shown: Array
    labels: Labels
    patients: Labels


@dataclass(frozen=True)
class Encoders:
    """Encoders of one architecture: weights (encoders, dimension, SHOWN), offsets (encoders, dimension)."""

    weights: Array
    offsets: Array

    def __iter__(self) -> Iterator[Encoder]:
        return (Encoder(w, b) for w, b in zip(self.weights, self.offsets, strict=True))


@dataclass(frozen=True)
class Encoder:
    weights: Array
    offsets: Array

    def __call__(self, shown: Array) -> Array:
        features: Array = np.maximum(shown @ self.weights.T + self.offsets, 0)
        return features


def untrained(rng: np.random.Generator, count: int, spread: float, attention: float = 1.0, size: int = 32) -> Encoders:
    """``spread``: how unequal their gains are; ``attention``: how much more than the rest they take up the signal. An
    encoder that learnt something has an attention above 1."""
    gains = np.exp(spread * rng.normal(size=(count, 1, SHOWN)))
    gains[:, :, :SIGNAL] *= attention
    weights = rng.normal(size=(count, size, SHOWN)) * gains / np.sqrt(SHOWN)
    return Encoders(weights, 0.3 * rng.normal(size=(count, size)))


def with_finding(rng: np.random.Generator, patients: int, strength: float, prevalence: float = 0.35) -> Cases:
    """One to three cases a patient, all with the finding or all without; it is not as clear in all."""
    has = rng.random(patients) < prevalence
    owner = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    shown = (0.7 * rng.normal(size=(patients, SHOWN)))[owner] + rng.normal(size=(len(owner), SHOWN))
    clear = strength * rng.gamma(4, 0.25, patients) * has
    shown[:, :SIGNAL] += clear[owner, None]
    return Cases(shown, np.where(has[owner], "present", "absent"), _names(owner))


def with_organs(rng: np.random.Generator, patients: int, centres: Array) -> Cases:
    """A point in each of ``ORGANS``, one in ten of them missing; ``centres`` (organs, SIGNAL)."""
    owner, organ = np.divmod(np.arange(patients * len(ORGANS)), len(ORGANS))
    shown = (0.5 * rng.normal(size=(patients, SHOWN)))[owner] + rng.normal(size=(len(owner), SHOWN))
    shown[:, :SIGNAL] += centres[organ]
    there = rng.random(len(owner)) < 0.9
    return Cases(shown[there], np.asarray(ORGANS)[organ[there]], _names(owner[there]))


def scores(encoder: Encoder, train: Cases, test: Cases) -> Array:
    """Of the finding, by the linear probe of evaluation; (test cases,)."""
    classes = ["absent", "present"]
    return linear_probe(encoder(train.shown), train.labels, encoder(test.shown), classes, 10.0)[:, 1]


def mean_average_precision(encoder: Encoder, cases: Cases, is_query: Bools, weights: Array) -> tuple[Array, Array]:
    """Of retrieval among other patients, mean over organs, with queries and gallery drawn, and with queries alone.

    Both (replicates,); ``weights`` (replicates, cases).
    """
    features, queries = encoder(cases.shown), np.flatnonzero(is_query)
    similarity = cosine_similarity(features[is_query], features, features[~is_query].mean(axis=0))
    found = retrieve(similarity, queries, cases.labels, cases.patients, weights, at=()).average_precision
    labels, drawn = cases.labels[is_query], weights[:, is_query]
    return over_queries(found, labels, ORGANS, drawn), class_mean(found[0], labels, ORGANS, drawn)


def _names(owner: Integers) -> Labels:
    return np.char.add("p", np.char.zfill(owner.astype(str), 5))
