"""``ctfoundry set``: a folder and a table become blocks of params.yaml, or one line says why not."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from components import yaml12
from components.registry import check_file
from components.settings import lines, read_yaml
from components.sources.roots import root_of
from components.sources.sets import sets_of
from flows.cli import main
from flows.parameters import in_a_line, written, yaml_editor
from tests.unit.small_pacs import as_file, make_series

LINE = "wholebody"
COMMAND = ["set", "add", "site", "--scans", "dicom:tree", "--labels", "tables/labels.csv", "--key", "patient=PatientID"]


@pytest.fixture
def checkout(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(project / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("tree").mkdir()
    Path("tree/0.dcm").write_bytes(as_file(make_series(1)[0]))
    Path("tables").mkdir()
    Path("tables/labels.csv").write_text(
        "PatientID,Malignant (0/1),fold,same,none,empty\nMRN1,1,train,5,nan,\nMRN2,0,test,5,N/A,\n"
    )
    return tmp_path


def run(*words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["ctfoundry", *words])
    monkeypatch.setattr("flows.cli.leave", lambda code: sys.exit(code))
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_a_folder_and_a_table_become_ten_lines_that_are_valid(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("params.yaml").read_text().splitlines()
    assert run(*COMMAND, "--label", "Malignant (0/1)", monkeypatch=monkeypatch) == 0
    assert "wholebody.sets.site, tasks malignant_0_1; then `make release" in capsys.readouterr().out
    check_file()
    added = [line for line in Path("params.yaml").read_text().splitlines() if line not in before]
    assert len(added) <= 10, added
    assert str(checkout) not in Path("params.yaml").read_text(), "no path of this machine"
    assert read_yaml()[LINE]["tasks"]["malignant_0_1"] == {
        "kind": "classify",
        "set": "site",
        "label": "Malignant (0/1)",
        "serve": True,
        "specificity": 0.9,
        "few_shot": None,
    }
    assert sets_of(LINE)["site"].table()[0]["Malignant (0/1)"].tolist() == ["1", "0"]
    assert run(*COMMAND, monkeypatch=monkeypatch) == 1
    assert "`ctfoundry set pin` renews its digests" in capsys.readouterr().err


ODD = [
    "yes", "no", "null", "~", "true", "007", "0200", "1_000", "1e5", "0x1F", ".5", "-", "2025-01-31", "<<", "=", "a: b",
    "# no comment", "a #b", "it's", '"quoted"', "Größe (cm²)", "日本", "{x}", "[x]", "a, b", "*star", "&and", "!tag",
    ":0", "0?", "%", "@", "`", "|", ">", "?", " led by a space", "ended by one ", "two  spaces", "tab\there",
    "back\\slash", "new\nline",
    "\u00a0", "\u2028", "\x85", "\U0001f600", "a=b",
]  # fmt: skip


def test_names_of_columns_and_tables_come_back_as_they_are(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as DVC reads them, which is as ruamel.yaml does."""
    table = "tables/Befunde #1: 'alt' & \"neu\", größer.parquet"
    rows = {name: ["0", "1"] for name in ODD} | {"key: #1": ["MRN1", "MRN2"], "'on'": ["train", "test"]}
    pd.DataFrame(rows).to_parquet(table)
    labels = [word for number, name in enumerate(ODD) for word in ("--label", f"t{number}={name}")]
    odd = ["--labels", table, "--key", "patient=key: #1", "--split", "'on'"]
    assert run(*COMMAND, *odd, *labels, monkeypatch=monkeypatch) == 0
    for content in (read_yaml(), YAML(typ="safe").load(Path("params.yaml"))):
        block = content[LINE]["sets"]["site"]
        assert (block["labels"]["table"], block["labels"]["column"]) == (Path(table).name, "key: #1")
        assert block["split"] == {"column": "'on'"}
        asked = [task["label"] for task in content[LINE]["tasks"].values() if task.get("set") == "site"]
        assert asked == ODD
    check_file()
    assert len(sets_of(LINE)["site"].table()[0]) == 2


@settings(deadline=None, max_examples=300)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_as_it_is(text: str) -> None:
    dumped = written(yaml_editor(), {"a": in_a_line({"label": text, "of": {"set": text}})})
    assert yaml12.load(dumped) == YAML(typ="safe").load(dumped) == {"a": {"label": text, "of": {"set": text}}}


