"""What an encoder adds to plain baselines: both together against one alone, paired over patients."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from test_tasks_scores import CLASSES, config, features_of, table_of

from components.figures.arrays import Array
from components.figures.resampling import paired
from components.tasks.adds import added, with_baselines
from components.tasks.judging import Part, score_task
from components.tasks.scores import Score


def scores_of(signal: dict[str, float]) -> tuple[Part, dict[str, Array], list[Score]]:
    table = table_of(160)
    features = features_of(table, signal).by_method
    part = Part.of("organs", table, config())
    found = score_task("organs", table, features, config())[0] + with_baselines(part, features, config())
    return part, features, found


def test_what_is_new_adds_and_what_is_noise_does_not() -> None:
    signal = {"encoder": 0.8, "radiomics": 0.0, "hu_statistics": 0.8, "random_1": 0.0, "random_2": 0.0}
    found = added(scores_of(signal)[2])["organs"]
    assert set(found) == {"hu_statistics", "radiomics"}
    gain = found["hu_statistics"]["linear_auc"]
    assert gain["low"] > 0, "the encoder's noise is another one"
    assert gain["untrained_difference"] < 0.02
    assert found["radiomics"]["linear_auc"]["difference"] > 0.2
    assert found["hu_statistics"]["brier"]["difference"] < 0, "lower is better, and the sign is the figure's own"


def test_numbers_are_those_of_a_probe_of_both_blocks_and_of_the_paired_difference() -> None:
    part, features, scores = scores_of({"encoder": 0.5, "radiomics": 0.2, "hu_statistics": 0.5, "random_1": 0.0})
    numbers = added(scores)["organs"]["hu_statistics"]["linear_auc"]
    train = ~part.test
    blocks = [features[name] for name in ("encoder", "hu_statistics")]
    both = np.hstack([x / (x[train].std(axis=0) * np.sqrt(x.shape[1])) for x in blocks])
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=2000, tol=1e-8)
    model.fit(both[train], part.labels[train])
    expected = roc_auc_score(part.labels[part.test] == CLASSES[1], model.predict_proba(both[part.test])[:, 1])
    assert numbers["value"] == pytest.approx(expected, abs=1e-3)
    by = {(s.method, s.figure): s for s in scores}
    ours, alone = by["encoder+hu_statistics", "linear_auc"], by["hu_statistics", "linear_auc"]
    estimate = paired(ours.replicates, alone.replicates, part.sample)
    assert numbers["alone"] == pytest.approx(alone.value, abs=1e-6)
    assert (numbers["difference"], numbers["low"], numbers["high"]) == pytest.approx(
        (estimate.value, *estimate.interval()), abs=1e-6
    )


def test_untrained_encoders_stand_in_the_encoders_place_as_the_mean_of_three() -> None:
    signal = {f"random_{n}": n / 2 for n in range(5)} | {"encoder": 1.0, "radiomics": 0.0, "hu_statistics": 0.0}
    part, features, scores = scores_of(signal)
    mean = next(s for s in scores if (s.method, s.figure) == ("untrained+radiomics", "linear_auc"))
    values = []
    for n in range(3):
        alone = with_baselines(part, {**features, "encoder": features[f"random_{n}"]}, config())
        values.append(next(s.value for s in alone if (s.method, s.figure) == ("encoder+radiomics", "linear_auc")))
    assert mean.value == pytest.approx(np.mean(values))
    assert len(set(values)) == 3
    assert not [s for s in scores if s.method.startswith("random_") and "+" in s.method], "of no seed by itself"
