"""The user's own tasks: a column of a table becomes classes, and what is no case is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from components.errors import UserError
from components.preprocess.config import PreprocessConfig
from components.settings import ParamsError, parse
from components.sources.sets import LabelledSet
from components.tasks.config import EvaluateConfig
from components.tasks.kinds import tasks_of
from components.tasks.own import classify
from components.tasks.table import Built, Inputs
from flows.parameters import written, yaml_editor
from tests.unit.test_tasks_cases import EVALUATE, PREPROCESS

READ = {"serve": True, "specificity": 0.9, "few_shot": None}  # how a probe is read
SERIES = [f"s{n:016x}" for n in range(6)]


class OfTable(LabelledSet):
    """A set whose table is given."""

    def __init__(self, labels: list[str]) -> None:
        config = type("Config", (), {"labels": type("Labels", (), {"table": "labels.csv", "column": "id"}), "role": ""})
        super().__init__("wholebody", "site", config, None, "keyed")  # type: ignore[arg-type]
        object.__setattr__(self, "labels", labels)

    def table(self) -> tuple[pd.DataFrame, list[tuple[str, ...]]]:
        return pd.DataFrame({"id": SERIES, "malignant": self.labels}), []  # type: ignore[attr-defined]


def given(curated: pd.DataFrame) -> Inputs:
    evaluate, grid = parse(EvaluateConfig, EVALUATE, "t"), parse(PreprocessConfig, PREPROCESS, "t")
    return Inputs("wholebody", "crop", curated, pd.DataFrame(), evaluate, grid)


def asked(of_set: LabelledSet, labelled: pd.DataFrame, curated: pd.DataFrame, label: str = "malignant") -> Built:
    inputs = replace(given(curated), labelled=labelled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("components.tasks.own.sets_of", lambda line: {"site": of_set})
        return classify("malignant", "site", label, inputs)


def built(labels: list[str], label: str = "malignant", accepted: list[bool] | None = None) -> tuple[pd.DataFrame, str]:
    labelled = pd.DataFrame({"set": "site", "row": range(6), "series": SERIES, "split": ["train"] * 4 + ["test"] * 2})
    labelled["patient"] = [f"p{n // 2}" for n in range(6)]
    curated = pd.DataFrame({"series": SERIES, "volume": [f"{s}.b2nd" for s in SERIES],
                            "accepted": accepted or [True] * 6,
                            "reason": ["" if ok else "too_few_slices" for ok in accepted or [True] * 6]})  # fmt: skip
    found = asked(OfTable(labels), labelled, curated, label)
    return found.table, found.remarks.get("malignant", found.not_evaluated.get("malignant", ""))


def test_a_case_is_a_scan_with_the_class_of_its_row() -> None:
    table, told = built(["0", "1", " 1 ", "0", "1", "0"])
    assert table["label"].tolist() == ["0", "1", "1", "0", "1", "0"]
    assert table["case"].tolist() == SERIES
    assert table["split"].tolist() == ["train"] * 4 + ["test"] * 2
    assert table["x"].isna().all()
    assert set(table["task"]) == {"malignant"}
    assert told == ""


def test_what_is_no_case_is_told() -> None:
    table, told = built(["0", "NaN", "", "unknown", "1", "0"], accepted=[True] * 4 + [False, True])
    assert table["case"].tolist() == [SERIES[0], SERIES[5]]
    assert told == "Left out: 3 scans without a label; 1 labelled scans rejected (too_few_slices 1)."
    table, told = built([""] * 6)
    assert (len(table), told) == (0, "Left out: 6 scans without a label.")


def test_a_column_that_is_none_or_holds_no_classes_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither other columns nor values are told: of a table without a head, or of another column, they may be names."""
    with pytest.raises(UserError, match=r"tasks.malignant.label: labels.csv: no column 'benign' among its 2$"):
        built(["0"] * 6, label="benign")
    with pytest.raises(UserError, match=r"no column 'malignent' among its 2; did you mean 'malignant'\?$"):
        built(["0"] * 6, label="malignent")
    monkeypatch.setattr("components.tasks.own.CLASSES", 5)
    with pytest.raises(UserError, match=r"column 'malignant' is not allowed: it has 6 different values, and a task at"):
        built(list("abcdef"))


