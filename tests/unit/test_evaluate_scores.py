"""Figures: the probes learn from training cases alone, the comparison is paired, the baseline is every random seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from components.evaluate.bootstrap import patient_weights
from components.evaluate.config import EvaluateConfig
from components.evaluate.features import Crops, Features, encoder_method, place_of
from components.evaluate.probes import linear_probe, neighbour_probe
from components.evaluate.retrieval import retrieve
from components.evaluate.scores import Score, figure_table, score_all, task_metrics
from components.evaluate.stage import _methods
from components.evaluate.tasks import Built, usable
from components.models.embed import random_embedder
from components.settings import parse
from tests.unit.test_evaluate_stage import AFFINE, tiny_embedder
from tests.unit.test_evaluate_tasks import EVALUATE

CLASSES = ["a", "b"]


def config(**changes: Any) -> EvaluateConfig:
    return parse(EvaluateConfig, EVALUATE | {"bootstrap": 400} | changes, "t")


def table_of(cases: int, task: str = "organs", seed: int = 0) -> pd.DataFrame:
    """Two cases per patient; the first half of the patients to train on."""
    number = np.arange(cases)
    label = np.array(CLASSES)[np.random.default_rng(seed).permutation(number % 2)]
    patient = [f"p{n // 2:03d}" for n in number]
    split = np.where(number < cases // 2, "train", "test")
    return pd.DataFrame(
        {"task": task, "case": [f"c{n:03d}" for n in number], "patient": patient, "volume": patient, "x": 1.0 * number,
         "y": 0.0, "z": 0.0, "label": label, "split": split, "diameter_mm": np.nan}
    )  # fmt: skip


def features_of(table: pd.DataFrame, signal: dict[str, float], seed: int = 1) -> Features:
    """By method: noise, and the label along the first axis with the strength named."""
    rng = np.random.default_rng(seed)
    sign = np.where(table["label"] == "b", 1.0, -1.0)
    by_method = {}
    for method, strength in signal.items():
        by_method[method] = rng.normal(size=(len(table), 6))
        by_method[method][:, 0] += strength * sign
    return Features({place: row for row, place in enumerate(place_of(table))}, by_method)


def score(method: str, replicates: npt.ArrayLike, figure: str = "linear_auc") -> Score:
    return Score("organs", method, figure, np.asarray(replicates, dtype=np.float64), 10, 5)


def test_the_difference_to_random_is_paired_replicate_by_replicate() -> None:
    """Patients who are easy for one are easy for the other: a shift of .1 in every replicate is a shift of .1."""
    easy = np.random.default_rng(0).normal(0.7, 0.1, 1001)
    numbers = task_metrics([score("encoder", easy + 0.1), score("random", easy)])["organs"]["linear_auc"]
    found = [numbers[name] for name in ("difference", "difference_low", "difference_high")]
    assert found == pytest.approx([0.1, 0.1, 0.1], abs=1e-6)
    assert numbers["high"] - numbers["low"] > 0.3
    assert numbers["value"] == pytest.approx(easy[0] + 0.1, abs=1e-6)


def test_the_random_baseline_is_the_mean_of_all_seeds_in_every_replicate() -> None:
    table = table_of(40)
    strengths = {"random_1": 0.0, "random_2": 1.0, "random_3": 3.0, "encoder": 1.0}
    scores = score_all(table, features_of(table, strengths), config(random_seeds=[1, 2, 3])).scores
    by_key = {(s.method, s.figure): s.replicates for s in scores}
    for figure in ("linear_auc", "knn_auc", "retrieval_map"):
        seeds = np.stack([by_key[f"random_{n}", figure] for n in (1, 2, 3)])
        assert len(set(seeds[:, 0].tolist())) > 1
        assert by_key["random", figure] == pytest.approx(seeds.mean(axis=0))
    numbers = task_metrics(scores)["organs"]["linear_auc"]
    assert numbers["random"] == pytest.approx(by_key["random", "linear_auc"][0], abs=1e-6)


def test_figures_are_scikit_learns_of_a_probe_fitted_on_training_cases() -> None:
    table = table_of(80)
    features = features_of(table, {"encoder": 0.7, "random_1": 0.0})
    found = {(s.method, s.figure): s.value for s in score_all(table, features, config()).scores}
    x, train = features.by_method["encoder"], (table["split"] == "train").to_numpy()
    labels = table["label"].to_numpy(dtype=np.str_)
    scale = x[train].std(axis=0) * np.sqrt(x.shape[1])
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=2000, tol=1e-8)
    model.fit(x[train] / scale, labels[train])
    expected = roc_auc_score(labels[~train] == "b", model.predict_proba(x[~train] / scale)[:, 1])
    assert found["encoder", "linear_auc"] == pytest.approx(expected, abs=1e-3)
    assert found["encoder", "linear_auc"] > found["random_1", "linear_auc"] + 0.1
    centred = x - x[train].mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    patients, precision = table["patient"].to_numpy(), {name: [] for name in CLASSES}
    for query in np.flatnonzero(~train):
        others = patients != patients[query]
        relevant = labels[others] == labels[query]
        precision[labels[query]].append(average_precision_score(relevant, unit[others] @ unit[query]))
    assert found["encoder", "retrieval_map"] == pytest.approx(np.mean([np.mean(each) for each in precision.values()]))


def test_figures_follow_from_the_table_of_cases() -> None:
    table = table_of(60)
    scored = score_all(table, features_of(table, {"encoder": 0.5, "random_1": 0.0}), config())
    for probe in ("linear", "knn"):
        cases = scored.cases.query("method == 'encoder' and probe == @probe")
        assert len(cases) == 30, "test cases, each once"
        assert set(cases["case"]) == set(table.loc[table["split"] == "test", "case"])
        value = next(s.value for s in scored.scores if (s.method, s.figure) == ("encoder", f"{probe}_auc"))
        assert value == pytest.approx(roc_auc_score(cases["label"] == cases["of_class"], cases["score"]))


def test_intervals_come_from_drawing_test_patients() -> None:
    table = table_of(60)
    features = features_of(table, {"encoder": 0.5, "random_1": 0.0})
    found = next(
        s for s in score_all(table, features, config()).scores if (s.method, s.figure) == ("encoder", "retrieval_p1")
    )
    test = (table["split"] == "test").to_numpy()
    assert (found.cases, found.patients) == (30, 15)
    weights = patient_weights(table.loc[test, "patient"].tolist(), 400, 1)
    patients, labels = table["patient"].to_numpy(dtype=np.str_), table["label"].to_numpy(dtype=np.str_)
    hits = retrieve(features.by_method["encoder"], labels, patients, test).precision_at_1
    of_class = [
        (weights * (labels[test] == name)) @ hits / (weights * (labels[test] == name)).sum(axis=1) for name in CLASSES
    ]
    assert found.replicates == pytest.approx(np.mean(of_class, axis=0))
    row = figure_table([found]).iloc[0]
    assert (row["low"], row["high"]) == pytest.approx(np.percentile(found.replicates[1:], [2.5, 97.5]), abs=1e-6)


def test_a_family_is_the_mean_of_its_tasks_replicate_by_replicate() -> None:
    tables = [table_of(40, f"findings/{name}", seed) for seed, name in enumerate(("ich", "sdh"))]
    table = pd.concat(tables, ignore_index=True)
    strengths = {"encoder": 1.0, "random_1": 0.0}
    features = features_of(tables[0], strengths)
    scores = {(s.task, s.method, s.figure): s for s in score_all(table, features, config()).scores}
    parts = [scores[f"findings/{name}", "encoder", "linear_auc"].replicates for name in ("ich", "sdh")]
    assert parts[0][0] != parts[1][0]
    assert scores["findings", "encoder", "linear_auc"].replicates == pytest.approx(np.mean(parts, axis=0))


@pytest.mark.parametrize("probe", ["linear", "knn"])
def test_the_answer_for_a_case_does_not_depend_on_the_other_test_cases(probe: str) -> None:
    rng = np.random.default_rng(3)
    train, labels = rng.normal(size=(30, 4)), np.array(CLASSES)[np.arange(30) % 2]
    test = np.vstack([rng.normal(size=(5, 4)), rng.normal(loc=20, size=(5, 4))])

    def ask(cases: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if probe == "linear":
            return linear_probe(train, labels, cases, CLASSES, 10.0)
        return neighbour_probe(train, labels, cases, CLASSES, 5)

    assert ask(test)[:5] == pytest.approx(ask(test[:5]), abs=1e-9)


def test_a_rare_class_is_not_outvoted() -> None:
    """At equal distances from all cases each class has the same say, though one is four times as frequent."""
    angles = np.deg2rad([10.0, 10, 10, 10, -10])
    train = np.column_stack([np.cos(angles), np.sin(angles)])
    train = np.vstack([train, -train])  # the mean is the origin
    labels = np.array(["a", "a", "a", "a", "b"] * 2)
    assert neighbour_probe(train, labels, np.array([[1.0, 0.0]]), CLASSES, 5)[0] == pytest.approx([0.5, 0.5])


def test_near_cases_have_more_say_than_far_ones() -> None:
    angles = np.deg2rad([0.0, 40, 40])
    train = np.column_stack([np.cos(angles), np.sin(angles)])
    train = np.vstack([train, -train])
    labels = np.array(["b", "a", "a"] * 2)
    votes = neighbour_probe(train, labels, np.array([[1.0, 0.0]]), CLASSES, 3)[0]
    weight = np.exp((np.cos(np.deg2rad(40)) - 1) / 0.07)
    assert votes[0] / votes[1] == pytest.approx(2 * weight / (4 / 6) * (2 / 6), rel=1e-6)


def test_classes_weigh_alike_in_the_linear_probe_however_rare() -> None:
    """Without any signal, one case in ten is no reason to say "a" nine times out of ten."""
    rng = np.random.default_rng(5)
    labels = np.array(["b" if n % 10 == 0 else "a" for n in range(200)])
    answers = linear_probe(rng.normal(size=(200, 3)), labels, rng.normal(size=(50, 3)), CLASSES, 0.01)
    assert answers.mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.05)


def test_a_class_that_one_side_of_the_split_lacks_is_left_out() -> None:
    table = table_of(40)
    only_in_training = table["label"].where(~table["patient"].isin(["p000", "p001", "p002"]), "c")
    built = usable(Built(table.assign(label=only_in_training)), 2)
    assert set(built.table["label"]) == {"a", "b"}
    assert "c: 3 patients in train, 0 in test" in built.remarks["organs"]


def test_each_random_encoder_has_the_weights_of_its_seed() -> None:
    embedder, crops = tiny_embedder(), np.random.default_rng(0).integers(-500, 500, (2, 8, 16, 16)).astype(np.int16)
    methods = _methods(embedder, config(random_seeds=[4, 9]))
    seen = Crops(crops, AFFINE[:3, :3])
    assert set(methods) == {"encoder", "random_4", "random_9", "histogram", "hu_statistics"}
    for seed in (4, 9):
        expected = encoder_method(random_embedder(embedder, seed)).points(seen)
        assert np.array_equal(methods[f"random_{seed}"].points(seen), expected)
    assert not np.allclose(methods["random_4"].points(seen), methods["random_9"].points(seen))
    assert not np.allclose(methods["encoder"].points(seen), methods["random_4"].points(seen))
