"""What a linear probe's scores are worth, learnt from training cases that it was not fitted on (cross-validation).

Test cases take no part: neither temperature nor threshold has seen one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from components.figures.arrays import Array, Integers, Labels
from components.figures.calibration import fit_temperature
from components.figures.classification import sensitivity_at_specificity
from components.models.heads import Linear, calibrated
from components.tasks.probes import fit_linear
from components.tasks.scores import DIGITS

FOLDS = 5


@dataclass(frozen=True)
class Fitted:
    """A linear probe, fitted on all training cases, and how its logits are read.

    Attributes:
        linear: the probe.
        temperature, priors: see :func:`components.models.heads.calibrated`.
        threshold: of the second class's probability; infinite where none reaches the specificity, None where none was
            asked for.
    """

    linear: Linear
    temperature: float
    priors: tuple[float, ...]
    threshold: float | None

    def calibrated(self, features: Array) -> Array:
        """Calibrated probabilities (cases, classes), rounded as those that the threshold was chosen from."""
        return np.round(calibrated(self.linear.logits(features), self.temperature, self.priors), DIGITS)


def fit(
    train: Array,
    labels: Labels,
    patients: Labels,
    classes: Sequence[str],
    c: float,
    seed: int,
    specificity: float | None,
    blocks: Sequence[int] = (),
) -> Fitted:
    """Fit the probe on all training cases, its temperature and threshold on what folds of them say of each other.

    Args:
        train, labels, classes, c, blocks: as :func:`components.tasks.probes.fit_linear`.
        patients: (cases,).
        seed: of the folds.
        specificity: of the threshold, see :func:`components.figures.classification.sensitivity_at_specificity`; None,
            or more than two classes, for no threshold.
    """
    linear = fit_linear(train, labels, classes, c, blocks)
    names = np.asarray(classes, dtype=np.str_)
    index: Integers = np.argmax(labels[:, None] == names[None], axis=1).astype(np.int64)
    priors = tuple(float(share) for share in np.bincount(index, minlength=len(classes)) / len(index))
    logits = out_of_fold(train, labels, folds_of(patients, labels, seed), classes, c, blocks)
    known = np.isfinite(logits).all(axis=1)
    if not known.any():
        return Fitted(linear, 1.0, priors, None)
    temperature = round(fit_temperature(logits[known], index[known], np.asarray(priors)), DIGITS)
    threshold = None
    if specificity is not None and len(classes) == 2:
        scores = np.round(calibrated(logits[known], temperature, priors), DIGITS)[:, 1]
        ones = np.ones((1, len(scores)))
        threshold = float(sensitivity_at_specificity(scores, index[known] == 1, ones, specificity)[1][0])
    return Fitted(linear, temperature, priors, threshold)


def out_of_fold(
    train: Array, labels: Labels, folds: Integers, classes: Sequence[str], c: float, blocks: Sequence[int] = ()
) -> Array:
    """Logits (cases, classes) of each case by the probe that was fitted without its fold.

    NaN where the other folds lack a class: such a probe would be another one.
    """
    logits = np.full((len(train), len(classes)), np.nan)
    for fold in range(FOLDS):
        inside = folds == fold
        if inside.any() and set(labels[~inside].tolist()) == set(classes):
            probe = fit_linear(train[~inside], labels[~inside], classes, c, blocks)
            logits[inside] = probe.logits(train[inside])
    return logits


def folds_of(patients: Labels, labels: Labels, seed: int, count: int = FOLDS) -> Integers:
    """The fold (cases,) of each case: a patient's cases are in one, and each class's patients in as many as can be.

    A function of the seed and of which patients have which classes: patients come in the order of a seeded hash, those
    of rare classes first, and go where the fewest of their classes' patients are.
    """
    of_patient: dict[str, set[str]] = {}
    for patient, label in zip(patients.tolist(), labels.tolist(), strict=True):
        of_patient.setdefault(patient, set()).add(label)
    frequency = {name: sum(name in of for of in of_patient.values()) for name in set(labels.tolist())}
    by_rarity = {patient: sorted(of, key=lambda name: (frequency[name], name)) for patient, of in of_patient.items()}

    def turn(patient: str) -> tuple[int, bytes]:
        return frequency[by_rarity[patient][0]], hashed(seed, patient)

    held: list[dict[str, int]] = [dict.fromkeys(frequency, 0) for _ in range(count)]
    sizes = [0] * count
    fold_of: dict[str, int] = {}
    for patient in sorted(of_patient, key=turn):
        best = min(range(count), key=lambda f: ([held[f][name] for name in by_rarity[patient]], sizes[f], f))
        fold_of[patient] = best
        sizes[best] += 1
        for name in of_patient[patient]:
            held[best][name] += 1
    return np.asarray([fold_of[patient] for patient in patients.tolist()], dtype=np.int64)


def hashed(seed: int, *what: str) -> bytes:
    """A seeded order of names that depends on nothing else."""
    return hashlib.sha256("/".join([str(seed), *what]).encode()).digest()