def test_two_labels_of_one_scan_are_refused() -> None:
    """As of a folder and of a file in it: which of them holds would depend on the order of the rows."""
    labelled = pd.DataFrame({"set": "site", "row": [0, 1], "series": SERIES[0], "patient": "p0", "split": "train"})
    curated = pd.DataFrame({"series": SERIES[:1], "volume": "v", "accepted": True, "reason": ""})
    with pytest.raises(UserError, match=f"1 scans have two different labels, first {SERIES[0]}"):
        asked(OfTable(list("010101")), labelled, curated)
    same = asked(OfTable(list("110101")), labelled, curated)
    assert same.table["label"].tolist() == ["1"]


def test_another_site_is_tested_on_by_what_was_trained_here() -> None:
    sites = {"site": OfTable(list("010101")), "other": OfTable(list("001122"))}
    rows = {"row": range(6), "series": SERIES, "patient": [f"p{n}" for n in range(6)]}
    here = pd.DataFrame({"set": "site", "split": ["train"] * 4 + ["test"] * 2, **rows})
    there = pd.DataFrame({"set": "other", "split": "test", **rows})
    there["series"], there["patient"] = "x" + there["series"], "x" + there["patient"]
    series = [*SERIES, *there["series"]]
    curated = pd.DataFrame({"series": series, "volume": series, "accepted": True, "reason": ""})
    inputs = replace(given(curated), labelled=pd.concat([here, there], ignore_index=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("components.tasks.own.sets_of", lambda line: sites)
        built = classify("malignant", "site", "malignant", inputs, external=["other"])
    of = dict(tuple(built.table.groupby("task")))
    assert set(of) == {"malignant", "malignant/other"}
    alone = of["malignant"]
    assert len(alone) == 6
    apart = of["malignant/other"]
    trained = apart[apart["split"] == "train"]
    assert trained["case"].tolist() == alone.loc[alone["split"] == "train", "case"].tolist()
    assert set(apart.loc[apart["split"] == "test", "patient"]) == set(there["patient"])


@pytest.mark.parametrize(
    ("name", "block", "said"),
    [
        ("2nd", {"kind": "classify", "set": "site", "label": "x", **READ}, "'2nd' is not allowed: a-z, 0-9 and _"),
        ("Bad name", {"kind": "classify", "set": "site", "label": "x", **READ}, "'Bad name' is not allowed"),
        (
            "mine",
            {"kind": "classify", "set": "sit", "label": "x", **READ},
            "'sit' is not allowed: one of site, line, lidc_",
        ),
        ("mine", {"kind": "clasify", "set": "site", "label": "x", **READ}, "mine.kind: 'clasify' is not allowed: one"),
        ("mine", {"set": "site", "label": "x", **READ}, "mine.kind: null is not allowed: one of classify"),
        ("mine", {"kind": "classify", "set": "line", "label": "orgn", **READ}, "mine.label: 'orgn' is not allowed: of"),
        ("mine", {"kind": "stability", "gallery": -1}, "mine.gallery: -1 is not allowed"),
        ("mine", {"kind": "stability", "set": "sight", "gallery": 1}, "'sight' is not allowed: one of site, line; did"),
        ("mine", {"kind": "classify", "set": "site", "lable": "x", **READ}, "did you mean 'label'?"),
        (
            "mine",
            {"kind": "classify", "set": "site", "label": "id", **READ},
            "mine.label: 'id' is no label: it names the",
        ),
    ],
)
def test_a_mistake_in_a_task_is_one_line(
    name: str, block: dict[str, object], said: str, project: Path, tmp_path: Path
) -> None:
    editor = yaml_editor()
    content = editor.load(Path("params.yaml").read_text())
    content["wholebody"]["tasks"] = {name: block}
    path = tmp_path / "params.yaml"
    path.write_text(written(editor, content))
    with pytest.raises(ParamsError) as caught:
        tasks_of("wholebody", {"site": OfTable([])}, path)
    assert said in str(caught.value)
