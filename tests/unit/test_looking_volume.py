"""What people see of a volume is where it says it is: a landmark keeps its millimetres in the store, in NIfTI, in a
label and in the picture."""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from matplotlib.image import imread
from phantom_plans import small

from components.ct.dicom import read_series
from components.ct.labels.onto_grid import read_labels, read_stored_labels
from components.ct.labels.stored import LabelMap, write_label_map
from components.ct.standardise import resample_only
from components.ct.store import Volume, voxel_of, write_volume
from components.errors import UserError
from components.looking.volume import WINDOWS, draw, export, facts, find, open_volume
from components.preprocess.config import PreprocessConfig
from components.settings import load_stage
from components.sources.phantom.scanner import scan
from flows.volumes import WINDOW_NAMES, add_options

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"


def marked(line: str, position: str, folder: Path, **changes: float) -> tuple[Volume, np.ndarray]:
    """A phantom as it was scanned, with a bright ball of 12 mm put into it at a point in RAS mm."""
    scan(small("head" if line == "head" else "trunk", position=position, **{"oblique_deg": 0.6, **changes}), folder)
    volume = read_series(sorted(folder.glob("*.dcm")))
    middle = volume.affine[:3, :3] @ (np.array(volume.hu.shape) / 2) + volume.affine[:3, 3]
    point = middle + np.array([17.0, -11.0, 8.0])
    places = np.stack(np.indices(volume.hu.shape), -1) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    volume.hu[np.linalg.norm(places - point, axis=-1) < 12] = 3000
    return volume, point


@pytest.mark.parametrize("line", ["wholebody", "head"])
@pytest.mark.parametrize("position", ["HFS", "FFS", "HFP", "FFP"])
def test_a_landmark_keeps_its_millimetres(line: str, position: str, tmp_path: Path) -> None:
    native, point = marked(line, position, tmp_path / "dicom")
    standard = resample_only(native, load_stage(PreprocessConfig, line, "preprocess", PARAMS))
    write_volume(tmp_path / "s1.b2nd", standard, {"source": "phantom", "grid": {}})
    stored = open_volume(tmp_path / "s1.b2nd").volume
    half = 0.5 * np.array(stored.spacing)
    assert np.linalg.norm(middle_of(stored.hu > 2000, stored.affine) - point) <= half.max()

    export(open_volume(tmp_path / "s1.b2nd"), tmp_path / "s1.nii.gz")
    image = SimpleITK.ReadImage(str(tmp_path / "s1.nii.gz"))  # a reader that is not ours
    where = np.argwhere(SimpleITK.GetArrayFromImage(image) > 2000).mean(axis=0)[::-1]
    lps = np.array(image.TransformContinuousIndexToPhysicalPoint(where.tolist()))
    assert np.linalg.norm(lps * [-1, -1, 1] - point) <= half.max()

    label = nib.Nifti1Image((native.hu > 2000).astype(np.uint8), native.affine)  # on the scanner's grid
    nib.save(label, tmp_path / "label.nii.gz")
    mask = read_labels(tmp_path / "label.nii.gz", stored.affine, stored.hu.shape).mask("label 1")
    assert np.linalg.norm(middle_of(mask, stored.affine) - point) <= half.max()


@pytest.mark.parametrize("line", ["wholebody", "head"])
def test_a_landmark_keeps_its_millimetres_under_a_tilted_gantry(line: str, tmp_path: Path) -> None:
    native, point = marked(line, "HFS", tmp_path, oblique_deg=0.0, gantry_tilt_deg=18.5)
    assert abs(native.affine[:3, 0] @ native.affine[:3, 1]) > 1, "sheared"
    standard = resample_only(native, load_stage(PreprocessConfig, line, "preprocess", PARAMS))
    found = middle_of(standard.hu > 2000, standard.affine)
    assert np.linalg.norm(found - point) <= 0.5 * max(standard.spacing)


