"""Cases of an evaluation to look at: the worst and best of its own tables, and what the release's heads say of them."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from components.ct.store import StoredVolume
from components.errors import UserError
from components.files import read_json, write_json
from components.tables import read_table, write_table
from flows.cases.command import run
from flows.cli import main
from tests.evaluated import LINE, POINTS, SEGMENTED, STRUCTURES, volume_of, write_line

EVALUATE = Path("data") / LINE / "evaluate"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("line")
    write_line(root)
    return root


@pytest.fixture
def line(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the line, as the working directory."""
    shutil.copytree(made, tmp_path / "line")
    monkeypatch.chdir(tmp_path / "line")
    monkeypatch.setattr("components.arithmetic.enter", lambda _: None)  # it would begin pytest anew
    return tmp_path / "line"


def written(*task: str, each: int = 1, out: str = "cases") -> list[dict[str, Any]]:
    assert run(Namespace(line=LINE, out=Path(out), task=list(task), each=each)) == 0
    page = (Path(out) / "index.html").read_text()
    (content,) = re.findall(r'<script type="application/json" id="cases">(.*)</script>', page)
    cases: list[dict[str, Any]] = json.loads(content)
    return cases


def volume(name: str) -> nib.Nifti1Image:
    text = Path("cases", "volumes", f"{name}.js").read_text()
    found = re.fullmatch(r'ctfoundryVolume\("(\d+)", "([A-Za-z0-9+/=]+)"\);\n', text)
    assert found is not None
    assert found[1] == name
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(found[2])))


def dice_of(cases: pd.DataFrame) -> Mapping[str, float]:
    own = cases[(cases["task"] == SEGMENTED) & (cases["method"] == "encoder")]
    means: dict[str, float] = own.groupby(own["case"].str.split("/").str[0])["score"].mean().to_dict()
    return means


def test_worst_and_best_scan_are_there_with_reference_prediction_and_the_tables_dice(line: Path) -> None:
    known = dice_of(read_table(EVALUATE / "cases.parquet"))
    cases = written(SEGMENTED)
    assert [one["rank"] for one in cases] == ["worst of 3", "best of 3"]
    assert [one["score"] for one in cases] == pytest.approx([min(known.values()), max(known.values())], abs=1e-6)
    assert len({round(score, 3) for score in known.values()}) == 3, "scans that differ, or the order says nothing"
    for one in cases:
        assert known[one["case"]] == pytest.approx(one["score"], abs=1e-6)
        scan, truth, found = (
            volume(name) for name in (one["scan"], *map(one["masks"].get, ("reference", "prediction")))
        )
        stored = StoredVolume(Path(volume_of(one["case"]))).read()
        np.testing.assert_array_equal(np.asarray(scan.dataobj), stored.hu.T)
        for mask in (truth, found):
            np.testing.assert_allclose(mask.affine, scan.affine)
        ours, theirs = np.asarray(found.dataobj), np.asarray(truth.dataobj)
        for value, told in one["segmented"]["structures"].items():
            both = [(mask == int(value)) for mask in (ours, theirs)]
            size = sum(int(mask.sum()) for mask in both)
            dice = 2 * int((both[0] & both[1]).sum()) / size if size else None
            assert told["dice"] == (dice and pytest.approx(dice, abs=1e-6))
            assert told["reference_ml"] == pytest.approx(both[1].sum() * 0.003, abs=1e-3)
        right, front, up = one["point_mm"]
        place = np.rint(np.linalg.solve(truth.affine, [right, front, up, 1.0])[:3]).astype(int)
        dices = {name: told["dice"] for told in one["segmented"]["structures"].values() for name in [told["name"]]}
        worst = min((of, name) for name, of in dices.items() if of is not None)[1]
        assert STRUCTURES[theirs[tuple(place)] - 1] == worst, "the crosshair is in what is found worst"