@pytest.mark.parametrize("older", ["absent", "null"])
def test_an_older_file_is_given_the_block_that_it_lacks(
    older: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor, before = yaml_editor(), read_yaml()
    content = editor.load(Path("params.yaml").read_text())
    for line in lines():
        if older == "absent":
            del content[line]["sets"]
        else:
            content[line]["sets"] = None
    del content["head"]["tasks"]["findings"]["external"]  # sets that are shipped today
    for task in ("burden", "survival"):
        del content["head"]["tasks"][task], content["tasks"][f"head-{task}"]
    Path("params.yaml").write_text(written(editor, content))
    assert run(*COMMAND, "--label", "Malignant (0/1)", monkeypatch=monkeypatch) == 0
    check_file()
    after = read_yaml()
    assert list(after[LINE]["sets"]) == ["site"]
    assert list(after[LINE]["tasks"]) == [*before[LINE]["tasks"], "malignant_0_1"]
    for line in lines():
        assert list(after[line]) == list(before[line]), "where the shipped file has them"
        assert {**after[line], "sets": 0, "tasks": 0} == {**before[line], "sets": 0, "tasks": 0}


def test_a_copied_line_knows_the_folders_of_its_sets(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*COMMAND, "--label", "Malignant (0/1)", monkeypatch=monkeypatch) == 0
    capsys.readouterr()
    assert run("line", "new", "lungs", "--from", LINE, monkeypatch=monkeypatch) == 0
    assert "root" not in capsys.readouterr().out
    assert read_yaml()["lungs"]["sets"] == read_yaml()[LINE]["sets"]
    assert read_yaml()["lungs"]["tasks"] == read_yaml()[LINE]["tasks"]
    assert len(sets_of("lungs")["site"].table()[0]) == 2
    assert root_of("dicom", "lungs-site") == checkout / "tree"
    Path(".ctfoundry/roots.json").unlink()
    assert run("line", "new", "chests", "--from", "lungs", monkeypatch=monkeypatch) == 0
    told = capsys.readouterr().out.splitlines()
    assert [text.partition(";")[0] for text in told[:2]] == [
        "root 'dicom' of set site of line chests: not configured on this machine",
        "root 'site_labels' of line chests: not configured on this machine",
    ]
    assert told[0].endswith("set CTFOUNDRY_ROOT_CHESTS__SITE_DICOM=<folder>")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda: Path("tables/labels.csv").write_text("MRN,x\nMRN1,1\n"), "no column 'PatientID' among its 2"),
        (lambda: Path("tables/labels.csv").unlink(), "'labels.csv' is not in the folder of the set's labels"),
        (lambda: shutil.rmtree("tree"), "tree is not a folder; set CTFOUNDRY_ROOT_WHOLEBODY__SITE_DICOM=<folder>"),
        (lambda: Path("tree/0.dcm").unlink(), "no file in it that can be read"),
    ],
)
def test_what_is_no_set_any_more_is_not_pinned(
    harm: Any, said: str, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*COMMAND, monkeypatch=monkeypatch) == 0
    before = Path("params.yaml").read_text()
    harm()
    assert run("set", "pin", "site", monkeypatch=monkeypatch) == 1
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    assert Path("params.yaml").read_text() == before


def test_what_changed_is_pinned_again(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*COMMAND, monkeypatch=monkeypatch) == 0
    Path("tables/labels.csv").write_text("PatientID,x\nMRN1,1\nMRN2,0\nMRN3,0\n")
    Path("tree/1.dcm").write_bytes(as_file(make_series(2)[0]))
    before = read_yaml()[LINE]["sets"]["site"]
    assert run("set", "pin", "site", monkeypatch=monkeypatch) == 0
    after = read_yaml()[LINE]["sets"]["site"]
    assert after["labels"]["digest"] != before["labels"]["digest"]
    assert after["scans"]["source_digest"] != before["scans"]["source_digest"]
    assert len(sets_of(LINE)["site"].table()[0]) == 3
    assert run("set", "pin", "other", monkeypatch=monkeypatch) == 1
    assert "set 'other' is not allowed: site" in capsys.readouterr().err


def masks() -> list[str]:
    """A folder as the Decathlon has it; the words that name it."""
    Path("masks/labelsTr").mkdir(parents=True)
    for number in (1, 2):
        Path(f"masks/labelsTr/MRN{number}.nii.gz").write_bytes(b"mask")
    Path("masks/dataset.json").write_text('{"name": "t", "labels": {"0": "background", "1": "liver", "2": "a: b"}}')
    return ["--masks", "masks", "--match", "labelsTr/{patient}"]


