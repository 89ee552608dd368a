"""Subgroups: figures are scikit-learn's on the subset, small groups are said to be, a gap is found where it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from components.evaluate.subgroups import COLUMNS, blocks_of, compare, groups_of
from components.settings import parse
from components.tasks import classify
from components.tasks.attributes import ATTRIBUTES
from components.tasks.config import EvaluateConfig
from components.tasks.interface import Measure
from tests.unit.test_tasks_cases import EVALUATE

CONFIG = parse(EvaluateConfig, EVALUATE | {"bootstrap": 400, "minimum_patients": 3}, "t")
VENDORS = {"GE MEDICAL SYSTEMS": "GE", "Philips": "PHILIPS", "SIEMENS": "SIEMENS", "": "unknown"}


def scans(number: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The task table of whole scans of one patient each, and their headers."""
    generator = np.random.default_rng(1)
    series = [f"s{index:03d}" for index in range(number)]
    rows = pd.DataFrame({"task": "t", "case": series, "patient": [f"p{index:03d}" for index in range(number)],
                         "volume": [f"data/head/preprocess/0/volumes/{name}.b2nd" for name in series]})  # fmt: skip
    headers = pd.DataFrame({"series": series, "manufacturer": generator.choice(list(VENDORS), number), "kernel": "B30f",
                            "thickness_max_mm": generator.choice([0.6, 3.0, np.nan], number)})  # fmt: skip
    return rows, headers


NO_SETS = pd.DataFrame(columns=["series", "set"], dtype="str")


