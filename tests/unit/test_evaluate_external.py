"""External sets in the report: figures of both sides, what they fall by, and what is said where there is no fall."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.evaluate.comparisons import external_sets
from components.evaluate.layout import Layout
from components.evaluate.report import averaged_parts
from components.evaluate.stage import evaluate
from components.evaluate.words import FALLS, NO_FALL, number, verdict_of_fall
from components.tasks.classify import FIGURES
from components.tasks.interface import Measure
from components.tasks.table import Inputs
from flows.artifacts import fall_rows
from tests.unit.test_evaluate_report import Page, page_of
from tests.unit.test_evaluate_stage import TASKS, tiny_embedder, tiny_line

SWAPPED = {"liver": "lung_left", "lung_left": "kidney_right", "kidney_right": "liver"}
MEASURES = {"auc": Measure("AUC"), "mae": Measure("Error", (0.0, np.inf), lower_is_better=True)}


def with_site(folder: Path, of: Inputs, name: str, relabel: dict[str, str]) -> Inputs:
    """Another site's six patients, scanned like ours; with ``relabel`` its readers call organs by other names."""
    theirs = tiny_line(folder)
    kept = theirs.curated[theirs.curated["retest_of"] == ""].iloc[:6]
    ids = {series: f"{name}_{series}" for series in kept["series"]}
    scans = kept.assign(series=kept["series"].map(ids), patient=name + kept["patient"], split="held_out")
    notes = theirs.annotations[theirs.annotations["series"].isin(ids)]
    notes = notes.assign(series=notes["series"].map(ids), structure=notes["structure"].replace(relabel))
    sets = pd.DataFrame({"set": name, "series": list(ids.values())})
    return replace(
        of,
        curated=pd.concat([of.curated, scans], ignore_index=True),
        annotations=pd.concat([of.annotations, notes], ignore_index=True),
        labelled=pd.concat([of.labelled, sets], ignore_index=True),
    )


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("external")
    inputs = with_site(folder / "alike", tiny_line(folder / "own"), "alike", {})
    inputs = with_site(folder / "swapped", inputs, "swapped", SWAPPED)
    organs = TASKS["organs"].model_copy(update={"external": ("swapped", "alike", "void")})
    evaluate(inputs, {"organs": organs}, tiny_embedder(), Layout(folder / "out"))
    return folder / "out" / "evaluate"


def rows_of(out: Path) -> list[str]:
    """Text of each row of the table of external sets."""
    section = (out / "report.html").read_text().partition("<h3>External sets</h3>")[2]
    text = Page(section.partition("<table>")[2].partition("</table>")[0]).text
    return [" ".join(line.split()) for line in text.splitlines() if "[" in line]