def middle_of(chosen: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centre of the chosen voxels in RAS mm."""
    found: np.ndarray = affine[:3, :3] @ np.argwhere(chosen).mean(axis=0) + affine[:3, 3]
    return found


@pytest.fixture
def sided(tmp_path: Path) -> Path:
    """Air with a bright block in the patient's right, anterior, upper corner; slices first, as in the store."""
    hu = np.full((40, 40, 40), -1000, np.int16)
    affine = np.array([[0.0, 0, -2, 50], [0, -2, 0, 60], [2, 0, 0, -30], [0, 0, 0, 1]])  # SPL
    corner = voxel_of(affine, [40.0, 50.0, 38.0]).astype(int)
    hu[corner[0] - 6 :, : corner[1] + 6, : corner[2] + 6] = 300
    write_volume(tmp_path / "sided.b2nd", Volume(hu, affine), {"source": "test"})
    return tmp_path / "sided.b2nd"


def test_right_is_left_and_anterior_is_up(sided: Path, tmp_path: Path) -> None:
    draw(open_volume(sided), tmp_path / "a.png", ("soft", "bone"), (40.0, 50.0, 38.0))
    draw(open_volume(sided), tmp_path / "b.png", ("soft", "bone"), (40.0, 50.0, 38.0))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    picture = imread(tmp_path / "a.png")[:, :, :3].mean(axis=2)
    axial = picture[: picture.shape[0] // 2, : picture.shape[1] // 3]
    rows, columns = np.nonzero(axial > 0.9)
    assert columns.mean() < axial.shape[1] / 2, "the patient's right at the left"
    assert rows.mean() < axial.shape[0] / 2, "anterior at the top"
    sagittal = picture[: picture.shape[0] // 2, picture.shape[1] * 2 // 3 :]
    rows, columns = np.nonzero(sagittal > 0.9)
    assert columns.mean() < sagittal.shape[1] / 2, "anterior at the left"
    assert rows.mean() < sagittal.shape[0] / 2, "superior at the top"


def test_a_mask_is_drawn_over_its_voxels(sided: Path, tmp_path: Path) -> None:
    opened = open_volume(sided)
    mask = (opened.volume.hu > 0).astype(np.int32)
    draw(opened, tmp_path / "mask.png", mask=mask)
    red, green, _ = np.moveaxis(imread(tmp_path / "mask.png")[:, :, :3], 2, 0)
    assert ((red > 0.9) & (green < 0.8)).sum() > 500
    assert list(tmp_path.glob(".*")) == [], "nothing half-written"


def test_the_command_offers_every_window() -> None:
    assert sorted(WINDOW_NAMES) == sorted(WINDOWS), "listed twice, as the parser must not import what draws"


def test_facts(sided: Path) -> None:
    told = facts(open_volume(sided))
    assert (told["orientation"], told["shape"], told["spacing mm"]) == ("SPL", "40 x 40 x 40", "2 x 2 x 2")
    assert told["reaches mm (RAS)"] == "R -28.0 to 50.0, A -18.0 to 60.0, S -30.0 to 48.0"


def test_mistakes_are_one_line(sided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"volume 's9': no such file or folder, and no such series in data/head"):
        find("s9", "head")
    with pytest.raises(UserError, match="volume '': no such file or folder"):
        find("", "head")
    store = tmp_path / "data/head/preprocess/1/volumes"
    store.mkdir(parents=True)
    sided.rename(store / "s9.b2nd")
    assert find("s9", "head").resolve() == store / "s9.b2nd"
    opened = open_volume(find("s9", "head"))
    with pytest.raises(UserError, match=r"point \(500.0, 0.0, 0.0\) mm \(RAS\): outside of the volume"):
        draw(opened, tmp_path / "a.png", at_mm=(500.0, 0.0, 0.0))
    with pytest.raises(UserError, match=r"export to a\.dcm: allowed are names that end in"):
        export(opened, tmp_path / "a.dcm")
    (tmp_path / "bad.b2nd").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"bad\.b2nd: not readable as a stored volume"):
        open_volume(tmp_path / "bad.b2nd")


def test_the_commands_write_what_they_name(
    sided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    volume = open_volume(sided).volume
    nib.save(nib.Nifti1Image((volume.hu > 0).astype(np.uint8), volume.affine), "block.nii.gz")
    Path("block.json").write_text('{"1": {"name": "block", "code": "SCT 1 Block"}}')
    parser = argparse.ArgumentParser()
    add_options(parser.add_subparsers().add_parser("volume"))

    def run(*words: str) -> str:
        arguments = parser.parse_args(["volume", *words, "--line", "wholebody"])
        assert arguments.run(arguments) == 0
        return capsys.readouterr().out

    said = run("label", str(sided), "block.nii.gz")
    assert ["block" in said, "SCT 1 Block" in said, "100.0%" in said] == [True] * 3
    assert read_stored_labels(Path("sided.labels.b2nd")).segments[0].name == "block"
    run("label", str(sided), "block.nii.gz", "--output", "out.nii")
    again = read_labels(Path("out.nii"), volume.affine, volume.hu.shape)
    np.testing.assert_array_equal(again.mask("block"), volume.hu > 0)
    assert run("show", str(sided), "--mask", "out.nii", "--output", "seen.png").strip() == "seen.png"
    assert Path("seen.png").stat().st_size > 1000
    assert "SPL" in run("info", str(sided))
    run("export", str(sided), "out.nii.gz")
    np.testing.assert_array_equal(open_volume(Path("out.nii.gz")).volume.hu.shape, volume.hu.shape)


def test_the_label_map_of_the_store_is_shown_and_listed(
    sided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Path("data/wholebody/preprocess/0/volumes")
    store.mkdir(parents=True)
    sided.rename(store / "s9.b2nd")
    volume = open_volume(store / "s9.b2nd").volume
    found = LabelMap((volume.hu > 0).astype(np.uint8) * 7, {7: "block", 9: "void"}, {7: "SCT 1 Block"})
    parser = argparse.ArgumentParser()
    add_options(parser.add_subparsers().add_parser("volume"))

    def run(*words: str) -> str:
        arguments = parser.parse_args(["volume", *words, "--line", "wholebody"])
        assert arguments.run(arguments) == 0
        return capsys.readouterr().out

    with pytest.raises(UserError, match="labels of s9: the store has none; "):
        run("label", "s9", "stored")
    write_label_map(store.with_name("labels") / "s9.b2nd", found, volume.affine)
    said = run("label", "s9", "stored", "--segment", "block")
    assert ["block" in said, "SCT 1 Block" in said, f"{int((volume.hu > 0).sum()):,}" in said] == [True] * 3
    written = read_stored_labels(Path("s9.labels.b2nd"))
    np.testing.assert_array_equal(written.mask("block"), volume.hu > 0)
    assert run("show", "s9", "--mask", "stored", "--output", "seen.png").strip() == "seen.png"
    with pytest.raises(UserError, match=r"labels s9.b2nd: segment 'liver' is not in it"):
        run("show", "s9", "--mask", "stored", "--segment", "liver")
