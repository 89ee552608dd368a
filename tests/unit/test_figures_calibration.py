"""Reliability and temperature equal scikit-learn's; a temperature mends what it is made for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator

from components.figures.arrays import Array, Bools, Integers
from components.figures.calibration import (
    BINS,
    TEMPERATURES,
    expected_calibration_error,
    fit_temperature,
    judged,
    reliability,
    tempered,
)
from tests.unit.figure_draws import copies, draws


def said(kind: str) -> tuple[Array, Bools]:
    rng = np.random.default_rng(4)
    probability = rng.random(60)
    happened = rng.random(60) < probability**2
    if kind == "ties":
        probability = np.round(probability, 1)
    elif kind == "edges":
        probability = rng.integers(0, BINS + 1, 60) / BINS
    elif kind == "constant":
        probability = np.full(60, 0.4)
    elif kind == "certain":
        probability = happened.astype(np.float64)
    elif kind == "one class":
        happened = np.ones(60, dtype=bool)
    elif kind == "single case":
        probability, happened = probability[:1], happened[:1]
    return probability, happened


@pytest.mark.parametrize("kind", ["random", "ties", "edges", "constant", "certain", "one class", "single case"])
def test_reliability_and_expected_calibration_error(kind: str) -> None:
    probability, happened = said(kind)
    weights = draws(len(probability))
    table = reliability(probability, happened, weights)
    error = expected_calibration_error(table)
    for row, drawn in enumerate(weights):
        of, truth = copies(drawn, probability, happened)
        observed, predicted = calibration_curve(np.append(truth, [False, True]), np.append(of, [2, 2]) / 2, n_bins=30)
        # scikit-learn refuses one class: two cases in a bin of their own, above all others, make it two
        observed, predicted = observed[:-1], 2 * predicted[:-1]
        filled = table.weight[row] > 0
        assert table.observed[row, filled] == pytest.approx(observed, abs=1e-12)
        assert table.predicted[row, filled] == pytest.approx(predicted, abs=1e-12)
        assert np.isnan(table.observed[row, ~filled]).all()
        assert table.weight[row].sum() == len(of)
        expected = np.average(np.abs(observed - predicted), weights=table.weight[row, filled])
        assert error[row] == pytest.approx(expected, abs=1e-12)


def test_calibration_by_hand() -> None:
    """Bins (0, .5] and (.5, 1]: .2 and .5 said, none happened; .9 said twice, one happened."""
    table = reliability(np.array([0.2, 0.5, 0.9, 0.9]), np.array([False, False, True, False]), np.ones((1, 4)), bins=2)
    assert table.edges.tolist() == [0, 0.5, 1]
    assert table.predicted[0] == pytest.approx([0.35, 0.9])
    assert table.observed[0].tolist() == [0, 0.5]
    assert expected_calibration_error(table)[0] == pytest.approx((0.35 + 0.4) / 2)


def test_two_classes_are_judged_by_the_second_and_more_by_the_predicted() -> None:
    probabilities = np.array([[0.7, 0.3], [0.1, 0.9]])
    probability, happened = judged(probabilities, np.array(["b", "b"]), ["a", "b"])
    assert (probability.tolist(), happened.tolist()) == ([0.3, 0.9], [True, True])
    probabilities = np.array([[0.2, 0.7, 0.1], [0.4, 0.3, 0.3]])
    probability, happened = judged(probabilities, np.array(["b", "c"]), ["a", "b", "c"])
    assert (probability.tolist(), happened.tolist()) == ([0.7, 0.4], [True, False])
    with pytest.raises(ValueError, match="calibration: label 'x'; a, b are allowed"):
        judged(probabilities[:, :2], np.array(["b", "x"]), ["a", "b"])


class Given(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier whose logits are its features, for scikit-learn to calibrate."""

    def __init__(self, classes: int = 2) -> None:
        self.classes = classes

    def fit(self, logits: Array, labels: Integers) -> Given:
        self.classes_ = np.arange(self.classes)
        return self

    def decision_function(self, logits: Array) -> Array:
        return logits[:, 0] if self.classes == 2 else logits

    def predict(self, logits: Array) -> Integers:
        return self.decision_function(logits).argmax(axis=1)