def test_a_point_is_shown_with_its_label_and_what_the_head_says(line: Path) -> None:
    table = read_table(EVALUATE / "cases.parquet")
    own = table[(table["task"] == "organs") & (table["method"] == "encoder")]
    of_label = own["score"].where(own["label"] == "present", 1 - own["score"])
    cases = written("organs")
    assert [one["score"] for one in cases] == pytest.approx([of_label.min(), of_label.max()], abs=1e-6)
    for one in cases:
        row = own[own["case"] == one["case"]].iloc[0]
        answer = one["classified"]["answers"]["organs"]
        assert answer["probabilities"]["present"] == pytest.approx(row["score"], abs=1e-6)
        assert (one["label"], tuple(one["point_mm"])) == (row["label"], POINTS[one["case"].split("/")[1]])
        assert answer["operating_point"]["threshold"] == 0.5
        assert one["masks"] == {}


def test_a_task_without_a_head_has_the_evaluations_probabilities_and_says_so(line: Path) -> None:
    worst, best = written("lesions")
    assert (worst["label"], best["label"]) == ("present", "absent")
    answer = best["classified"]["answers"]["lesions"]
    assert answer["probabilities"] == {"present": 0.25, "absent": 0.75}
    assert "no head of this task" in answer["limits"][0]


def test_all_tasks_are_shown_each_scan_once_and_again_the_same_bytes(line: Path) -> None:
    cases = written(each=5)
    assert [one["part"] for one in cases] == ["organs"] * 6 + ["lesions"] * 6 + [SEGMENTED] * 3, "none of them twice"
    assert len({one["scan"] for one in cases}) == 3
    written(each=5, out="again")
    names = sorted(path.relative_to("cases") for path in Path("cases").rglob("*") if path.is_file())
    assert len(names) == 4 + 3 + 6
    for name in names:
        assert Path("cases", name).read_bytes() == Path("again", name).read_bytes(), name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--line", "trunk"], "line 'trunk' is not allowed"),
        (["--task", "kidneys"], "task 'kidneys': not a task of this line; allowed: organs, lesions, organs_segmented"),
        (["--task", "stability"], "task 'stability': of kind stability, it has no cases to show; allowed: organs, "),
        (["--task", "lidc_nodules"], "task 'lidc_nodules': not evaluated, it has no cases to show"),
        (["--each", "0"], "--each 0 is not allowed"),
        (["--out", "releases/wholebody/cases"], "releases/wholebody/cases: in releases, which only a release writes"),
        (["--out", "data"], "data: is there; allowed: the name of a new folder"),
        (["--line", "head"], "line head: no release in releases/head; run `make release LINE=head` first"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    line: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["--out", "cases", *arguments], said, monkeypatch, capsys)
    assert not any(path.name.startswith((".cases", "cases")) for path in line.rglob("*") if path.suffix != ".parquet")


def refused(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr("sys.argv", ["ctfoundry", "cases", *arguments])
    monkeypatch.setattr("flows.cli.leave", codes.append)
    main()
    (told,) = capsys.readouterr().err.splitlines()
    assert codes == [1]
    assert told.startswith("ctfoundry: ")
    assert said in told


def test_an_evaluation_of_another_run_is_refused(
    line: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = read_json(EVALUATE / "metrics.json")
    write_json(EVALUATE / "metrics.json", {**kept, "line": "other"})
    refused(["--out", "cases"], "of another run than releases/wholebody", monkeypatch, capsys)
    (EVALUATE / "metrics.json").unlink()
    refused(["--out", "cases"], "metrics.json: not found; run `make release`", monkeypatch, capsys)


@pytest.mark.parametrize("task", [SEGMENTED, "organs"])
def test_a_figure_that_the_release_does_not_give_is_refused(line: Path, task: str) -> None:
    cases = read_table(EVALUATE / "cases.parquet")
    cases.loc[(cases["task"] == task) & (cases["method"] == "encoder"), "score"] += 0.002
    write_table(EVALUATE / "cases.parquet", cases)
    with pytest.raises(UserError, match=rf"^task {task}, case s\d[^:]*: .* by the release's head and .* in the evalu"):
        written(task)
    assert not Path("cases").exists()
