"""Figures: the probes learn from training cases alone, and the encoder stands beside every untrained one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from components.evaluate.untrained import untrained_encoders
from components.figures.resampling import Sample, beside_untrained, draws, figure, gate_level, sample_of, together
from components.figures.retrieval import over_queries, retrieve
from components.figures.similarity import cosine_similarity
from components.models.embed import untrained_embedder
from components.settings import parse
from components.tasks.classify import FIGURES
from components.tasks.config import EvaluateConfig
from components.tasks.features import Crops, Features, encoder_method, place_of
from components.tasks.interface import Measure
from components.tasks.judging import QUERIES, Part, asking, score_task
from components.tasks.probes import linear_probe, neighbour_probe
from components.tasks.scores import Score, family_mean, figure_table, task_metrics
from components.tasks.table import Built, usable
from tests.unit.test_evaluate_stage import AFFINE, tiny_embedder
from tests.unit.test_tasks_cases import EVALUATE

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


def scored(table: pd.DataFrame, features: Features) -> tuple[list[Score], pd.DataFrame]:
    """Of every method on one task, and its table of cases."""
    vectors = {method: features.of(method, table) for method in features.methods}
    scores, cases = score_task(str(table["task"].iloc[0]), table, vectors, config())
    return scores, pd.concat(cases)


def score(method: str, replicates: npt.ArrayLike, figure: str = "linear_auc") -> Score:
    return Score("organs", method, figure, np.asarray(replicates, dtype=np.float64), 10, Sample(20, 19.0, 20 / 19))


def test_the_difference_to_untrained_encoders_holds_what_patients_and_seeds_do() -> None:
    """Patients who are easy for one are easy for the other: of equal seeds, a shift of .1 is a shift of .1."""
    easy = np.random.default_rng(0).normal(0.7, 0.05, 1001).clip(0, 0.9)
    same = [score(f"random_{seed}", easy) for seed in range(20)]
    numbers = task_metrics([score("encoder", easy + 0.1), *same], FIGURES)["organs"]["linear_auc"]
    found = [numbers[name] for name in ("difference", "difference_low", "difference_high", "least_gain", "spread")]
    assert found == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.0], abs=1e-6)
    assert numbers["high"] - numbers["low"] > 0.15
    apart = [score(f"random_{seed}", easy + 0.02 * (seed - 9.5)) for seed in range(20)]
    numbers = task_metrics([score("encoder", easy + 0.1), *apart], FIGURES)["organs"]["linear_auc"]
    assert numbers["spread"] == pytest.approx(0.02 * np.std(np.arange(20), ddof=1), abs=1e-6)
    assert numbers["difference_low"] < 0 < numbers["difference_high"], "untrained ones get as far by chance"
    assert numbers["least_gain"] < numbers["difference_low"], "the gate's level is stricter than 95 %"


def test_metrics_are_those_of_the_room_of_figures() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(0.8, 0.03, 401), rng.normal(0.7, 0.03, (5, 401))
    scores = [score("encoder", ours), *(score(f"random_{n}", row) for n, row in enumerate(theirs))]
    numbers = task_metrics(scores, FIGURES)["organs"]["linear_auc"]
    expected = beside_untrained(ours, theirs, scores[0].sample)
    low, high = expected.to_another.interval()
    assert numbers["random"] == pytest.approx(theirs[:, 0].mean(), abs=1e-6)
    assert (numbers["difference_low"], numbers["difference_high"]) == pytest.approx((low, high), abs=1e-6)
    assert numbers["p_worse"] == pytest.approx(expected.to_another.p_below(), abs=1e-6)
    least = expected.to_another.interval(1 - 2 * gate_level(5))[0]
    assert numbers["least_gain"] == pytest.approx(least, abs=1e-6)
    assert (numbers["low"], numbers["high"]) == pytest.approx(figure(ours, scores[0].sample).interval(), abs=1e-6)


def test_where_lower_is_better_a_smaller_figure_is_a_gain() -> None:
    rng = np.random.default_rng(2)
    ours = rng.normal(5.0, 0.2, 401)
    theirs = ours + 3.0 + rng.normal(0, 0.1, (20, 401))
    scores = [score("encoder", ours, "hd"), *(score(f"random_{n}", row, "hd") for n, row in enumerate(theirs))]
    measures = {"hd": Measure("Distance", bounds=(0.0, float("inf")), lower_is_better=True)}
    numbers = task_metrics(scores, measures)["organs"]["hd"]
    assert numbers["difference"] == pytest.approx(ours[0] - theirs[:, 0].mean(), abs=1e-6)
    assert numbers["difference_low"] < numbers["difference"] < numbers["difference_high"] < 0
    assert 2 < numbers["least_gain"] < 3
    assert numbers["p_worse"] > 0.99


def test_the_table_shows_the_mean_of_all_untrained_encoders() -> None:
    table = table_of(40)
    scores, _ = scored(table, features_of(table, {"random_1": 0.0, "random_2": 1.0, "random_3": 3.0, "encoder": 1.0}))
    rows = figure_table(scores, FIGURES).set_index(["method", "figure"])["value"]
    for name in ("linear_auc", "knn_auc", "retrieval_map"):
        seeds = [rows[f"random_{n}", name] for n in (1, 2, 3)]
        assert len(set(seeds)) > 1
        assert rows["random", name] == pytest.approx(np.mean(seeds), abs=1e-6)
    assert task_metrics(scores, FIGURES)["organs"]["linear_auc"]["random"] == pytest.approx(
        rows["random", "linear_auc"], abs=1e-6
    )


def test_figures_are_scikit_learns_of_a_probe_fitted_on_training_cases() -> None:
    table = table_of(80)
    features = features_of(table, {"encoder": 0.7, "random_1": 0.0})
    found = {(s.method, s.figure): s.value for s in scored(table, features)[0]}
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
    scores, per_case = scored(table, features_of(table, {"encoder": 0.5, "random_1": 0.0}))
    for probe in ("linear", "knn"):
        cases = per_case.query("method == 'encoder' and probe == @probe")
        assert len(cases) == 30, "test cases, each once"
        assert set(cases["case"]) == set(table.loc[table["split"] == "test", "case"])
        value = next(s.value for s in scores if (s.method, s.figure) == ("encoder", f"{probe}_auc"))
        assert value == pytest.approx(roc_auc_score(cases["label"] == cases["of_class"], cases["score"]))


def test_intervals_come_from_drawing_patients_of_queries_and_gallery() -> None:
    table = table_of(60)
    features = features_of(table, {"encoder": 0.5, "random_1": 0.0})
    found = next(s for s in scored(table, features)[0] if (s.method, s.figure) == ("encoder", "retrieval_p1"))
    test = (table["split"] == "test").to_numpy()
    patients, labels = table["patient"].to_numpy(dtype=np.str_), table["label"].to_numpy(dtype=np.str_)
    assert (found.cases, found.sample) == (30, sample_of(patients[test].tolist(), labels[test].tolist()))
    assert found.sample.patients == 15
    vectors, queries = features.of("encoder", table), np.flatnonzero(test)
    weights = together(*(draws(patients[side].tolist(), 400, 1) for side in (test, ~test))).weights(patients.tolist())
    similarity = cosine_similarity(vectors[test], vectors, vectors[~test].mean(axis=0))
    hits = retrieve(similarity, queries, labels, patients, weights).precision[1]
    assert found.replicates == pytest.approx(over_queries(hits, labels[test], CLASSES, weights[:, queries]))
    assert len(set(found.replicates.tolist())) > 50
    row = figure_table([found], FIGURES).iloc[0]
    assert (row["low"], row["high"]) == pytest.approx(figure(found.replicates, found.sample).interval(), abs=1e-6)


def test_a_family_is_the_mean_of_its_tasks_replicate_by_replicate() -> None:
    parts = []
    for seed, name in enumerate(("ich", "sdh")):
        table = table_of(40, f"findings/{name}", seed)
        parts += scored(table, features_of(table, {"encoder": 1.0, "random_1": 0.0}))[0]
    means, remark = family_mean(parts, "findings")
    of = {(s.task, s.method, s.figure): s for s in [*parts, *means]}
    rows = [of[f"findings/{name}", "encoder", "linear_auc"].replicates for name in ("ich", "sdh")]
    assert rows[0][0] != rows[1][0]
    mean = of["findings", "encoder", "linear_auc"]
    assert mean.replicates == pytest.approx(np.mean(rows, axis=0))
    assert mean.sample.freedom == min(s.sample.freedom for s in parts)
    assert remark == "Mean over 2 findings: ich, sdh."


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


def test_each_untrained_encoder_has_the_weights_of_its_seed() -> None:
    embedder, crops = tiny_embedder(), np.random.default_rng(0).integers(-500, 500, (2, 8, 16, 16)).astype(np.int16)
    asked = config(random_seeds=[4, 9])
    methods = {name: encoder_method(make()) for name, make in untrained_encoders(embedder.config, asked).items()}
    seen = Crops(crops, AFFINE[:3, :3])
    assert set(methods) == {"random_4", "random_9"}
    for seed in (4, 9):
        expected = encoder_method(untrained_embedder(embedder.config, seed)).points(seen)
        assert np.array_equal(methods[f"random_{seed}"].points(seen), expected)
    assert not np.allclose(methods["random_4"].points(seen), methods["random_9"].points(seen))
    assert not np.allclose(embedder.embed_crops(crops), methods["random_4"].points(seen))


def test_of_very_many_cases_a_share_of_each_class_asks_and_all_are_looked_through() -> None:
    few = Part.of("organs", table_of(160), config())
    assert np.array_equal(asking(few), np.flatnonzero(few.test)), "of few all"
    many = table_of(1800)
    part = Part.of("organs", many, config())
    chosen = asking(part)
    assert part.test[chosen].all(), "training cases never ask"
    assert np.unique(part.labels[chosen], return_counts=True)[1].tolist() == [QUERIES // len(CLASSES)] * len(CLASSES)
    again = Part.of("organs", many.sample(frac=1.0, random_state=1), config())
    assert np.array_equal(asking(again), chosen), "whatever the order of rows"
