"""``ctfoundry set``: a folder and a table become blocks of params.yaml, or one line says why not."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from components.registry import check_file
from components.settings import read_yaml
from components.sources.sets import sets_of
from flows.cli import main
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
    Path("tables/labels.csv").write_text("PatientID,Malignant (0/1),fold\nMRN1,1,train\nMRN2,0,test\n")
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
    }
    assert sets_of(LINE)["site"].table()[0]["Malignant (0/1)"].tolist() == ["1", "0"]
    assert run(*COMMAND, monkeypatch=monkeypatch) == 1
    assert "`ctfoundry set pin` renews its digests" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("--key", "patient"), "--key 'patient' is not allowed: <kind>=<column>, the kind one of patient, study"),
        (("--key", "name=PatientID"), "--key 'name=PatientID' is not allowed"),
        (("--key", "patient=MRN"), "labels.csv: no column 'MRN' among its 3"),
        (("--label", "benign"), "labels.csv: no column 'benign' among its 3"),
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
