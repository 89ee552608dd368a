"""The task table: what is a case, what is left out and why, and no shortcut by organ."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.preprocess.config import PreprocessConfig
from components.settings import ParamsError, parse
from components.tasks.annotated import findings, lesions, organs, structure_class
from components.tasks.config import EvaluateConfig
from components.tasks.interface import Scanned
from components.tasks.stability import KIND, StabilityConfig
from components.tasks.stability import cases as stability
from components.tasks.table import Inputs, check_splits, usable

EVALUATE: dict[str, Any] = {
    "selection": None, "device": "cpu", "pooling": "own",
    "seed": 1, "random_seeds": [1, 2], "bootstrap": 100, "linear_c": 10.0, "neighbours": 3, "minimum_patients": 2,
    "histogram": {"bins": 8, "low_hu": -1000, "high_hu": 1000}, "centre_mm": 8.0,
    "nodule_window_mm": [6.0, 24.0, 24.0], "lidc_nodules": None,
}  # fmt: skip
PREPROCESS = {
    "orientation": "SPL", "spacing_mm": [3.0, 1.0, 1.0], "enlarging": "linear", "foreground_hu": -500,
    "foreground_margin_mm": 5.0, "clip_hu": [-1024, 3071], "max_memory_gib": 4.0,
}  # fmt: skip


def inputs(line: str, scans: list[tuple[str, str, str, str]], notes: list[tuple[Any, ...]]) -> Inputs:
    """``scans``: series, patient, split, retest_of. ``notes``: series, structure, kind, x, present."""
    curated = pd.DataFrame(scans, columns=["series", "patient", "split", "retest_of"])
    curated = curated.assign(role="evaluation", status="accepted", source="phantom", volume="v/" + curated["series"])
    table = pd.DataFrame(notes, columns=["series", "structure", "kind", "x", "present"])
    patient = table["series"].map(curated.set_index("series")["patient"])
    annotations = table.assign(patient=patient, y=0.0, z=0.0, volume_ml=1.0)
    sees = "scan" if line == "head" else "crop"
    return Inputs(
        line, sees, curated, annotations, parse(EvaluateConfig, EVALUATE, "t"), parse(PreprocessConfig, PREPROCESS, "t")
    )


GALLERY = StabilityConfig(kind="stability", gallery=2)
FOUR = [("s1", "p1", "train", ""), ("s2", "p2", "train", ""), ("s3", "p3", "test", ""), ("s4", "p4", "test", "")]


@pytest.mark.parametrize(
    ("structure", "organ"), [("kidney_left", "kidney"), ("lung_right", "lung"), ("liver", "liver")]
)
def test_sides_are_one_class(structure: str, organ: str) -> None:
    assert structure_class(structure) == organ


def test_organ_points_are_cases_but_second_scans_and_rejected_ones_are_not() -> None:
    scans = [*FOUR, ("s5", "p4", "test", "s4")]
    given = inputs("wholebody", scans, [(s, "liver", "organ", 1.0, True) for s, *_ in scans])
    given.curated.loc[0, "status"] = "rejected"
    assert organs("organs", given).table["case"].tolist() == ["s2/liver", "s3/liver", "s4/liver"]


def test_scans_of_labelled_sets_are_apart() -> None:
    given = inputs("wholebody", [("s1", "p1", "train", ""), ("s2", "p2", "held_out", "")], [])
    assert given.scans()["series"].tolist() == ["s1"]


def test_knowing_the_organ_says_nothing_about_lesion_or_not() -> None:
    generator = np.random.default_rng(0)
    scans = [(f"s{i:02d}", f"p{i:02d}", "train" if i % 2 else "test", "") for i in range(40)]
    notes: list[tuple[Any, ...]] = []
    for series, *_ in scans:
        for organ, share in (("liver", 0.7), ("lung", 0.3)):
            notes.append((series, f"lesion_{organ}", "lesion", 1.0, bool(generator.random() < share)))
            notes.append((series, f"lesion_{organ}", "lesion", 2.0, False))
    table = lesions("lesions", inputs("wholebody", scans, notes)).table
    organ = table["case"].str.extract(r"lesion_([a-z]+)")[0]
    share = (table["label"] == "lesion").groupby([table["split"], organ]).mean()
    for split in ("train", "test"):
        assert share[split].nunique() == 1


def test_without_control_points_lesions_stand_beside_organs_of_lesion_free_patients() -> None:
    notes = [(s, "liver", "organ", 1.0, True) for s, *_ in FOUR]
    notes += [("s1", "lesion_liver", "lesion", 2.0, True), ("s3", "lesion_liver", "lesion", 2.0, True)]
    built = lesions("lesions", inputs("wholebody", FOUR, notes))
    assert sorted(built.table["case"]) == ["s1/lesion_liver", "s2/liver", "s3/lesion_liver", "s4/liver"]
    assert "place within the organ may tell" in built.remarks["lesions"]


def test_findings_are_whole_volumes() -> None:
    given = inputs("head", FOUR, [(s, "finding_ich", "finding", 3.0, s in ("s1", "s3")) for s, *_ in FOUR])
    table = findings("findings", given).table
    assert table["task"].unique().tolist() == ["findings/ich"]
    assert table["label"].tolist() == ["present", "absent", "present", "absent"]
    assert table[["x", "y", "z"]].isna().all(axis=None)


def test_stability_pairs_first_and_second_scan() -> None:
    scans = [*FOUR, ("s5", "p4", "test", "s4"), ("s6", "p3", "test", "s3")]
    notes = [(s, "liver", "organ", 1.0, True) for s, *_ in scans]
    table = stability("stability", GALLERY, inputs("wholebody", scans, notes)).table
    again = table[table["split"] == "retest"]
    assert again["case"].tolist() == ["s3/liver/retest", "s4/liver/retest", "s3/retest", "s4/retest"]
    assert again["volume"].tolist() == ["v/s6", "v/s5", "v/s6", "v/s5"]
    volumes = table[(table["task"] == "stability/volume") & (table["split"] == "test")]
    assert volumes["patient"].tolist() == ["p1", "p2", "p3", "p4"]  # two others, as the gallery says


def test_one_pair_of_scans_is_too_few_for_an_interval() -> None:
    scans = [*FOUR, ("s5", "p4", "test", "s4")]
    built = stability("stability", GALLERY, inputs("wholebody", scans, []))
    assert built.table.empty
    assert built.not_evaluated["stability/volume"].startswith("1 accepted pairs of first and second scan; at least 2")


def test_the_first_two_scans_of_a_patient_in_the_order_of_a_sets_table_are_a_pair() -> None:
    """Of p2 a third scan, of p3 one only; p4's second was rejected, and p5 is of another set."""
    rows = [
        ("s2", "p1"),
        ("s1", "p1"),
        ("s3", "p2"),
        ("s4", "p2"),
        ("s5", "p2"),
        ("s6", "p3"),
        ("s7", "p4"),
        ("s8", "p4"),
    ]
    scans = [(series, patient, "held_out", "") for series, patient in [*rows, ("s9", "p5")]]
    given = inputs("wholebody", scans, [(series, "liver", "organ", 1.0, True) for series, *_ in scans])
    given.curated.loc[given.curated["series"] == "s8", "status"] = "rejected"
    labelled = pd.DataFrame(rows, columns=["series", "patient"]).assign(set="twice", split="test")
    labelled["row"] = range(len(labelled))
    other = pd.DataFrame({"set": "other", "row": 0, "series": "s9", "patient": "p5", "split": "test"}, index=[0])
    given = replace(given, labelled=pd.concat([labelled.iloc[::-1], other]))
    task = StabilityConfig(kind="stability", set="twice", gallery=1)
    built = stability("retest", task, given)
    table = built.table
    assert set(table["task"]) == {"retest/volume"}, "annotations are those of the line's own scans"
    again = table[table["split"] == "retest"].set_index("case")["volume"].to_dict()
    assert again == {"s2/retest": "v/s1", "s3/retest": "v/s4"}
    assert set(table.loc[table["split"] == "test", "case"]) == {"s2", "s3", "s6"}, "and one more, as the gallery says"
    few = stability("retest", task, replace(given, labelled=labelled.iloc[2:]))
    assert few.not_evaluated == {
        "retest/volume": "1 accepted pairs of first and second scan; at least 2 patients are needed"
    }
    scanned = Scanned(trunk=True, sees="crop", retests=False, nodules=False)
    assert KIND.parts("retest", task, scanned) == ["retest/volume"]
    assert KIND.parts("retest", GALLERY, scanned) == []


