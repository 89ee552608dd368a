"""How strongly a model of numbers or times is held back: chosen on the training patients alone, the same way for every
method, so that encoders and baselines of any dimension stand on equal terms."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from components.figures.arrays import Array, Bools, Integers

PENALTIES: tuple[float, ...] = tuple(10.0 ** (power / 2) for power in range(-6, 7))
FOLDS = 5


def scaled(train: Array, test: Array) -> tuple[Array, Array]:
    """Features (cases, dimension) of mean 0 and mean squared length 1 over the training cases; constant ones go."""
    mean, spread = train.mean(axis=0), train.std(axis=0)
    varying = spread > 1e-8 * (1 + np.abs(mean))
    scale = spread[varying] * np.sqrt(max(1, int(varying.sum())))
    return (train[:, varying] - mean[varying]) / scale, (test[:, varying] - mean[varying]) / scale


def folds(patients: Sequence[str], seed: int) -> Integers:
    """Fold (cases,) of each case; all of a patient are in one, and the order of cases changes none."""
    drawn = sorted(set(patients), key=lambda patient: hashlib.sha256(f"{seed}/{patient}".encode()).hexdigest())
    number = {patient: rank % min(FOLDS, len(drawn)) for rank, patient in enumerate(drawn)}
    return np.array([number[patient] for patient in patients], dtype=np.int64)


def chosen(loss: Callable[[Bools, float], float], of_fold: Integers) -> float:
    """The penalty with the least loss over the folds; of equals, the strongest.

    Args:
        loss: from the cases that are fitted on (the others judge) and a penalty to a sum over cases.
        of_fold: see :func:`folds`.
    """
    lost = [sum(loss(of_fold != fold, penalty) for fold in np.unique(of_fold)) for penalty in PENALTIES]
    return max(penalty for penalty, value in zip(PENALTIES, lost, strict=True) if value <= min(lost))
