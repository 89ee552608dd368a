"""Bootstrap figures: equal to scikit-learn's on every resampling, over patients, repeatable."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from components.evaluate.bootstrap import interval, patient_weights
from components.figures.averages import class_mean, mean_defined
from components.figures.classification import macro_auc, weighted_auc


def test_weighted_auc_equals_sklearn_on_every_resampling_with_ties() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 6, 40).astype(float)  # many ties
    positive = generator.random(40) < 0.4
    weights = patient_weights([f"p{i // 2}" for i in range(40)], 50, seed=3)
    found = weighted_auc(scores, positive, weights)
    for row in range(len(weights)):
        assert found[row] == pytest.approx(roc_auc_score(positive, scores, sample_weight=weights[row]))


def test_macro_auc_equals_sklearn() -> None:
    generator = np.random.default_rng(1)
    classes = ["a", "b", "c"]
    labels = np.array(classes)[generator.integers(0, 3, 60)]
    scores = generator.dirichlet([1, 1, 1], 60)
    found = macro_auc(scores, labels, classes, np.ones((1, 60)))
    assert found[0] == pytest.approx(roc_auc_score(labels, scores, multi_class="ovr", average="macro", labels=classes))


def test_class_mean_of_right_answers_is_the_balanced_accuracy() -> None:
    labels = np.array(list("aaabbc"))
    guesses = np.array(list("aabbac"))
    found = class_mean((labels == guesses).astype(float), labels, ["a", "b", "c"], np.ones((1, 6)))
    assert found[0] == pytest.approx(balanced_accuracy_score(labels, guesses))


def test_a_resampling_without_one_class_has_no_auc_and_is_left_out_of_the_interval() -> None:
    weights = np.array([[1, 1, 1.0], [1, 1, 1], [0, 0, 2], [1, 1, 1]])
    found = weighted_auc(np.array([0.9, 0.8, 0.1]), np.array([True, True, False]), weights)
    assert np.isnan(found[2])
    assert interval(found) == (1.0, 1.0)
    assert mean_defined([found, np.zeros(4)])[2] == 0.0


def test_too_few_defined_resamplings_are_an_error() -> None:
    with pytest.raises(ValueError, match="too few patients"):
        interval(np.array([0.5, np.nan, np.nan, 0.5, np.nan]))


def test_whole_patients_are_drawn_and_draws_depend_on_patients_and_seed_alone() -> None:
    patients = ["b", "a", "b", "c"]
    weights = patient_weights(patients, 200, seed=5)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    again = patient_weights(["a", "b", "c"], 200, seed=5)
    assert (again[:, 0] == weights[:, 1]).all()
    assert (patient_weights(patients, 200, seed=6) != weights).any()


def test_the_interval_covers_what_theory_says() -> None:
    """The bootstrap of a mean of 400 draws has the width of the normal interval, within 10 %."""
    values = np.random.default_rng(2).normal(size=400)
    weights = patient_weights([str(i) for i in range(400)], 4000, seed=1)
    low, high = interval(weights @ values / weights.sum(axis=1))
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