def test_what_cannot_be_evaluated_comes_back_with_its_reason() -> None:
    empty = inputs("wholebody", FOUR, [])
    assert organs("organs", empty).not_evaluated == {"organs": "no organ points among the 4 accepted evaluation series"}
    assert set(stability("stability", GALLERY, empty).not_evaluated) == {"stability/volume", "stability/organs"}
    nobody = replace(empty, curated=empty.curated.assign(role="pretrain"))
    assert lesions("lesions", nobody).not_evaluated == {"lesions": "no accepted evaluation series"}
    one_class = organs("organs", inputs("wholebody", FOUR, [(s, "liver", "organ", 1.0, True) for s, *_ in FOUR]))
    assert "one class only (liver)" in usable(one_class, 2).not_evaluated["organs"]


def test_a_class_with_too_few_patients_is_left_out_with_a_remark() -> None:
    notes = [(s, organ, "organ", 1.0, True) for s, *_ in FOUR for organ in ("liver", "spleen")]
    built = usable(organs("organs", inputs("wholebody", FOUR, [*notes, ("s1", "heart", "organ", 1.0, True)])), 2)
    assert set(built.table["label"]) == {"liver", "spleen"}
    assert "heart: 1 patients in train, 0 in test" in built.remarks["organs"]


def test_a_patient_on_both_sides_of_a_split_is_an_error() -> None:
    table = pd.DataFrame({"task": "organs", "patient": ["p1", "p1"], "split": ["train", "test"]})
    with pytest.raises(ValueError, match="patient p1 is in train and in test"):
        check_splits(table)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"random_seeds": [1, 1]}, "random_seeds: [1, 1] is not allowed: each once"),
        ({"neighbors": 3}, "did you mean 'neighbours'?"),
        ({"histogram": {"bins": 8, "low_hu": 5, "high_hu": 5}}, "the lower first"),
        ({"lidc_nodules": "abc"}, "evaluate.lidc_nodules: 'abc' is not allowed"),
    ],
)
def test_a_mistake_in_the_parameters_is_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ParamsError) as raised:
        parse(EvaluateConfig, EVALUATE | change, "wholebody.evaluate")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
