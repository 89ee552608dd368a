"""The report on a tiny line: every picture in the page, no request, and no name that breaks it."""

from __future__ import annotations

import base64
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from components.evaluate.bycase import by_case
from components.evaluate.layout import Layout
from components.evaluate.published import PublishedFigure
from components.evaluate.report import Beside
from components.evaluate.stage import evaluate
from components.evaluate.words import number, question, verdict
from components.files import sha256_tree
from components.tables import read_table
from components.tasks import classify
from components.tasks.attributes import ATTRIBUTES
from components.tasks.interface import Measure
from components.tasks.stability import KIND as STABILITY
from tests.unit.test_evaluate_stage import TASKS, tiny_embedder, tiny_line

NASTY = {
    "liver": 'a$b_{c}$ <img src=x onerror="alert(1)">',
    "lung_left": "&amp;'\"</td>",
    "kidney_right": "$\\frac{1}{",
}
ACCOUNT = {"rows": 9, "rows_without_key": 1, "rows_without_scan": [0, 4], "scans": 6, "scans_without_row": 3,
           "patients": 5, "patients_by_split": {"test": 2, "train": 3},
           "masks": {"masks": 7, "masks_without_scan": ["f1"], "masks_of_no_row": [], "masks_of_several_scans": [],
                     "scans_without_masks": ["s1", "s2"]}}  # fmt: skip
MASKS = {"label_maps": 3, "empty": [], "rejected": {}, "not_used": {"s7": "labels f7: a grid <b>of</b> 9 voxels"},
         "structures": {"liver<i>": {"scans": 2, "code": "SCT 10200004 Liver"}, "void": {"scans": 0, "code": ""}},
         }  # fmt: skip


