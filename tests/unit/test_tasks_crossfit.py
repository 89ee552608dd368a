"""Temperature and threshold come from training cases that the probe was not fitted on, and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, confusion_matrix
from test_tasks_scores import CLASSES, config, features_of, table_of

from components.figures.arrays import Array, Integers, Labels
from components.figures.calibration import fit_temperature
from components.tasks.classify import FIGURES
from components.tasks.crossfit import FOLDS, fit, folds_of, out_of_fold
from components.tasks.judging import Judged, Part, judge_method
from components.tasks.scores import Score, task_metrics
from components.tasks.served import head_of


def cases(count: int = 120, signal: float = 0.6, seed: int = 0) -> tuple[Array, Labels, Labels]:
    """Features, labels and patients of two cases each; one in three is "b"."""
    rng = np.random.default_rng(seed)
    labels = np.where(np.arange(count) // 2 % 3 == 0, "b", "a")
    features = rng.normal(size=(count, 20))
    features[:, 0] += signal * np.where(labels == "b", 1, -1)
    return features, labels, np.asarray([f"p{n // 2:03d}" for n in range(count)])


def judged(table: pd.DataFrame, vectors: Array) -> tuple[Part, Judged]:
    part = Part.of("organs", table, config(), 0.8)
    return part, judge_method(part, "encoder", vectors[table.sort_values("case").index], config())


def test_a_patients_cases_are_in_one_fold_and_folds_are_a_function_of_seed_and_patients() -> None:
    _, labels, patients = cases()
    folds = folds_of(patients, labels, 1)
    assert (pd.Series(folds).groupby(patients).nunique() == 1).all()
    assert sorted(set(folds.tolist())) == list(range(FOLDS))
    order = np.random.default_rng(1).permutation(len(labels))
    assert np.array_equal(folds_of(patients[order], labels[order], 1), folds[order])
    assert not np.array_equal(folds_of(patients, labels, 2), folds)
    for name in CLASSES:
        sizes = np.bincount(folds[labels == name], minlength=FOLDS)
        assert sizes.max() - sizes.min() <= 2, "a patient's two cases at most"


@pytest.mark.parametrize("rare", [2, 3, 4])
def test_a_rare_class_is_in_training_whichever_fold_is_left_out(rare: int) -> None:
    patients = np.asarray([f"p{n:03d}" for n in range(40)])
    labels = np.where(np.arange(40) < rare, "b", "a")
    for seed in range(20):
        folds = folds_of(patients, labels, seed)
        assert len(set(folds[labels == "b"].tolist())) == rare


def test_a_fold_without_which_a_class_is_missing_is_left_out() -> None:
    features, labels, _ = cases(20)
    folds: Integers = np.zeros(20, dtype=np.int64)
    folds[labels == "a"] = np.arange((labels == "a").sum()) % FOLDS
    found = out_of_fold(features, labels, folds, CLASSES, 1.0)
    assert np.isnan(found[folds == 0]).all()
    assert np.isfinite(found[folds != 0]).all()


def test_a_case_is_judged_by_a_probe_that_has_not_seen_its_fold() -> None:
    features, labels, patients = cases()
    folds = folds_of(patients, labels, 1)
    found = out_of_fold(features, labels, folds, CLASSES, 10.0)
    for fold in range(FOLDS):
        train = folds != fold
        mean, scale = features[train].mean(axis=0), features[train].std(axis=0) * np.sqrt(20)
        model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=2000, tol=1e-6)
        model.fit((features[train] - mean) / scale, labels[train])
        expected = model.decision_function((features[~train] - mean) / scale)
        assert found[~train, 1] - found[~train, 0] == pytest.approx(expected, abs=1e-6)


def test_temperature_and_threshold_are_those_of_a_plain_search() -> None:
    features, labels, patients = cases()
    fitted = fit(features, labels, patients, CLASSES, 10.0, 1, 0.8)
    logits = out_of_fold(features, labels, folds_of(patients, labels, 1), CLASSES, 10.0)
    margin, positive = logits[:, 1] - logits[:, 0], labels == "b"
    share = positive.mean()
    assert fitted.priors == pytest.approx((1 - share, share))
    offset = np.log(share / (1 - share))

    def loss(log_temperature: float) -> float:
        z = margin / np.exp(log_temperature) + offset
        return float(np.logaddexp(0, np.where(positive, -z, z)).mean())

    best = minimize_scalar(loss, bounds=(np.log(0.01), np.log(100)), method="bounded", options={"xatol": 1e-10})
    assert fitted.temperature == pytest.approx(np.exp(best.x), rel=1e-4)
    assert fitted.temperature > 1, "twenty features, of which one tells: the probe is too sure"
    scores = np.round(1 / (1 + np.exp(-(margin / fitted.temperature + offset))), 6)
    reached = [t for t in np.unique(scores) if (scores[~positive] < t).mean() >= 0.8]
    assert fitted.threshold == pytest.approx(min(reached), abs=2e-6)


def test_without_a_specificity_or_with_more_classes_there_is_no_threshold() -> None:
    features, labels, patients = cases()
    assert fit(features, labels, patients, CLASSES, 1.0, 1, None).threshold is None
    three = np.asarray(["a", "b", "c"])[np.arange(120) // 2 % 3]
    assert fit(features, three, patients, ["a", "b", "c"], 1.0, 1, 0.8).threshold is None


def test_priors_are_the_answer_where_nothing_is_known() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(4000, 2)), (np.arange(4000) % 10 == 0).astype(np.int64)
    assert fit_temperature(logits, labels, np.array([0.9, 0.1])) > 10
    assert fit_temperature(3 * logits, labels, np.array([0.5, 0.5])) == pytest.approx(
        fit_temperature(3 * logits, labels)
    )


def test_test_cases_change_nothing_in_head_temperature_or_threshold() -> None:
    """The leak test: other labels and other features of the test side, the same head."""
    table = table_of(160)
    vectors = features_of(table, {"encoder": 0.7}).by_method["encoder"]
    _, first = judged(table, vectors)
    test = (table["split"] == "test").to_numpy()
    flipped = table.assign(label=table["label"].where(~test, table["label"].map({"a": "b", "b": "a"})))
    moved = vectors + 3.0 * np.random.default_rng(5).normal(size=vectors.shape) * test[:, None]
    for labels, features in ((flipped, vectors), (table, moved), (flipped, moved)):
        _, other = judged(labels, features)
        for name in ("mean", "scale", "weight", "bias"):
            assert np.array_equal(getattr(first.fitted.linear, name), getattr(other.fitted.linear, name)), name
        assert other.fitted.temperature == first.fitted.temperature
        assert other.fitted.threshold == first.fitted.threshold
        assert other.fitted.priors == first.fitted.priors


def test_the_order_of_rows_changes_nothing() -> None:
    table = table_of(120)
    vectors = features_of(table, {"encoder": 0.7}).by_method["encoder"]
    part, first = judged(table, vectors)
    order = np.random.default_rng(6).permutation(len(table))
    other_part, other = judged(table.iloc[order].reset_index(drop=True), vectors[order])
    pd.testing.assert_frame_equal(first.cases, other.cases)
    one, two = (head_of("organs", p, j.fitted, numbers(j)) for p, j in ((part, first), (other_part, other)))
    assert one.description == two.description
    assert one.linear.weight.tobytes() == two.linear.weight.tobytes()


def numbers(found: Judged) -> Mapping[str, Mapping[str, float]]:
    """Beside two untrained encoders that are a little worse."""
    worse: list[Score] = [
        replace(score, method=f"random_{seed}", replicates=score.replicates - 0.01 * seed)
        for seed in (1, 2)
        for score in found.scores
    ]
    return task_metrics([*found.scores, *worse], FIGURES)["organs"]


def test_figures_of_probabilities_are_scikit_learns_of_the_table_of_cases() -> None:
    table = table_of(160)
    _, found = judged(table, features_of(table, {"encoder": 0.7}).by_method["encoder"])
    rows = found.cases.query("probe == 'calibrated'")
    positive, scores = rows["label"] == "b", rows["score"]
    value = {score.figure: score.value for score in found.scores}
    assert value["brier"] == pytest.approx(brier_score_loss(positive, scores), abs=1e-9)
    threshold = found.fitted.threshold
    assert threshold is not None
    (negative, false), (missed, right) = confusion_matrix(positive, scores >= threshold)
    assert value["sensitivity"] == pytest.approx(right / (right + missed))
    assert value["specificity"] == pytest.approx(negative / (negative + false))
    bins = np.ceil(scores.to_numpy() * 15).clip(1, 15)
    gaps = [(bins == b).mean() * abs(scores[bins == b].mean() - positive[bins == b].mean()) for b in set(bins.tolist())]
    assert value["ece"] == pytest.approx(sum(gaps), abs=1e-9)
    assert 0.5 < value["average_precision"] < 1


def test_a_head_tells_its_figures_counts_and_limits() -> None:
    table = table_of(60)
    part, found = judged(table, features_of(table, {"encoder": 0.0}).by_method["encoder"])
    told = head_of("organs", part, found.fitted, numbers(found)).description
    assert (told.classes, told.positive, told.sees, told.dim) == (("a", "b"), "b", "point", 6)
    patients = table[table["split"] == "test"].groupby("label")["patient"].nunique()
    assert {name: of["patients"] for name, of in told.counts["test"].items()} == patients.to_dict()
    assert sum(of["cases"] for side in told.counts.values() for of in side.values()) == 60
    value = {score.figure: score.value for score in found.scores}
    assert told.figures["linear_auc"]["value"] == pytest.approx(value["linear_auc"], abs=1e-6)
    assert told.operating_point is not None
    assert told.operating_point.sensitivity["value"] == pytest.approx(value["sensitivity"], abs=1e-6)
    said = " ".join(told.limits)
    assert "may be chance: do not use it." in said
    assert "Few patients in train: a " in said
    assert "answers with one of them" in said
