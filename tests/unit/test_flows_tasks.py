"""``ctfoundry task recipe``: a published protocol from a folder to valid parameters, and labels that the set reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from test_flows_sets import run
from test_sources_layouts import META, reads, slices

from components.registry import check_file
from components.settings import read_yaml
from components.sources.layouts import READ
from components.sources.sets import sets_of
from flows.tasks import load_protocol, names
from tests.unit.small_pacs import as_file, make_series


@pytest.fixture
def checkout(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(project / name, tmp_path)
    shutil.copytree(project / "components/tasks/recipes", tmp_path / "components/tasks/recipes")
    monkeypatch.chdir(tmp_path)
    Path("data_set").mkdir()
    return tmp_path


def _cq500() -> None:
    reads(Path("data_set"))
    for number, name in enumerate(("CQ500-CT-0", "CQ500-CT-1", "CQ500-CT-10", "CQ500-CT-11")):
        folder = Path("data_set", name)
        folder.mkdir()
        for n, image in enumerate(make_series(number, PatientID=name)):
            (folder / f"{n}.dcm").write_bytes(as_file(image))


def _nifti(path: str, values: np.ndarray) -> None:
    file = Path("data_set", path)
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0])), file)


def _total_segmentator() -> None:
    Path("data_set/meta.csv").write_text(META)
    for n in range(3):
        _nifti(f"s000{n}/ct.nii.gz", np.full((8, 8, 8), n, np.int16))
        for name in ("liver", "spleen"):
            _nifti(f"s000{n}/segmentations/{name}.nii.gz", np.eye(8, dtype=np.uint8)[..., None].repeat(8, 2))


def _msd_lung() -> None:
    cases = [f"lung_{n:03}.nii.gz" for n in range(4)]
    for name in cases:
        _nifti(f"imagesTr/{name}", np.zeros((8, 8, 8), np.int16))
        _nifti(f"labelsTr/{name}", np.ones((8, 8, 8), np.uint8))
    training = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in cases]
    labels = {"0": "background", "1": "cancer"}
    Path("data_set/dataset.json").write_text(json.dumps({"labels": labels, "training": training}))


MADE = {"cq500": _cq500, "rsna_2019": lambda: slices(Path("data_set")), "total_segmentator": _total_segmentator,
        "msd_lung": _msd_lung}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MADE))
def test_a_folder_in_the_data_sets_layout_becomes_valid_parameters(
    name: str, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    MADE[name]()
    protocol = load_protocol(name)
    line = protocol["base"]
    assert run("task", "recipe", name, "--data", "data_set", monkeypatch=monkeypatch) == 0, capsys.readouterr().err
    check_file()
    block = read_yaml()[line]
    assert set(protocol["tasks"]) <= set(block["tasks"])
    assert [dict(of) for of in protocol["published"]] == block["published"]["figures"]
    table = sets_of(line)[name].table()[0]
    assert len(table) == len(READ[protocol["reader"]](Path("data_set")))
    assert str(checkout) not in Path("params.yaml").read_text(), "no path of this machine"
    assert run("task", "recipe", name, "--data", "data_set", monkeypatch=monkeypatch) == 1
    assert f"set '{name}' is not allowed" in capsys.readouterr().err


def test_every_protocol_is_tried_here_and_shown(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert names() == sorted(MADE)
    assert run("task", "list", monkeypatch=monkeypatch) == 0
    listed = capsys.readouterr().out
    assert all(load_protocol(name)["title"] in listed for name in names())
    for name in names():
        assert run("task", "recipe", name, monkeypatch=monkeypatch) == 0
        assert load_protocol(name)["layout"].splitlines()[0] in capsys.readouterr().out


def test_another_sites_set_has_no_tasks_of_its_own(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _cq500()
    before = read_yaml()["head"]["tasks"]
    assert run("task", "recipe", "cq500", "--data", "data_set", "--external", monkeypatch=monkeypatch) == 0
    block = read_yaml()["head"]
    assert (block["tasks"], block["published"]["figures"]) == (before, [])
    assert block["sets"]["cq500"]["role"] == "external"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: shutil.rmtree("data_set"), "--data data_set: not a folder"),
        (lambda: Path("data_set/reads.csv").unlink(), "reads.csv: no such file"),
    ],
)
def test_a_folder_that_is_none_changes_nothing(
    change: Callable[[], None], said: str, checkout: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    _cq500()
    change()
    before = Path("params.yaml").read_text()
    assert run("task", "recipe", "cq500", "--data", "data_set", monkeypatch=monkeypatch) == 1
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1
    assert Path("params.yaml").read_text() == before