def predicted(rows: pd.DataFrame, classes: list[str], task: str = "t", seed: int = 2) -> pd.DataFrame:
    """Per-case probabilities of a linear probe that knows something, as a kind writes them."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(classes, len(rows))
    raw = generator.normal(size=(len(rows), len(classes))) + 1.2 * (labels[:, None] == np.asarray(classes))
    scores = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    shown = list(enumerate(classes))[1:] if len(classes) == 2 else list(enumerate(classes))
    named = rows[["case", "patient"]].assign(task=task, method="encoder", probe="linear", label=labels)
    return pd.concat([named.assign(of_class=name, score=scores[:, index]) for index, name in shown], ignore_index=True)


@pytest.mark.parametrize("classes", [["absent", "present"], ["heart", "kidney", "liver"]])
def test_a_groups_figure_is_scikit_learns_on_the_subset(classes: list[str]) -> None:
    rows, headers = scans(120)
    cases = predicted(rows, classes)
    groups = groups_of(rows, headers, NO_SETS)
    (block,) = blocks_of(cases, classify.KIND.figures, groups, {"t"})
    table, _ = compare(block, CONFIG)
    assert list(table.columns) == COLUMNS
    of_vendor = table[table["attribute"] == "vendor"].set_index("group")
    assert sorted(of_vendor.index) == sorted(VENDORS.values())
    for text, name in VENDORS.items():
        series = headers.loc[headers["manufacturer"] == text, "series"]
        own = cases[cases["case"].isin(series)]
        assert of_vendor.loc[name, "cases"] == len(series)
        if name == "unknown":
            assert of_vendor.loc[name, "why_not"] == "not known what it is"
            continue
        aucs = [roc_auc_score(of["label"] == name_of, of["score"]) for name_of, of in own.groupby("of_class")]
        assert of_vendor.loc[name, "value"] == pytest.approx(np.mean(aucs), abs=1e-6)
        assert of_vendor.loc[name, "low"] < of_vendor.loc[name, "value"] < of_vendor.loc[name, "high"]


def test_groups_are_named_as_the_headers_say_and_sets_as_the_tables_do() -> None:
    rows, headers = scans(4)
    headers["thickness_max_mm"] = [0.6, 1.1, 5.5, np.nan]
    rows.loc[3, "volume"] = "lidc/nodule-17.nii.gz"
    groups = groups_of(rows, headers, pd.DataFrame({"series": ["s001", "s001"], "set": ["site", "other"]}))
    assert groups["slice_thickness"].tolist() == ["below 1.1 mm", "1.1 to 2.25 mm", "from 5.5 mm", "unknown"]
    assert groups["set"].tolist() == ["line", "other + site", "line", "line"]
    assert groups["vendor"].iloc[3] == groups["kernel"].iloc[3] == "unknown"
    assert list(groups.columns) == list(ATTRIBUTES)


def test_sex_age_and_contrast_are_the_receipts_and_nothing_is_made_up() -> None:
    rows, headers = scans(4)
    unsaid = groups_of(rows, headers, NO_SETS)
    assert (unsaid[["sex", "age", "contrast"]] == "unknown").all(axis=None), "receipts of before had no such columns"
    headers["sex"], headers["age"] = ["M", "F", "O", ""], ["40-49", "", "90+", None]
    headers["contrast"] = ["yes", "no", "", None]
    rows.loc[3, "volume"] = "lidc/nodule-17.nii.gz"
    groups = groups_of(rows, headers, NO_SETS)
    assert groups["sex"].tolist() == ["male", "female", "other", "unknown"]
    assert groups["age"].tolist() == ["40-49", "unknown", "90+", "unknown"]
    assert groups["contrast"].tolist() == ["yes", "no", "unknown", "unknown"]


def test_a_task_and_another_site_are_not_taken_together() -> None:
    rows, headers = scans(40)
    names = ("t", "t/site")
    cases = pd.concat([predicted(rows, ["absent", "present"], name, seed) for seed, name in enumerate(names)])
    table_of = pd.concat([rows.assign(task=name) for name in names], ignore_index=True)
    groups = groups_of(table_of, headers, NO_SETS)
    found = blocks_of(cases, classify.KIND.figures, groups, set(names))
    assert [(block.name, len(block.parts)) for block in found] == [("t", 1), ("t/site", 1)]
    parts = [f"{name}/{part}" for name in names for part in "ab"]
    cases = pd.concat([predicted(rows, ["absent", "present"], part, seed) for seed, part in enumerate(parts)])
    groups = groups_of(pd.concat([rows.assign(task=part) for part in parts], ignore_index=True), headers, NO_SETS)
    found = blocks_of(cases, classify.KIND.figures, groups, {*names, *parts})
    assert [(block.name, len(block.parts)) for block in found[:2]] == [("t", 2), ("t/site", 2)]
    assert [block.name for block in found[2:]] == sorted(parts)


def test_the_order_of_rows_changes_nothing() -> None:
    rows, headers = scans(60)
    cases = predicted(rows, ["absent", "present"])
    found = []
    for state in (None, 1):
        mixed = [
            table if state is None else table.sample(frac=1, random_state=state) for table in (rows, headers, cases)
        ]
        (block,) = blocks_of(mixed[2], classify.KIND.figures, groups_of(mixed[0], mixed[1], NO_SETS), {"t"})
        found.append(compare(block, CONFIG))
    pd.testing.assert_frame_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def gap_of(worse: str, measure: Measure | None = None) -> dict[str, Any]:
    """By vendor, of a mean of cases that is lower by .3 with one of three vendors."""
    rows, headers = scans(90)
    headers["manufacturer"] = np.tile(["SIEMENS", "Philips", "TOSHIBA"], 30)
    score = 0.6 + 0.1 * np.random.default_rng(5).normal(size=90) - 0.3 * (headers["manufacturer"] == worse)
    cases = rows[["task", "case", "patient"]].assign(
        method="encoder", probe="dice", label="x", of_class="x", score=score
    )
    measures = {"dice": measure or Measure("Dice")}
    (block,) = blocks_of(cases, measures, groups_of(rows, headers, NO_SETS), {"t"})
    return compare(block, CONFIG)[1]["vendor"]


def test_the_worst_group_is_found_with_its_gap_to_all_others() -> None:
    gap = gap_of("Philips")
    assert (gap["groups"], gap["worst"]) == (3, "PHILIPS")
    assert gap["gap"] == pytest.approx(-0.3, abs=0.06)
    assert gap["gap_low"] < gap["gap"] < gap["gap_high"] < -0.2
    assert gap["gaps"]["PHILIPS"] == [gap["gap"], gap["gap_low"], gap["gap_high"]]
    assert gap["patients"] == {"PHILIPS": 30, "SIEMENS": 30, "TOSHIBA": 30}
    assert all(gap["gaps"][group][1] > 0.05 for group in ("SIEMENS", "TOSHIBA"))
    chance = gap_of("none")
    assert chance["gap_low"] < 0 < chance["gap_high"]


def test_groups_in_which_all_is_right_leave_a_gap_possible() -> None:
    """Every draw has the same figures: 15 of 15 patients are not all patients."""
    rows, headers = scans(30)
    headers["manufacturer"] = np.tile(["SIEMENS", "Philips"], 15)
    cases = rows[["task", "case", "patient"]].assign(method="encoder", probe="dice", label="x", of_class="x", score=1.0)
    (block,) = blocks_of(cases, {"dice": Measure("Dice")}, groups_of(rows, headers, NO_SETS), {"t"})
    for gap, low, high in compare(block, CONFIG)[1]["vendor"]["gaps"].values():
        assert gap == 0
        assert -0.5 < low < -0.1
        assert high == pytest.approx(-low)


def test_of_an_error_the_worst_group_is_the_highest() -> None:
    assert gap_of("Philips", Measure("Error", (0.0, np.inf), lower_is_better=True))["worst"] != "PHILIPS"


def test_few_patients_of_a_class_are_too_few_however_many_cases() -> None:
    rows, headers = scans(60)
    headers["manufacturer"] = ["SIEMENS"] * 30 + ["Philips"] * 30
    cases = predicted(rows, ["absent", "present"])
    siemens = cases["case"] < "s030"
    present = siemens & (cases["label"] == "present")
    cases.loc[present, "patient"] = "p000"
    (block,) = blocks_of(cases, classify.KIND.figures, groups_of(rows, headers, NO_SETS), {"t"})
    table, gaps = compare(block, CONFIG)
    row = table[table["group"] == "SIEMENS"].iloc[0]
    assert row["least_patients"] == 1
    assert np.isnan(row["value"])
    assert row["why_not"] == "fewer than 3 patients of a class"
    assert gaps["vendor"] == {
        "figure": "linear_auc", "patients": {"PHILIPS": min((cases[~siemens]["label"] == name).sum() for name in
        ("absent", "present")), "SIEMENS": 1}, "needed": 3, "of_classes": True, "groups": 1,
    }  # fmt: skip


def test_a_mean_over_parts_is_of_the_parts_that_all_compared_groups_have() -> None:
    rows, headers = scans(80)
    headers["manufacturer"] = np.tile(["SIEMENS", "Philips"], 40)
    names = ("t/a", "t/b", "t/c")
    parts = [predicted(rows, ["absent", "present"], name, seed) for seed, name in enumerate(names)]
    philips = parts[2]["case"].isin(headers.loc[headers["manufacturer"] == "Philips", "series"])
    parts[2].loc[philips, "label"] = "absent"  # of part c Philips has one class
    table_of = pd.concat([rows.assign(task=name) for name in names], ignore_index=True)
    groups = groups_of(table_of, headers, NO_SETS)
    whole, *_ = blocks_of(pd.concat(parts), classify.KIND.figures, groups, {"t"})
    table, gaps = compare(whole, CONFIG)
    for vendor in ("SIEMENS", "Philips"):
        series = headers.loc[headers["manufacturer"] == vendor, "series"]
        own = [part[part["case"].isin(series)] for part in parts[:2]]
        expected = np.mean([roc_auc_score(of["label"] == "present", of["score"]) for of in own])
        found = table[table["group"] == vendor.upper()].iloc[0]
        assert found["value"] == pytest.approx(expected, abs=1e-6)
        assert found["cases"] == 40
    assert gaps["vendor"]["groups"] == 2