def test_each_figure_stands_with_both_sides_its_fall_and_a_verdict(reported: Path) -> None:
    metrics = json.loads((reported / "metrics.json").read_text())
    rows = rows_of(reported)
    expected = []
    for site in ("alike", "swapped"):
        for figure, measure in FIGURES.items():
            if figure in metrics["falls"]["organs"][site]:
                here, there = (metrics["tasks"][part][figure] for part in ("organs", f"organs/{site}"))
                fall = metrics["falls"]["organs"][site][figure]
                assert fall["internal_patients"] == fall["external_patients"] == 6
                limits = [
                    f"{number(of[v], signed)} [{number(of[a], signed)}, {number(of[b], signed)}]"
                    for of, v, a, b, signed in (
                        (here, "value", "low", "high", False),
                        (there, "value", "low", "high", False),
                        (fall, "fall", "fall_low", "fall_high", True),
                    )
                ]
                mark = f"▼ {FALLS}" if fall["fall_low"] > 0 else f"● {NO_FALL}"
                lower = ", lower is better" if measure.lower_is_better else ""
                expected.append(measure.title + lower + "".join(limits) + mark)
    assert len(expected) >= 8
    assert [row.removeprefix("alike").removeprefix("swapped").removeprefix(COUNTS) for row in rows] == expected
    assert [row for row in rows if COUNTS in row] == [rows[0], rows[len(rows) // 2]], "a set is named once"


COUNTS = "6 patients internal, 6 patients external"


def test_the_first_figure_is_said_in_a_sentence(reported: Path) -> None:
    text = " ".join(page_of(reported).text.split())
    falls = json.loads((reported / "metrics.json").read_text())["falls"]["organs"]
    assert falls["swapped"]["linear_auc"]["fall_low"] > 0 > falls["alike"]["linear_auc"]["fall_low"]
    for site, verdict in (("alike", NO_FALL), ("swapped", FALLS)):
        numbers = falls[site]["linear_auc"]
        start = text.index(f"{site}: Linear probe, AUC {number(numbers['external'])} [")
        internal, fall = number(numbers["internal"]), number(numbers["fall"], signed=True)
        said = text[start : start + 160]
        assert f"] (6 patients), internal {internal} [" in said
        assert f"] (6 patients); fall {fall} [" in said
        assert f"]: {verdict}." in said
    assert "organs/voidno accepted evaluation series" in text, "a set without a case is not evaluated, and said to be"


def test_what_dvc_and_prefect_show_has_the_falls(reported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    falls = json.loads((reported / "metrics.json").read_text())["falls"]["organs"]
    shown = json.loads((reported / "primary.json").read_text())["organs"]
    assert {key: of for key, of in shown.items() if key.startswith("fall_")} == {
        f"fall_{site}": falls[site]["linear_auc"]["fall"] for site in ("alike", "swapped")
    }
    line = reported.parents[1] / "data" / "wholebody"
    line.mkdir(parents=True)
    (line / "evaluate").symlink_to(reported)
    monkeypatch.chdir(reported.parents[1])
    rows = fall_rows("wholebody")
    assert len(rows) == sum(len(of) for of in falls.values())
    found = next(row for row in rows if (row["external set"], row["figure"]) == ("swapped", "linear_auc"))
    assert found["task"] == "organs"
    assert found["fall"] == round(falls["swapped"]["linear_auc"]["fall"], 4)
    assert found["external_patients"] == 6


def test_a_mean_is_said_to_be_of_its_own_parts(reported: Path) -> None:
    """Of findings there is one, over findings; of organs there is none, wherever else they are tested."""
    assert not re.search(r"mean over \d+ parts", page_of(reported).text)
    rows = pd.DataFrame({"task": ["f/ich", "f/tumour", "f/away/ich", "f/away/tumour", "organs", "organs/away"]})
    judged = ["f", "f/ich", "f/tumour", "f/away", "f/away/ich", "f/away/tumour", "organs", "organs/away"]
    task = TASKS["organs"].model_copy(update={"external": ("away",)})
    assert averaged_parts("f", judged, rows, task) == ["f/ich", "f/tumour"]
    assert averaged_parts("organs", judged, rows, task) == []


def metrics(fall: dict[str, Any] | None) -> dict[str, Any]:
    numbers = {"auc": {"value": 0.9, "low": 0.8, "high": 0.95}}
    return {
        "tasks": {"mine": numbers, "mine/away": numbers},
        "falls": {} if fall is None else {"mine": {"away": {"auc": fall}}},
    }


def test_a_set_whose_figure_is_of_other_parts_is_said_to_have_no_fall() -> None:
    (found,) = external_sets(metrics(None), MEASURES, "mine", ("away", "never"))
    assert found.rows == ()
    assert found.said == "away: no fall, for the internal figures are not of the same parts of the task."
    assert external_sets(metrics(None), MEASURES, "mine", ()) == ()


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.01, 0.2, FALLS), (0.0, 0.2, NO_FALL), (-0.1, 0.2, NO_FALL), (-0.2, -0.1, NO_FALL), (np.nan, np.nan, NO_FALL)],
)
def test_a_figure_falls_where_all_of_the_interval_lies_above_zero(low: float, high: float, word: str) -> None:
    fall = {"fall": (low + high) / 2, "fall_low": low, "fall_high": high, "internal_patients": 1,
            "external_patients": 1200}  # fmt: skip
    assert verdict_of_fall(fall) == word
    (found,) = external_sets(metrics(fall), MEASURES, "mine", ("away",))
    assert found.patients == "1 patient internal, 1,200 patients external"
    assert (len(found.rows), found.rows[0].verdict) == (1, word)


def test_a_task_without_external_sets_has_no_such_table(tmp_path: Path) -> None:
    evaluate(tiny_line(tmp_path), {"stability": TASKS["stability"]}, tiny_embedder(), Layout(tmp_path / "out"))
    page = page_of(tmp_path / "out" / "evaluate")
    assert "External set" not in page.text
