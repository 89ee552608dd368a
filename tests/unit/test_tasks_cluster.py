"""Kind ``cluster``: organs that lie apart are found, whatever the order of rows; what cannot be judged is told."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import normalized_mutual_info_score, silhouette_score

from components.figures.arrays import Array
from components.tasks.cluster import ClusterConfig, cases, directions, judge
from components.tasks.pictures import two_components
from tests.unit.task_inputs import inputs, question

TASK = ClusterConfig(kind="cluster", starts=3)
SCANS = [(f"s{n}", f"p{n}", "test" if n % 2 else "train") for n in range(8)]
POINTS = [
    (s, organ, float(n), 0.0, 0.0) for s, *_ in SCANS for n, organ in enumerate(["liver", "kidney_left", "spine"])
]


def rows() -> pd.DataFrame:
    return cases("structure", TASK, inputs(SCANS, POINTS)).table


def vectors(table: pd.DataFrame, apart: float) -> dict[str, Array]:
    """Of an encoder whose organs lie ``apart`` along an axis each, and of others that know nothing."""
    noise = np.random.default_rng(0).normal(size=(4, len(table), 3))
    at = np.eye(3)[pd.Categorical(table["label"]).codes.astype(np.int64)]
    return {"encoder": at * apart + noise[0], **{f"random_{n}": noise[n] for n in (1, 2, 3)}}


def values(scores: list, method: str) -> dict[str, float]:  # type: ignore[type-arg]
    return {score.figure: score.value for score in scores if score.method == method}


def test_cases_are_organs_of_test_patients() -> None:
    table = rows()
    assert set(table["split"]) == {"test"}
    assert sorted(set(table["label"])) == ["kidney", "liver", "spine"]
    assert len(table) == 12


def test_organs_that_lie_apart_are_found() -> None:
    table = rows()
    found = judge(question("structure", TASK, table, vectors(table, 100.0)))
    clear, blurred = values(found.scores, "encoder"), values(found.scores, "random_1")
    assert clear["nmi"] == clear["purity"] == 1.0
    assert clear["silhouette"] > 0.9
    assert blurred["nmi"] < 0.7
    assert set(found.pictures) == {"components"}


def test_figures_follow_from_the_cases() -> None:
    table = rows()
    found = judge(question("structure", TASK, table, vectors(table, 2.0)))
    of = found.cases[found.cases["method"] == "encoder"]
    clusters = of[of["probe"] == "cluster"]
    figures = values(found.scores, "encoder")
    assert figures["nmi"] == pytest.approx(normalized_mutual_info_score(clusters["label"], clusters["score"]))
    assert figures["silhouette"] == pytest.approx(of.loc[of["probe"] == "silhouette", "score"].mean(), abs=1e-6)
    unit = directions(vectors(table, 2.0)["encoder"])
    assert figures["silhouette"] == pytest.approx(silhouette_score(unit, table["label"]), abs=1e-9)


def test_the_order_of_rows_changes_nothing() -> None:
    table, turned = rows(), rows().iloc[::-1]
    given = vectors(table, 2.0)
    there = judge(question("structure", TASK, table, given))
    back = judge(question("structure", TASK, turned, {name: of[::-1] for name, of in given.items()}))
    assert values(there.scores, "encoder") == values(back.scores, "encoder")
    assert there.cases.equals(back.cases)


def test_what_cannot_be_judged_is_told() -> None:
    lone = [("s1", "heart", 9.0, 0.0, 0.0)]
    built = cases("structure", TASK, inputs(SCANS, POINTS + lone))
    assert built.remarks["structure"] == "Classes left out, too few patients: heart: 1 patients."
    assert "heart" not in set(built.table["label"])
    one = cases("structure", TASK, inputs(SCANS, [point for point in POINTS if point[1] == "liver"]))
    assert one.not_evaluated["structure"] == "1 classes of at least 2 test patients, 2 needed"
    training = [(series, patient, "train") for series, patient, _ in SCANS]
    assert cases("structure", TASK, inputs(training, POINTS)).not_evaluated == {
        "structure": "no organ point of a test patient"
    }


def test_principal_components_are_those_of_the_largest_spread_with_a_fixed_sign() -> None:
    line = np.outer(np.arange(5.0), [3.0, 4.0, 0.0])
    places, share = two_components(line)
    assert places[:, 0] == pytest.approx(np.arange(-2.0, 3.0) * 5)
    assert share == pytest.approx([1.0, 0.0])
    assert two_components(-line)[0][:, 0] == pytest.approx(places[::-1, 0])
    assert two_components(np.ones((4, 1)))[0].shape == (4, 2)
