"""Cox's proportional hazards with a ridge penalty, by Newton's method on Breslow's partial likelihood.

scikit-survival, which the tests hold it against, is GPL and so no part of the product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.figures.arrays import Array, Bools, Integers

STEPS, HALVINGS, CONVERGED = 100, 30, 1e-10


@dataclass(frozen=True)
class Cox:
    """A fitted model.

    Attributes:
        coefficients: (dimension,) of the log hazard.
        moments: (events,) distinct times of an event, rising.
        hazard: (events,) cumulative baseline hazard after each (Breslow's).
    """

    coefficients: Array
    moments: Array
    hazard: Array

    def risk(self, features: Array) -> Array:
        """Log hazard (cases,), higher is earlier."""
        out: Array = features @ self.coefficients
        return out

    def survival(self, features: Array, times: Array) -> Array:
        """Probability (cases, times) to be without event after each of ``times``."""
        at = np.concatenate([[0.0], self.hazard])[np.searchsorted(self.moments, times, side="right")]
        out: Array = np.exp(-np.outer(np.exp(self.risk(features)), at))
        return out


@dataclass(frozen=True)
class _AtRisk:
    """Cases sorted by time, the latest first, and for each event the number of cases at risk then."""

    features: Array
    event: Bools
    at_risk: Integers

    @classmethod
    def of(cls, features: Array, time: Array, event: Bools) -> _AtRisk:
        order = np.lexsort((~event, -time))
        later = -time[order]
        last = np.searchsorted(later, later, side="right") - 1  # of those tied: all of them are at risk
        return cls(features[order], event[order], last[event[order]])


def fit(features: Array, time: Array, event: Bools, penalty: float) -> Cox:
    """Fit by the log partial likelihood less ``penalty / 2`` times the squared length of the coefficients.

    Args:
        features: (cases, dimension).
        time: (cases,) of the event, or of the last time seen without it.
        event: (cases,), False where censored.
        penalty: above 0.

    Raises:
        ValueError: no event, or a penalty of 0 or less.
    """
    if not event.any() or penalty <= 0:
        raise ValueError(f"Cox: {int(event.sum())} events and penalty {penalty}: at least 1, and above 0")
    # With more dimensions than cases, coefficients lie in the span of the cases: Newton's step is taken there.
    left, lengths, span = np.linalg.svd(features, full_matrices=False)
    cases = _AtRisk.of(left * lengths, time, event)
    inside = np.zeros(len(lengths))
    value, gradient, curvature = _objective(cases, inside, penalty)
    for _ in range(STEPS):
        step = np.asarray(np.linalg.solve(curvature, gradient), dtype=np.float64)
        if float(gradient @ step) < CONVERGED:
            break
        inside, value, gradient, curvature = _improved(cases, inside, step, value, penalty)
    coefficients = inside @ span
    return Cox(coefficients, *_baseline(features @ coefficients, time, event))


def _improved(
    cases: _AtRisk, inside: Array, step: Array, value: float, penalty: float
) -> tuple[Array, float, Array, Array]:
    """Newton's step, halved until it does not lose; the objective is concave, so that some half gains."""
    for halving in range(HALVINGS):
        moved = inside + step / 2**halving
        found, gradient, curvature = _objective(cases, moved, penalty)
        if found >= value:
            return moved, found, gradient, curvature
    return inside, value, np.zeros_like(inside), np.eye(len(inside))


def _objective(cases: _AtRisk, coefficients: Array, penalty: float) -> tuple[float, Array, Array]:
    """Penalised log partial likelihood, its gradient, and its second derivative with the sign turned."""
    score = cases.features @ coefficients
    top = float(score.max())
    weight = np.exp(score - top)
    summed = np.cumsum(weight)[cases.at_risk]
    mean = np.cumsum(weight[:, None] * cases.features, axis=0)[cases.at_risk] / summed[:, None]
    value = float((score[cases.event] - top - np.log(summed)).sum()) - penalty / 2 * float(coefficients @ coefficients)
    gradient = (cases.features[cases.event] - mean).sum(axis=0) - penalty * coefficients
    share = np.zeros(len(weight))  # of each case: its weight over the sums of all events that it was at risk of
    np.add.at(share, cases.at_risk, 1 / summed)
    share = weight * np.cumsum(share[::-1])[::-1]
    curvature = (cases.features * share[:, None]).T @ cases.features - mean.T @ mean
    return value, gradient, curvature + penalty * np.eye(len(coefficients))


def _baseline(risk: Array, time: Array, event: Bools) -> tuple[Array, Array]:
    """Times of an event and the cumulative hazard of a case of risk 0 after each."""
    moments, counts = np.unique(time[event], return_counts=True)
    at_risk = (time[:, None] >= moments).T @ np.exp(risk)
    return moments, np.cumsum(counts / at_risk)


def log_partial_likelihood(risk: Array, time: Array, event: Bools) -> float:
    """Of given log hazards (cases,), without penalty; Breslow's where times are tied."""
    cases = _AtRisk.of(risk[:, None], time, event)
    return _objective(cases, np.ones(1), 0.0)[0]
