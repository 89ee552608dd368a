"""Figures of classifiers equal scikit-learn's on every drawn set of copies, degenerate ones too."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    roc_auc_score,
    roc_curve,
)

from components.figures.arrays import Array, Bools, Labels
from components.figures.classification import (
    average_precision,
    balanced_accuracy,
    brier_score,
    macro_auc,
    macro_average_precision,
    rates_at_threshold,
    sensitivity_at_specificity,
    weighted_auc,
)
from tests.unit.figure_draws import copies, draws

CLASSES = ["a", "b", "c"]


def scored(kind: str) -> tuple[Array, Bools]:
    rng = np.random.default_rng(len(kind))
    positive = rng.random(40) < 0.4
    scores = rng.normal(size=40) + positive
    if kind == "ties":
        scores = np.round(scores)
    elif kind == "constant":
        scores = np.full(40, 0.3)
    elif kind == "perfect":
        scores = positive.astype(np.float64)
    elif kind == "inverted":
        scores = 1.0 - positive
    elif kind == "all positive":
        positive = np.ones(40, dtype=bool)
    elif kind == "all negative":
        positive = np.zeros(40, dtype=bool)
    elif kind == "one positive":
        positive = np.arange(40) == 7
    elif kind == "single case":
        scores, positive = scores[:1], np.array([True])
    return scores, positive


KINDS = ["random", "ties", "constant", "perfect", "inverted", "all positive", "all negative", "one positive",
         "single case"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_auc(kind: str) -> None:
    scores, positive = scored(kind)
    weights = draws(len(scores))
    found = weighted_auc(scores, positive, weights)
    for row, drawn in enumerate(weights):
        of, truth = copies(drawn, scores, positive)
        expected = roc_auc_score(truth, of) if 0 < truth.sum() < len(truth) else np.nan
        assert found[row] == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("kind", KINDS)
def test_average_precision(kind: str) -> None:
    scores, positive = scored(kind)
    weights = draws(len(scores))
    found = average_precision(scores, positive, weights)
    for row, drawn in enumerate(weights):
        of, truth = copies(drawn, scores, positive)
        expected = average_precision_score(truth, of) if truth.any() else np.nan
        assert found[row] == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("specificity", [0.5, 0.8, 0.9, 0.95, 1.0])
def test_sensitivity_at_a_specificity_and_its_threshold(kind: str, specificity: float) -> None:
    scores, positive = scored(kind)
    weights = draws(len(scores))
    found, threshold = sensitivity_at_specificity(scores, positive, weights, specificity)
    for row, drawn in enumerate(weights):
        of, truth = copies(drawn, scores, positive)
        if not 0 < truth.sum() < len(truth):
            assert np.isnan([found[row], threshold[row]]).all()
            continue
        wrong, right, thresholds = roc_curve(truth, of, drop_intermediate=False)
        allowed = np.round(wrong * (~truth).sum()) <= np.floor((1 - specificity) * (~truth).sum() + 1e-9)
        assert found[row] == pytest.approx(right[allowed].max(), abs=1e-12)
        assert threshold[row] == thresholds[allowed][-1]
        sensitivity, reached = rates_at_threshold(of, truth, np.ones((1, len(of))), threshold[row])
        assert sensitivity[0] == pytest.approx(found[row], abs=1e-12)
        assert reached[0] >= specificity


def test_a_specificity_that_is_met_exactly_is_met() -> None:
    """19 of 20 negatives are .95, also where .95 as a number times 20 is above 19."""
    for negatives in range(2, 400):
        scores = np.arange(negatives + 1, dtype=np.float64)
        positive = scores == negatives - 1  # one negative is above it
        met = (negatives - 1) / negatives
        found = [
            sensitivity_at_specificity(scores, positive, np.ones((1, negatives + 1)), at)[0][0]
            for at in (met, np.nextafter(met, 1))
        ]
        assert found == [1, 0], negatives


def test_rates_at_a_fixed_threshold() -> None:
    scores, positive = scored("ties")
    weights = draws(len(scores))
    sensitivity, specificity = rates_at_threshold(scores, positive, weights, 1.0)
    for row, drawn in enumerate(weights):
        of, truth = copies(drawn, scores, positive)
        assert sensitivity[row] == pytest.approx((of[truth] >= 1).mean())
        assert specificity[row] == pytest.approx((of[~truth] < 1).mean())
    sensitivity, specificity = rates_at_threshold(scores, np.ones(40, dtype=bool), weights, 1.0)
    assert np.isfinite(sensitivity).all()
    assert np.isnan(specificity).all()


def multiclass(kind: str) -> tuple[Array, Labels, list[str]]:
    rng = np.random.default_rng(3)
    classes = CLASSES[:2] if kind == "two classes" else CLASSES
    labels = np.array(classes)[rng.integers(0, len(classes), 30)]
    probabilities = rng.dirichlet(np.ones(len(classes)), 30)
    if kind == "constant":
        probabilities = np.full_like(probabilities, 1 / len(classes))
    elif kind == "certain":
        probabilities = (labels[:, None] == np.array(classes)).astype(np.float64)
    elif kind == "one class":
        labels[:] = "b"
    elif kind == "single case":
        probabilities, labels = probabilities[:1], labels[:1]
    return probabilities, labels, classes


MULTICLASS = ["random", "two classes", "constant", "certain", "one class", "single case"]


@pytest.mark.parametrize("kind", MULTICLASS)
def test_brier_score(kind: str) -> None:
    probabilities, labels, classes = multiclass(kind)
    weights = draws(len(labels))
    found = brier_score(probabilities, labels, classes, weights)
    for row, drawn in enumerate(weights):
        of, truth = copies(drawn, probabilities, labels)
        if len(classes) == 2:
            expected = brier_score_loss(truth, of[:, 1], pos_label="b")
        else:
            expected = brier_score_loss(truth, of, labels=classes)
        assert found[row] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", MULTICLASS)
def test_balanced_accuracy(kind: str) -> None:
    probabilities, labels, classes = multiclass(kind)
    predicted = np.array(classes)[probabilities.argmax(axis=1)]
    weights = draws(len(labels))
    found = balanced_accuracy(predicted, labels, classes, weights)
    for row, drawn in enumerate(weights):
        of, truth = copies(drawn, predicted, labels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a predicted class was not drawn
            expected = balanced_accuracy_score(truth, of)
        assert found[row] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("figure", "peer"), [(macro_auc, roc_auc_score), (macro_average_precision, average_precision_score)]
)
def test_figures_of_several_classes_are_means_of_one_against_rest(
    figure: Callable[..., Array], peer: Callable[..., float]
) -> None:
    probabilities, labels, classes = multiclass("random")
    weights = draws(len(labels))
    found = figure(probabilities, labels, classes, weights)
    for row, drawn in enumerate(weights):
        of, truth = copies(drawn, probabilities, labels)
        if set(truth) == set(classes):
            each = [peer(truth == name, of[:, index]) for index, name in enumerate(classes)]
            assert found[row] == pytest.approx(np.mean(each), abs=1e-12)


def test_of_two_classes_the_second_is_looked_for() -> None:
    probabilities, labels, classes = multiclass("two classes")
    found = macro_average_precision(probabilities, labels, classes, np.ones((1, len(labels))))
    assert found[0] == pytest.approx(average_precision_score(labels == "b", probabilities[:, 1]), abs=1e-12)


def test_without_any_positive_case_scikit_learn_warns_where_we_say_nothing() -> None:
    """The one difference: it calls the average precision of no positive case 0."""
    with pytest.warns(UserWarning, match="No positive class"):
        assert average_precision_score([False, False], [0.1, 0.2]) == 0.0
    assert np.isnan(average_precision(np.array([0.1, 0.2]), np.array([False, False]), np.ones((1, 2)))[0])
    with pytest.warns(UndefinedMetricWarning):
        assert np.isnan(roc_auc_score([0, 0], [0.1, 0.2]))


def test_wrong_inputs_are_named() -> None:
    ones, positive = np.ones((1, 2)), np.array([True, False])
    with pytest.raises(ValueError, match=r"specificity of 0\.0: above 0 and at most 1"):
        sensitivity_at_specificity(np.array([0.1, 0.2]), positive, ones, 0.0)
    with pytest.raises(ValueError, match=r"scores: nan for case 1"):
        average_precision(np.array([0.1, np.nan]), positive, ones)
    with pytest.raises(ValueError, match=r"1.5 for case 0; a probability is between 0 and 1"):
        brier_score(np.array([[1.5, -0.5], [0, 1]]), np.array(["a", "b"]), ["a", "b"], ones)
    with pytest.raises(ValueError, match=r"label 'd'; a, b are allowed"):
        brier_score(np.array([[0.5, 0.5], [0, 1]]), np.array(["a", "d"]), ["a", "b"], ones)
