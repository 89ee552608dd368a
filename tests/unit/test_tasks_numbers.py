"""Kinds ``regress`` and ``survive``: what features tell of a number or a time is found, and mistakes are one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.errors import UserError
from components.figures.arrays import Array
from components.tasks import own, regress, survive
from components.tasks.penalty import FOLDS, PENALTIES, chosen, folds, scaled
from components.tasks.regress import CONSTANT, RegressConfig, ridge
from components.tasks.survive import SurviveConfig
from components.tasks.table import Built, Inputs
from tests.unit.task_inputs import inputs, question

SCANS = 40
SERIES = [f"s{n:02d}" for n in range(SCANS)]
NUMBER = RegressConfig(kind="regress", set="site", label="dose")
TIME = SurviveConfig(kind="survive", set="site", time="months", event="died")
Columns = dict[str, list[str]]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[Columns], Inputs]:
    """Inputs of a line with a set ``site`` whose table has the columns; two scans a patient, every third one tested."""

    def of(columns: Columns) -> Inputs:
        labels = type("Labels", (), {"table": "labels.csv"})
        table = pd.DataFrame({"id": SERIES, **columns})
        one = type("Set", (), {"config": type("Config", (), {"labels": labels}), "table": lambda self: (table, [])})()
        monkeypatch.setattr(own, "sets_of", lambda line: {"site": one})
        line = inputs([(series, f"p{n // 2:02d}", "held_out") for n, series in enumerate(SERIES)], [])
        labelled = line.curated[["series", "patient"]].assign(set="site", row=range(SCANS))
        labelled["split"] = ["test" if n // 2 % 3 == 0 else "train" for n in range(SCANS)]
        return replace(line, labelled=labelled, curated=line.curated.drop(columns=["patient", "split"]).assign(
            accepted=True, reason=""))  # fmt: skip

    return of


def written(values: Array) -> list[str]:
    return [f"{value:.6f}" for value in values]


def vectors(truth: Array) -> dict[str, Array]:
    """Of an encoder that holds the truth beside noise, and of others that hold noise."""
    noise = np.random.default_rng(1).normal(size=(4, len(truth), 6))
    told = np.column_stack([truth, noise[0]])
    return {"encoder": told, **{f"random_{n}": noise[n] for n in (1, 2, 3)}}


def values(scores: list[Any], figure: str) -> dict[str, float]:
    return {score.method: score.value for score in scores if score.figure == figure}


def test_a_number_that_features_hold_is_predicted(given: Callable[[Columns], Inputs]) -> None:
    truth = np.random.default_rng(0).normal(5, 2, SCANS)
    rows = regress.cases("dose", NUMBER, given({"dose": written(truth)})).table
    assert rows["label"].astype(float).tolist() == pytest.approx(truth, abs=1e-6)
    found = regress.judge(question("dose", NUMBER, rows, vectors(truth)))
    r2, mae = values(found.scores, "r2"), values(found.scores, "mae")
    assert r2["encoder"] > 0.99
    assert r2["random_1"] < 0.4
    test = (rows["split"] == "test").to_numpy()
    assert mae[CONSTANT] == pytest.approx(np.abs(truth[test] - truth[~test].mean()).mean(), abs=1e-5)
    own_cases = found.cases[found.cases["method"] == "encoder"]
    predicted = own_cases[own_cases["probe"] == regress.PREDICTED]
    error = (predicted["score"] - predicted["label"].astype(float)).abs().mean()
    assert mae["encoder"] == pytest.approx(error, abs=1e-9)
    assert own_cases.loc[own_cases["probe"] == "mae", "score"].mean() == pytest.approx(error, abs=1e-9)


def times() -> tuple[Array, Columns]:
    generator = np.random.default_rng(4)
    risk = generator.normal(size=SCANS)
    event, censored = generator.exponential(np.exp(-2 * risk)), generator.exponential(3.0, SCANS)
    died = np.where(event <= censored, "1", "0").tolist()
    return risk, {"months": written(np.minimum(event, censored)), "died": died}


def test_a_time_that_features_hold_is_ordered(given: Callable[[Columns], Inputs]) -> None:
    risk, columns = times()
    rows = survive.cases("months", TIME, given(columns)).table
    found = survive.judge(question("months", TIME, rows, vectors(risk)))
    order, brier = values(found.scores, "c_index"), values(found.scores, "integrated_brier")
    assert order["encoder"] > 0.75 > 0.7 > order["random_1"]
    assert order[CONSTANT] == 0.5
    assert brier["encoder"] < brier[CONSTANT]
    by_case = found.cases[(found.cases["method"] == "encoder") & (found.cases["probe"] == "integrated_brier")]
    assert by_case["score"].mean() == pytest.approx(brier["encoder"], abs=1e-9), "figures of groups follow from cases"
    assert found.remarks == {}


@pytest.mark.parametrize("kind", ["regress", "survive"])
def test_the_order_of_rows_changes_nothing(kind: str, given: Callable[[Columns], Inputs]) -> None:
    risk, columns = times()
    line = given({**columns, "dose": written(risk)})
    task, module = (NUMBER, regress) if kind == "regress" else (TIME, survive)
    rows = module.cases("t", task, line).table  # type: ignore[arg-type]
    turned = np.random.default_rng(2).permutation(len(rows))
    features = vectors(risk)
    there = module.judge(question("t", task, rows, features))
    back = module.judge(question("t", task, rows.iloc[turned], {name: of[turned] for name, of in features.items()}))
    assert there.cases.equals(back.cases)
    assert [score.value for score in there.scores] == [score.value for score in back.scores]


def test_censored_times_are_marked(given: Callable[[Columns], Inputs]) -> None:
    _, columns = times()
    columns["died"] = ["Yes", "no", "1.0", "0.0"] * (SCANS // 4)
    rows = survive.cases("months", TIME, given(columns)).table
    time, event = own.time_of(rows["label"])
    assert time.tolist() == pytest.approx([float(value) for value in columns["months"]])
    assert event.tolist() == [True, False] * (SCANS // 2)


def mistaken(columns: Columns, changed: dict[str, str]) -> Columns:
    return {name: [changed.get(name, values[0]), *values[1:]] for name, values in columns.items()}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"dose": "Mrs. Jones"}, r"tasks.t.label: column 'dose': 1 of 40 values are no finite numbers$"),
        ({"dose": "inf"}, r"tasks.t.label: column 'dose': 1 of 40 values are no finite numbers$"),
        ({"months": "soon"}, r"tasks.t.time: column 'months': 1 of 40 values are no finite numbers$"),
        ({"months": "-2"}, r"tasks.t.time: column 'months': -2 is not allowed: a time of 0 or more$"),
        ({"died": "maybe"}, r"tasks.t.event: column 'died': 1 different values are neither 1 nor 0, true nor false"),
    ],
)
def test_a_column_of_something_else_is_one_line(
    changed: dict[str, str], said: str, given: Callable[[Columns], Inputs]
) -> None:
    """Values that are text are not told: they may be names."""
    _, columns = times()
    line = given(mistaken({**columns, "dose": ["1.5"] * SCANS}, changed))
    task, module = (NUMBER, regress) if "dose" in changed else (TIME, survive)
    with pytest.raises(UserError, match=said):
        module.cases("t", task, line)  # type: ignore[arg-type]


def test_a_scan_without_a_value_is_no_case_and_told(given: Callable[[Columns], Inputs]) -> None:
    _, columns = times()
    built = survive.cases("t", TIME, given(mistaken(columns, {"died": "unknown"})))
    assert (len(built.table), built.remarks["t"]) == (SCANS - 1, "Left out: 1 scans without a label.")
    number = regress.cases("t", NUMBER, given({"dose": ["NaN", *["2", "3", "4"] * (SCANS // 3)]}))
    assert number.remarks["t"] == "Left out: 1 scans without a label."


def test_too_few_patients_or_events_are_told(given: Callable[[Columns], Inputs]) -> None:
    _, columns = times()
    columns["died"] = ["1"] * 4 + ["0"] * (SCANS - 4)
    built: Built = survive.cases("t", TIME, given(columns))
    assert built.not_evaluated == {"t": "2 events in train, 2 in test; at least 5 each are needed"}
    lone = regress.cases("t", NUMBER, given({"dose": ["1"] * 4 + [""] * (SCANS - 4)}))
    assert lone.not_evaluated["t"].startswith("1 patients in train, 1 in test; at least 2 each are needed. Left out:")


@pytest.mark.parametrize("side", ["train", "test"])
def test_numbers_that_are_all_the_same_and_times_without_an_order_are_told(
    side: str, given: Callable[[Columns], Inputs]
) -> None:
    """Else the stage stops, for no replicate has a figure."""
    same = [(n // 2 % 3 == 0) == (side == "test") for n in range(SCANS)]
    numbers = ["5" if alike else str(n) for n, alike in enumerate(same)]
    told = regress.cases("t", NUMBER, given({"dose": numbers})).not_evaluated
    assert told == {"t": f"one number only in {side}: there is nothing to tell apart"}
    columns = {"months": ["5" if alike else str(n) for n, alike in enumerate(same)], "died": ["1"] * SCANS}
    told = survive.cases("t", TIME, given(columns)).not_evaluated
    assert told == {"t": f"nobody in {side} is known to outlive the first event: there is no order"}
    columns["died"][same.index(True)] = "0"  # one at least
    assert len(survive.cases("t", TIME, given(columns)).table) == SCANS


def test_folds_keep_patients_whole_whatever_the_order() -> None:
    patients = [f"p{n // 2}" for n in range(40)]
    there, turned = folds(patients, 3), np.random.default_rng(0).permutation(40)
    assert np.array_equal(folds([patients[n] for n in turned], 3), there[turned])
    assert (there[::2] == there[1::2]).all()
    assert np.bincount(there).tolist() == [8] * FOLDS


def test_the_strongest_of_equal_penalties_is_chosen() -> None:
    assert chosen(lambda fitted, penalty: 0.0, np.arange(3)) == max(PENALTIES)
    assert chosen(lambda fitted, penalty: abs(np.log10(penalty) - 1), np.arange(3)) == 10.0


def test_features_are_scaled_by_the_training_cases_and_constant_ones_go() -> None:
    train = np.random.default_rng(0).normal(3, 5, (50, 4))
    train[:, 2] = 7.0
    seen, asked = scaled(train, train + 1)
    assert seen.shape == (50, 3)
    assert np.square(seen).sum(axis=1).mean() == pytest.approx(1.0)
    assert seen.mean(axis=0) == pytest.approx(0.0, abs=1e-12)
    assert (asked > seen).all()
    assert ridge(train[:, 2:3], train[:, 0], train[:, 2:3], ["p"] * 50, 1) == pytest.approx(train[:, 0].mean())