def test_masks_and_their_names_are_written_and_pinned_again(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*COMMAND, *masks(), monkeypatch=monkeypatch) == 0
    check_file()
    before = read_yaml()[LINE]["sets"]["site"]["masks"]
    assert (before["match"], before["names"]) == ("labelsTr/{patient}", {1: "liver", 2: "a: b"})
    assert root_of("masks", f"{LINE}-site") == checkout / "masks"
    Path("masks/labelsTr/MRN2.nii.gz").write_bytes(b"more")
    Path("masks/labelsTr/notes.txt").write_text("no mask")
    assert run("set", "pin", "site", monkeypatch=monkeypatch) == 0
    after = read_yaml()[LINE]["sets"]["site"]["masks"]
    assert after == {**before, "digest": after["digest"]}
    assert after["digest"] != before["digest"]
    shutil.rmtree("masks/labelsTr")
    capsys.readouterr()
    assert run("set", "pin", "site", monkeypatch=monkeypatch) == 1
    assert "wholebody.sets.site.masks: masks: no file that 'labelsTr/{patient}' fits" in capsys.readouterr().err
    assert run("line", "new", "lungs", "--from", LINE, monkeypatch=monkeypatch) == 0
    shutil.rmtree("masks")
    capsys.readouterr()
    assert run("line", "new", "chests", "--from", "lungs", monkeypatch=monkeypatch) == 0
    assert "root 'masks' of set site of line chests: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"labels": {"background": 0, "liver": 1, "tumour": 2}}', {1: "liver", 2: "tumour"}),
        ('{"1": "liver"}', {1: "liver"}),
        ('{"labels": {"background": 0, "whole": [1, 2]}}', None),
        ('{"GTV": "tumour"}', None),
        ("[1]", None),
        ("{", None),
    ],
)
def test_names_of_values_as_data_sets_have_them(
    text: str, names: dict[int, str] | None, checkout: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = masks()
    Path("masks/dataset.json").write_text(text)
    assert run(*COMMAND, *words, monkeypatch=monkeypatch) == (1 if names is None else 0)
    if names is None:
        assert '--names masks/dataset.json: <value>=<name>, or a JSON file such as {"1": ' in capsys.readouterr().err
        return
    assert read_yaml()[LINE]["sets"]["site"]["masks"]["names"] == names


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--names", "1=liver"), "--match and --names are not allowed without --masks <folder>"),
        (("--masks", "nowhere"), "--masks nowhere: not a folder"),
        (("--masks", "tree"), "masks: no SEG or RTSTRUCT object below their folder; its files: other 1; masks.match"),
        (("--masks", "masks", "--match", "{patient"), "--match '{patient' is not allowed: a pattern with one of"),
        (("--masks", "masks", "--match", "labelsTs/{patient}"), "masks: no file that 'labelsTs/{patient}' fits below"),
        (("--masks", "masks", "--analysis-result", "x"), "--analysis-result is not allowed with --masks or --match"),
        (("--analysis-result", "x"), "sets.site.masks.analysis_results: not allowed with these scans: only with {s"),
        (("--masks", "masks", "--match", "[0"), "--match '[0' is not allowed: no pattern with {patient} or"),
        (("--masks", "masks", "--match", "**/{structure}"), "--match '**/{structure}' is not allowed: a pattern with"),
        (("--masks", "masks", "--match", "labelsTr/{patient}", "--names", "0=air"), "values of 1 and above"),
    ],
)
def test_masks_that_are_none_are_one_line(
    words: tuple[str, ...], said: str, checkout: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    masks()
    before = Path("params.yaml").read_text()
    assert run(*COMMAND, *words, monkeypatch=monkeypatch) == 1
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    assert Path("params.yaml").read_text() == before


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("--key", "patient"), "--key 'patient' is not allowed: <kind>=<column>, the kind one of patient, study"),
        (("--key", "name=PatientID"), "--key 'name=PatientID' is not allowed"),
        (("--key", "patient=MRN"), "labels.csv: no column 'MRN' among its 6"),
        (("--label", "benign"), "labels.csv: no column 'benign' among its 6"),
        (("--label", "same"), "column 'same' has one value only in its 2 rows: there is nothing to tell apart"),
        (("--label", "none"), "column 'none' has no value in its 2 rows"),
        (("--key", "patient=same"), "names a patient of column 'same' twice, in row 2"),
        (("--key", "study=empty"), "column 'empty' names no study: it is empty in all 2 rows"),
        (("--split", "side"), "labels.csv: no column 'side' among its 6"),
        (("--labels", "tree"), "--labels tree: no such file"),
        (("--labels", "tree/0.dcm"), "--labels tree/0.dcm: not a .csv or .parquet file"),
        (("--scans", "dicom:nowhere"), "source dicom:nowhere: not a folder"),
        (("--label", "é—ü"), "--label 'é—ü' is not allowed: '' names no task; write <task>=<column>"),
        (("--patient", "{patient}/**"), "--patient is not allowed with these --scans"),
        (("--scans", "phantom"), "--scans 'phantom' is not allowed"),
        (("--scans", "zip:tree"), "--scans 'zip:tree' is not allowed: "),
    ],
)
def test_what_is_not_allowed_is_one_line_and_nothing_is_written(
    changed: tuple[str, str], said: str, checkout: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = Path("params.yaml").read_text()
    assert run(*COMMAND, *changed, monkeypatch=monkeypatch) == 1
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    assert Path("params.yaml").read_text() == before
    assert not Path(".ctfoundry/roots.json").exists()


def test_a_column_that_is_named_structure_is_no_label(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a set with masks `label: structure` is theirs, and the column would be left out in silence."""
    Path("tables/labels.csv").write_text("PatientID,structure\nMRN1,graft\nMRN2,own\n")
    of_masks = masks()
    before = Path("params.yaml").read_text()
    assert run(*COMMAND, *of_masks, "--label", "structure", monkeypatch=monkeypatch) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert "labels.csv: label 'structure' is not allowed: it asks for the structures of the set's masks" in told
    assert Path("params.yaml").read_text() == before