def logits_of(kind: str) -> tuple[Array, Integers]:
    rng = np.random.default_rng(6)
    classes = 2 if kind.startswith("binary") else 4
    logits = rng.normal(size=(80, classes)) * 2
    labels = np.array([rng.choice(classes, p=softmax(row / 3)) for row in logits])
    if kind == "ties":
        logits = np.round(logits)
    return (logits[:, 1] - logits[:, 0] if classes == 2 else logits), labels


@pytest.mark.parametrize("kind", ["binary", "four classes", "ties"])
def test_temperature_is_scikit_learns(kind: str) -> None:
    logits, labels = logits_of(kind)
    found = fit_temperature(logits, labels)
    features = logits[:, None] if logits.ndim == 1 else logits
    given = Given(2 if logits.ndim == 1 else logits.shape[1]).fit(features, labels)
    peer = CalibratedClassifierCV(FrozenEstimator(given), method="temperature").fit(features, labels)
    assert tempered(logits, found) == pytest.approx(peer.predict_proba(features), abs=1e-6)


@pytest.mark.parametrize("kind", ["binary", "four classes", "ties"])
def test_no_other_temperature_makes_the_labels_likelier(kind: str) -> None:
    logits, labels = logits_of(kind)
    of_classes = np.column_stack([np.zeros_like(logits), logits]) if logits.ndim == 1 else logits

    def loss(temperature: float) -> float:
        return -float(log_softmax(of_classes / temperature, axis=1)[np.arange(len(labels)), labels].mean())

    found = fit_temperature(logits, labels)
    others = found * np.exp(np.linspace(-3, 3, 2001))
    assert loss(found) <= min(map(loss, others))


def test_degenerate_logits_end_at_a_bound_or_stay_as_they_are() -> None:
    labels = np.array([0, 1, 0, 1])
    assert fit_temperature(np.zeros(4), labels) == 1.0
    assert fit_temperature(np.full((4, 3), 2.5), labels) == 1.0
    separated = np.array([-1.0, 1.0, -2.0, 2.0])
    assert fit_temperature(separated, labels) == TEMPERATURES[0]
    assert fit_temperature(-separated, labels) == TEMPERATURES[1]
    assert fit_temperature(np.ones(4), labels) == TEMPERATURES[1], "half of them are wrong: nothing is known"
    assert fit_temperature(np.array([3.0]), np.array([1])) == TEMPERATURES[0], "a single case"
    assert fit_temperature(np.array([3.0, 2.0]), np.array([1, 1])) == TEMPERATURES[0], "one class"


def test_logits_three_times_too_large_get_a_temperature_of_three() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=20000)
    labels = (rng.random(20000) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    temperature = fit_temperature(3 * logits, labels)
    assert temperature == pytest.approx(3, rel=0.05)
    probability = tempered(3 * logits, temperature)[:, 1]
    before, after = (
        expected_calibration_error(reliability(p, labels == 1, np.ones((1, 20000))))[0]
        for p in (tempered(3 * logits, 1.0)[:, 1], probability)
    )
    assert after < 0.02 < before


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(ValueError, match="labels 0 to 2; 0 to 1 is allowed"):
        fit_temperature(np.zeros(3), np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="temperature 0: above 0"):
        tempered(np.zeros(3), 0)
    with pytest.raises(ValueError, match="temperature: no case"):
        fit_temperature(np.zeros(0), np.zeros(0, dtype=np.int64))
    with pytest.raises(ValueError, match=r"reliability: 2 for case 1; a probability"):
        reliability(np.array([0.0, 2.0]), np.array([True, False]), np.ones((1, 2)))