class Page(HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny line with organs whose names are hostile, one scan rejected and a labelled set."""
    folder = tmp_path_factory.mktemp("reported")
    inputs = tiny_line(folder)
    inputs.annotations["structure"] = inputs.annotations["structure"].replace(NASTY)
    lost = inputs.curated.iloc[[0]].assign(series="s99", patient="p99", status="rejected", reason="gantry_tilt;gap")
    headers = inputs.curated[["series"]].assign(
        manufacturer=["A<i>$", "B"] * 7 + ["B"], kernel="K$1$", thickness_max_mm=3.0
    )
    labelled = pd.DataFrame(columns=["series", "set"], dtype="str")
    theirs = PublishedFigure(task="organs", figure="linear_auc", value=0.123, model="Peer <b>", source="a paper & more")
    curated = pd.concat([inputs.curated, lost], ignore_index=True)
    beside = Beside(curated, {"site<b>": ACCOUNT}, headers, labelled, (theirs,), {"site<b>": MASKS})
    evaluate(inputs, TASKS, tiny_embedder(), Layout(folder / "out"), beside)
    return folder / "out" / "evaluate"


def page_of(out: Path) -> Page:
    return Page((out / "report.html").read_text())


def test_every_picture_is_in_the_page_with_words_for_those_who_do_not_see_it(reported: Path) -> None:
    pictures = page_of(reported).of("img")
    held = {base64.b64decode(picture["src"].removeprefix("data:image/png;base64,")) for picture in pictures}
    own = {path.read_bytes() for path in (reported / "plots").glob("*.png")}
    of_tasks = {path.read_bytes() for path in (reported.parent / "tasks").rglob("*.png")}
    assert held == own | of_tasks
    # Differences; organs: figures, classes, projection, groups; stability: figures and groups of two parts.
    assert len(own) == 9
    assert of_tasks, "a classifier's calibration"
    for picture in pictures:
        assert len(picture["alt"]) > 20
        assert int(picture["width"]) <= 1180


def test_the_page_asks_for_nothing_and_runs_nothing(reported: Path) -> None:
    page = page_of(reported)
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "base", "form")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "background"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert "url(" not in (reported / "report.html").read_text()
    assert "default-src 'none'" in page.of("meta")[2]["content"]


def test_names_are_text_in_page_and_pictures(reported: Path) -> None:
    page = page_of(reported)
    for name in (
        *NASTY.values(),
        "site<b>",
        "labels f7: a grid <b>of</b> 9 voxels",
        "liver<i> (SCT 10200004 Liver) 2;",
    ):
        assert name in page.text, name
    assert not [picture for picture in page.of("img") if picture["src"] == "x"]


def test_every_anchor_leads_somewhere_and_no_id_is_there_twice(reported: Path) -> None:
    page = page_of(reported)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"].removeprefix("#") for link in page.of("a")} <= set(ids)
    assert page.of("html") == [{"lang": "en"}]


def test_the_page_says_what_was_not_evaluated_what_was_lost_and_what_a_set_holds(reported: Path) -> None:
    text = " ".join(page_of(reported).text.split())
    assert "Evaluation of the wholebody line, 12 patients" in text
    assert "no lesions among the 12 accepted evaluation series" in text
    assert "Of 16 scans that were to be evaluated on, 15 were accepted" in text
    assert "gantry tilt: 1" in text
    assert "rows 1, 5 of the table" in text  # as a person counts
    assert "test 2, train 3" in text
    assert not re.search(r"\bnan\b|\bNone\b", text)


def test_subgroups_stand_in_page_table_and_metrics(reported: Path) -> None:
    table = pd.read_csv(reported / "subgroups.csv", keep_default_na=False)
    gaps = json.loads((reported / "metrics.json").read_text())["subgroups"]
    assert set(table["task"]) == set(gaps) == {"organs", "stability/organs", "stability/volume"}
    assert set(table["attribute"]) == set(gaps["organs"]) == set(ATTRIBUTES)
    assert (gaps["organs"]["kernel"]["groups"], set(gaps["organs"]["kernel"]["patients"])) == (1, {"K$1$"})
    text = " ".join(page_of(reported).text.split())
    assert "K$1$" in text
    assert "Sex, age in decades and contrast are what DICOM headers say" in text
    all_cases = table[(table["task"] == "organs") & (table["attribute"] == "set")].iloc[0]
    whole = json.loads((reported / "metrics.json").read_text())["tasks"]["organs"]["linear_auc"]
    assert [float(all_cases[name]) for name in ("value", "low", "high")] == pytest.approx(
        [whole[name] for name in ("value", "low", "high")], abs=1e-6
    )


def test_numbers_in_the_page_are_those_of_the_metrics(reported: Path) -> None:
    text = " ".join(page_of(reported).text.split())
    metrics = json.loads((reported / "metrics.json").read_text())
    for figures in metrics["tasks"].values():
        for numbers in figures.values():
            limits = f"[{number(numbers['low'])}, {number(numbers['high'])}]"
            assert f"{number(numbers['value'])} {limits}" in text
            assert f"{number(numbers['difference'], signed=True)} [" in text


def test_figures_of_others_stand_beside_ours(reported: Path) -> None:
    text = "".join(page_of(reported).text.split())
    ours = json.loads((reported / "metrics.json").read_text())["tasks"]["organs"]["linear_auc"]
    said = f"Peer <b> 0.123 {number(ours['value'])} [{number(ours['low'])}, {number(ours['high'])}] – a paper & more"
    assert said.replace(" ", "") in text


def test_what_the_encoder_adds_to_baselines_stands_by_itself(reported: Path) -> None:
    page = page_of(reported)
    (added,) = json.loads((reported / "metrics.json").read_text())["adds_to"].values()
    assert set(added) == {"hu_statistics", "radiomics", "windows"}
    text = " ".join(page.text.split())
    for figures in added.values():
        numbers = figures["linear_auc"]
        assert number(numbers["alone"]) in text
        for prefix in ("", "untrained_"):
            of = [number(numbers[f"{prefix}{name}"], signed=True) for name in ("difference", "low", "high")]
            assert f"{of[0]} [{of[1]}, {of[2]}]" in text
    assert "Encoder+" not in page.text, "two kinds of features together are no method by themselves"


def test_equal_inputs_give_an_equal_page_and_pictures_of_a_task_that_is_gone_go(reported: Path, tmp_path: Path) -> None:
    inputs = tiny_line(tmp_path)
    asked: dict[str, Any] = {"stability": TASKS["stability"]}
    layout = Layout(tmp_path / "out")
    evaluate(inputs, TASKS, tiny_embedder(), layout)
    assert (layout.evaluate / "plots" / "organs_figures.png").is_file()
    evaluate(inputs, asked, tiny_embedder(), layout)
    assert not (layout.evaluate / "plots" / "organs_figures.png").exists()
    before = sha256_tree(layout.evaluate)
    evaluate(inputs, asked, tiny_embedder(), layout)
    assert sha256_tree(layout.evaluate) == before


def test_the_worst_cases_are_those_with_the_lowest_probability_of_their_class(reported: Path) -> None:
    cases = read_table(reported / "cases.parquet")
    own = cases[(cases["task"] == "organs") & (cases["method"] == "encoder") & (cases["probe"] == "linear")]
    truth = own[own["of_class"] == own["label"]].sort_values("score")
    text = page_of(reported).text
    for case, score in zip(truth["case"][:5], truth["score"][:5], strict=True):
        assert html.unescape(case) in text
        assert f"its own class {score:.0%}" in text


def test_verdicts_follow_the_interval_and_turn_where_lower_is_better() -> None:
    above, below = ({"difference_low": low, "difference_high": high} for low, high in ((0.1, 0.2), (-0.2, -0.1)))
    share, error = Measure("share"), Measure("error", (0.0, np.inf), lower_is_better=True)
    assert [verdict(of, share) for of in (above, below)] == ["better", "worse"]
    assert [verdict(of, error) for of in (above, below)] == ["worse", "better"]
    assert verdict({"difference_low": 0.0, "difference_high": 0.1}, share) == "undecided"


def test_words() -> None:
    assert [number(value) for value in (0.12345, -0.5, 123.456, float("nan"), float("inf"))] == [
        "0.123", "\N{MINUS SIGN}0.500", "123.5", "none", "infinite",
    ]  # fmt: skip
    assert question(TASKS["organs"]) == "Which organ lies at the centre of the crop?"
    assert question(replace_set(TASKS["organs"])) == "Of which class is the scan, as column m of set site says?"


def replace_set(task: Any) -> Any:
    return task.model_copy(update={"set": "site", "label": "m"})


def per_case(probe: str, scores: dict[str, list[float]], labels: list[str]) -> pd.DataFrame:
    names = [f"c{index}" for index in range(len(labels))]
    parts = [
        pd.DataFrame({"task": "t", "method": "encoder", "probe": probe, "case": names, "patient": names,
                      "label": labels, "of_class": name, "score": values})
        for name, values in scores.items()
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def test_figures_of_single_cases_are_scikit_learns() -> None:
    generator = np.random.default_rng(3)
    labels = generator.choice(["absent", "present"], 40).tolist()
    binary = by_case(per_case("linear", {"present": generator.random(40).tolist()}, labels), classify.KIND.figures)
    assert binary is not None
    assert binary.classes == ("absent", "present")
    inside = np.arange(40) % 3 > 0
    positive = np.asarray(binary.labels)[inside] == "present"
    expected = roc_auc_score(positive, binary.scores[inside, 1])
    assert binary.value(inside, np.ones((1, 40)))[0] == pytest.approx(expected)
    cosine = by_case(per_case("cosine", {"same": [0.5, 0.7, np.nan]}, ["a", "a", "b"]), STABILITY.figures)
    assert cosine is not None
    assert cosine.value(np.ones(3, dtype=bool), np.ones((1, 3)))[0] == pytest.approx(0.6)
    assert by_case(per_case("other", {"x": [1.0]}, ["a"]), STABILITY.figures) is None
