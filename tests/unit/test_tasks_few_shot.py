"""Few labels: K cases a class, each of another patient, drawn by a hash of the patients."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from test_tasks_scores import CLASSES, config, features_of, table_of

from components.tasks.few_shot import DRAWS, curves, draw_curves, drawn, few_shot_table
from components.tasks.judging import Part
from components.tasks.pictures import save

SIGNAL = {"encoder": 1.5, "radiomics": 0.0, "hu_statistics": 0.5, **{f"random_{n}": 0.2 for n in range(6)}}


@pytest.fixture(scope="module")
def part() -> Part:  # of 160 cases, 80 of them to train on
    return Part.of("organs", table_of(160), config())


def test_each_class_has_k_training_cases_of_as_many_patients(part: Part) -> None:
    for count in (1, 2, 5, 10):
        rows = drawn(part, count, 0, 1)
        assert rows is not None
        assert not part.test[rows].any()
        for name in CLASSES:
            inside = rows[part.labels[rows] == name]
            assert len(inside) == len(set(part.patients[inside].tolist())) == count


def test_a_larger_draw_holds_the_smaller_and_draws_differ(part: Part) -> None:
    sizes = [drawn(part, count, 3, 1) for count in (1, 2, 5)]
    assert all(set(a.tolist()) < set(b.tolist()) for a, b in itertools.pairwise(sizes))
    assert len({tuple(part.patients[drawn(part, 5, draw, 1)]) for draw in range(DRAWS)}) == DRAWS, "of other patients"
    assert not np.array_equal(drawn(part, 5, 0, 1), drawn(part, 5, 0, 2))


def test_a_draw_is_a_function_of_seed_and_cases_whatever_the_order_of_rows(part: Part) -> None:
    table = table_of(160).sample(frac=1.0, random_state=0)
    other = Part.of("organs", table, config())
    assert np.array_equal(drawn(part, 5, 0, 1), drawn(other, 5, 0, 1))
    labels = table["label"].where(table["split"] == "train", "a")
    labels[table.index[table["split"] == "test"][:40]] = "b"
    moved = Part.of("organs", table.assign(label=labels), config())
    assert np.array_equal(drawn(part, 5, 0, 1), drawn(moved, 5, 0, 1)), "test labels take no part"


def test_with_too_few_patients_there_is_no_draw(part: Part) -> None:
    patients = len(set(part.patients[(~part.test) & (part.labels == "a")].tolist()))
    assert drawn(part, patients + 1, 0, 1) is None


def test_the_curve_is_the_mean_over_draws_and_rises_with_labels(part: Part, tmp_path: Path) -> None:
    features = features_of(table_of(160), SIGNAL).by_method
    found = curves(part, features, (20, 1, 500), config())
    assert {count for _, count in found} == {1, 20}
    assert {method for method, _ in found} == {"encoder", "random", "radiomics", "hu_statistics"}
    table = few_shot_table({"organs": (part, found)}, None).set_index(["method", "cases_per_class"])
    assert table.loc[("encoder", 20), "value"] > table.loc[("encoder", 1), "value"]
    assert table.loc[("encoder", 20), "value"] > table.loc[("random", 20), "value"] + 0.1
    row = table.loc[("encoder", 1)]
    aucs = found["encoder", 1][:, 0]
    assert row["draws"] == DRAWS == len(aucs)
    assert (row["value"], row["lowest"], row["highest"]) == pytest.approx(
        (aucs.mean(), aucs.min(), aucs.max()), abs=1e-6
    )
    assert row["low"] < row["value"] < row["high"]
    save(draw_curves(table.reset_index(), "organs"), tmp_path / "few.png")
    assert (tmp_path / "few.png").stat().st_size > 5_000


def test_a_family_is_the_mean_over_its_parts(part: Part) -> None:
    one = curves(part, features_of(table_of(160), SIGNAL, seed=1).by_method, (2,), config())
    two = curves(part, features_of(table_of(160), SIGNAL, seed=2).by_method, (2,), config())
    table = few_shot_table({"f/a": (part, one), "f/b": (part, two)}, "f").set_index(["task", "method"])["value"]
    assert table["f", "encoder"] == pytest.approx((table["f/a", "encoder"] + table["f/b", "encoder"]) / 2, abs=1e-6)
