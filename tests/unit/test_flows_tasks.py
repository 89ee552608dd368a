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
from test_sources_layouts import META, MIR3D, mir3d, reads, sinoct, slices

from components.cohort.labelled import by_key, matched
from components.cohort.masks import masks_of
from components.registry import check_file
from components.settings import read_yaml
from components.sources.build import source_of
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


def _sinoct() -> None:
    sinoct(Path("data_set"))
    for number, name in enumerate(("series_1", "series_20")):
        Path("data_set", name).mkdir(exist_ok=True)
        for n, image in enumerate(make_series(number, PatientID=name)):
            Path("data_set", name, f"{n}.dcm").write_bytes(as_file(image))


def _organmnist3d() -> None:
    sides = {"training": [f"imagesTr/liver_{n}.nii.gz" for n in range(2)], "test": ["imagesTs/liver_131.nii.gz"]}
    for image in [*sides["training"], *sides["test"]]:
        _nifti(image, np.zeros((8, 8, 8), np.int16))
        patient = Path(image).name.removesuffix(".nii.gz")
        for name in ("liver", "lung_middle_lobe_right", "vertebrae_L1"):
            _nifti(f"organs/{patient}/{name}.nii.gz", np.ones((8, 8, 8), np.uint8))
    told = {"training": [{"image": f"./{image}"} for image in sides["training"]], "test": sides["test"]}
    Path("data_set/dataset.json").write_text(json.dumps(told))


def _mir3d() -> None:
    mir3d(Path("data_set"))
    for path in Path("data_set").glob("Task*/imagesTr/*"):
        _nifti(str(path.relative_to("data_set")), np.zeros((8, 8, 8), np.int16))


MADE: dict[str, Callable[[], None]] = {
    "cq500": _cq500, "rsna_2019": lambda: slices(Path("data_set")), "total_segmentator": _total_segmentator,
    "msd_lung": _msd_lung, "sinoct": _sinoct, "organmnist3d": _organmnist3d,
    **{f"mir3d_{name.split('_')[0]}": _mir3d for name in MIR3D.values()},
}  # fmt: skip
OF_THE_IDC = {"rider_lung_ct": (63, 32), "lidc_nodules_seg": (1018, 1010)}  # series, patients


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


def test_a_folders_scans_have_the_rows_the_sides_and_the_masks_that_the_protocol_says(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _organmnist3d()
    assert run("task", "recipe", "organmnist3d", "--data", "data_set", monkeypatch=monkeypatch) == 0
    of_set = sets_of("wholebody")["organmnist3d"]
    assert of_set.source is not None
    source = source_of("nifti", of_set.place, of_set.source)
    source.check()
    listing = source.list_series(frozenset())
    found = matched(of_set, listing)
    assert found.account["patients_by_split"] == {"train": 2, "test": 1}
    masks = masks_of(of_set, listing, found)
    assert masks is not None
    assert masks.rows.groupby("series")["structure"].agg(sorted).tolist() == [["liver", "lung_middle_lobe_right"]] * 3


def test_masks_that_are_not_there_are_one_line(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _organmnist3d()
    shutil.rmtree("data_set/organs")
    assert run("task", "recipe", "organmnist3d", "--data", "data_set", monkeypatch=monkeypatch) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert "wholebody.sets.organmnist3d.masks: masks: no file that 'organs/(?P<patient>" in told


@pytest.mark.parametrize(("name", "scans"), [("sinoct", 2), ("mir3d_colon", 8)])
def test_every_row_names_a_scan_of_its_folder(
    name: str, scans: int, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MADE[name]()
    assert run("task", "recipe", name, "--data", "data_set", monkeypatch=monkeypatch) == 0
    of_set = sets_of(load_protocol(name)["base"])[name]
    assert of_set.source is not None
    source = source_of(of_set.source.source, of_set.place, of_set.source)
    source.check()
    files = by_key(source.list_series(frozenset()), "file")
    found = [{series for key in of_row for series in files.get(key, ())} for of_row in of_set.table()[1]]
    assert [len(series) for series in found] == [1] * scans
    assert len(set().union(*found)) == scans


@pytest.mark.parametrize("name", sorted(OF_THE_IDC))
def test_scans_of_the_idc_become_valid_parameters_by_its_index(
    name: str, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("task", "recipe", name, "--data", "data_set", monkeypatch=monkeypatch) == 1
    told = f"--data data_set is not allowed: the scans of {name} are those of the Imaging Data Commons; --data idc"
    assert capsys.readouterr().err.strip().endswith(told)
    assert run("task", "recipe", name, "--data", "idc", monkeypatch=monkeypatch) == 0, capsys.readouterr().err
    check_file()
    protocol = load_protocol(name)
    of_set = sets_of("wholebody")[name]
    assert set(protocol["tasks"]) <= set(read_yaml()["wholebody"]["tasks"])
    assert of_set.source is not None
    listing = source_of("idc", of_set.place, of_set.source).list_series(frozenset())
    found = matched(of_set, listing)
    assert (found.rows["series"].nunique(), found.rows["patient"].nunique()) == OF_THE_IDC[name]
    assert found.account["scans_without_row"] == 0
    if of_set.config.masks is not None:
        masks = masks_of(of_set, listing, found)
        assert masks is not None
        assert masks.account["masks_used"] == 6859


def test_every_protocol_is_tried_here_and_shown(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert names() == sorted([*MADE, *OF_THE_IDC])
    assert run("task", "list", monkeypatch=monkeypatch) == 0
    listed = capsys.readouterr().out
    assert all(load_protocol(name)["title"] in listed for name in names())
    for name in names():
        assert run("task", "recipe", name, monkeypatch=monkeypatch) == 0
        assert load_protocol(name)["layout"].splitlines()[0] in capsys.readouterr().out


def test_what_is_only_shown_goes_onto_no_line(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("task", "recipe", "cq500", "--line", "nowhere", monkeypatch=monkeypatch) == 1
    assert "--line and --external are not allowed without --data" in capsys.readouterr().err


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


def test_what_is_refused_leaves_the_labels_of_a_set_that_is_there(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the set's table would be another than the pinned one, and the next release would stop."""
    _cq500()
    assert run("task", "recipe", "cq500", "--data", "data_set", monkeypatch=monkeypatch) == 0
    reads = Path("data_set/reads.csv")
    reads.write_text("\n".join(reads.read_text().splitlines()[:-1]) + "\n")
    assert run("task", "recipe", "cq500", "--data", "data_set", monkeypatch=monkeypatch) == 1
    assert len(sets_of("head")["cq500"].table()[0]) == 4
    shown = Path("params.yaml").read_text()
    Path("params.yaml").write_text(shown.replace("\n    cq500:", "\n    other:"))  # the set, and not its tasks
    assert run("task", "recipe", "cq500", "--data", "data_set", monkeypatch=monkeypatch) == 1
    assert capsys.readouterr().err.rstrip().endswith("head.tasks has it; give that one another name first")


def test_what_is_refused_leaves_no_labels(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _cq500()
    reads = Path("data_set/reads.csv")
    reads.write_text(reads.read_text().replace("CQ500-CT-1,", "CQ500-CT-0,"))  # a patient twice
    assert run("task", "recipe", "cq500", "--data", "data_set", monkeypatch=monkeypatch) == 1
    assert not list(Path(".ctfoundry").rglob("*.csv"))
