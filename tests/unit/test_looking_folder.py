"""`ctfoundry volume` on folders as people have them: the series is found, judged as training judges it, and what is no
even stack is not shown as one."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from label_files import Scan, contour, rectangle, saved, scanned, segmentation, structures
from pydicom.uid import generate_uid

from components.ct.labels.onto_grid import read_labels
from components.ct.store import Volume
from components.errors import UserError
from components.looking.folder import read_folder
from components.looking.volume import export, export_labels, facts, open_volume, picture
from flows.volumes import add_options

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    return scanned(tmp_path / "ct")


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_options(parser.add_subparsers().add_parser("volume"))
    arguments = parser.parse_args(["volume", *words, "--line", "wholebody"])
    done: int = arguments.run(arguments)
    return done


def another(scan: Scan, folder: Path, count: int, **changes: object) -> None:
    """More images in a folder, as of another series."""
    uid = generate_uid(entropy_srcs=["another series"])
    for number, item in enumerate(scan.items[:count]):
        copy = deepcopy(item)
        copy.SeriesInstanceUID, copy.SOPInstanceUID = uid, generate_uid(entropy_srcs=["another", str(number)])
        for keyword, value in changes.items():
            setattr(copy, keyword, value)
        copy.save_as(folder / f"other{number:03d}.dcm")


def test_what_is_no_image_of_the_series_is_left_out(scan: Scan) -> None:
    folder, plain = scan.folder, open_volume(scan.folder).volume
    saved(structures(scan.items[0], {"a": [contour(rectangle(scan.items[3], (1, 9), (1, 9)))]}), folder / "RS.dcm")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(64))
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1" + bytes(6000))
    (folder / "._0001.dcm").write_bytes(b"\0\5\x16\7" + bytes(4000))
    (folder / "README.txt").write_text("exported for research\n")
    (folder / "more").mkdir()
    first = sorted(p for p in folder.iterdir() if p.suffix == ".dcm" and not p.name.startswith(("._", "RS")))[0]
    (folder / "copy of it.dcm").write_bytes(first.read_bytes())
    another(scan, folder, 3, Modality="PT", SOPClassUID="1.2.840.10008.5.1.4.1.1.128")
    opened = open_volume(folder)
    np.testing.assert_array_equal(opened.volume.hu, plain.hu)
    np.testing.assert_array_equal(opened.volume.affine, plain.affine)
    assert facts(opened)["files left out"] == "1 copies, 1 dicomdir, 1 no_image, 3 not_ct, 3 not_dicom"
    mask = read_labels(folder / "RS.dcm", opened.volume.affine, opened.volume.hu.shape, opened.origin)
    assert mask.segments[0].name == "a"


def test_a_clean_folder_leaves_nothing_out(scan: Scan) -> None:
    assert read_folder(scan.folder, only_largest_stack=False).left_out == {}
    assert "files left out" not in facts(open_volume(scan.folder))


def test_other_folders_are_one_line(scan: Scan, tmp_path: Path) -> None:
    (tmp_path / "pet").mkdir()
    another(scan, tmp_path / "pet", 5, Modality="PT", SOPClassUID="1.2.840.10008.5.1.4.1.1.128")
    with pytest.raises(UserError, match=r"folder pet: no CT image in it \(5 not_ct\); allowed: a folder with one CT"):
        open_volume(tmp_path / "pet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"folder empty: no CT image in it \(no file\)"):
        open_volume(tmp_path / "empty")
    another(scan, scan.folder, 20)
    with pytest.raises(UserError, match=r"folder ct: 2 CT series in it, of 24, 20 images; allowed: one in a folder"):
        open_volume(scan.folder)
    for path in scan.folder.glob("other*"):
        path.unlink()
    cut = sorted(scan.folder.glob("*.dcm"))[5]
    cut.write_bytes(cut.read_bytes()[:-1000])
    with pytest.raises(UserError, match=rf"{cut.name}: damaged or cut-short DICOM file"):
        open_volume(scan.folder)
    (tmp_path / "scan.nrrd").write_bytes(b"NRRD0004\n")
    with pytest.raises(UserError, match=r"volume scan\.nrrd: \.nrrd is not allowed: a \.b2nd, \.nii or \.nii\.gz file"):
        open_volume(tmp_path / "scan.nrrd")


@pytest.mark.parametrize("what", ["three slices missing", "one gap much longer"])
def test_slices_that_are_no_even_stack_are_not_shown_as_one(what: str, tmp_path: Path, project: Path) -> None:
    scan = scanned(tmp_path / "ct", dict.fromkeys(range(12, 24), 1.5) if what == "one gap much longer" else None)
    if what == "three slices missing":
        gone = {item.SOPInstanceUID for item in scan.items[10:13]}
        for path in list(scan.folder.iterdir()):
            if pydicom.dcmread(path).SOPInstanceUID in gone:
                path.unlink()
    target = tmp_path / "out.nii.gz"
    commands = (["export", str(scan.folder), str(target)], ["show", str(scan.folder), "--output", str(target)],
                ["label", str(scan.folder), "labels.nii", "--output", str(target)])  # fmt: skip
    for words in commands:
        with pytest.raises(UserError, match=r"volume ct: uneven_spacing: .*--force where you|series: a gap of"):
            run(*words)
        assert not target.exists()
    if what == "one gap much longer":
        assert run(*commands[0], "--force") == 0
        assert target.exists()
        assert run("info", str(scan.folder)) == 0


def test_what_training_would_reject_is_told(
    scan: Scan, tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", str(scan.folder), str(tmp_path / "out.nii.gz")) == 0
    assert capsys.readouterr().err == "", "nothing to tell of a sound series"
    for path in scan.folder.glob("*.dcm"):
        item = pydicom.dcmread(path)
        item.KVP = "20"
        item.save_as(path)
    assert run("export", str(scan.folder), str(tmp_path / "out.nii.gz")) == 0
    assert "warning: kvp: tube voltage at least" in capsys.readouterr().err


CRASHING = """
import ctypes
import components.looking.{module} as module
module.{reader} = lambda *_: ctypes.string_at(0)
from flows.cli import main
main()
"""


@pytest.mark.parametrize(("module", "reader"), [("folder", "read_series"), ("volume", "read_nifti")])
def test_a_scan_that_kills_its_reader_is_one_line_and_nothing_is_written(
    scan: Scan, tmp_path: Path, module: str, reader: str
) -> None:
    """Its reader, and not the command: a decoder is C code."""
    path = scan.folder if module == "folder" else tmp_path / "ct.nii.gz"
    if module == "volume":
        export(open_volume(scan.folder), path)
    before = sorted(tmp_path.iterdir())
    code = CRASHING.format(module=module, reader=reader)
    command = [sys.executable, "-W", "ignore", "-c", code, "volume", "export", str(path), str(tmp_path / "out.nii.gz")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    said = f"ctfoundry: {path.name}: its reader crashed (SIGSEGV): the file is damaged, or not what its header says\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
    assert sorted(tmp_path.iterdir()) == before


def test_labels_of_another_scan_need_force(
    scan: Scan, tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rois = {"a": [contour(rectangle(i, (20.5, 60.5), (20.5, 60.5))) for i in scan.items[5:9]]}
    path, target = saved(structures(scan.items[0], rois, "1.2.3.4.5"), tmp_path / "RS.dcm"), tmp_path / "out.nii.gz"
    words = ("label", str(scan.folder), str(path), "--output", str(target))
    with pytest.raises(UserError, match=r"labels RS\.dcm: they are drawn in another frame of reference"):
        run(*words)
    assert not target.exists()
    assert run(*words, "--force") == 0
    assert target.exists()
    assert run("export", str(scan.folder), str(tmp_path / "ct.nii")) == 0
    assert "frame of reference" not in capsys.readouterr().err
    assert run("label", str(tmp_path / "ct.nii"), str(path), "--output", str(target)) == 0
    assert "warning: the volume's frame of reference is not known" in capsys.readouterr().err


def test_a_tilted_scan_is_straightened_and_said_to_be_tilted(tmp_path: Path) -> None:
    scan = scanned(tmp_path / "ct", gantry_tilt_deg=15.0)
    step = np.linalg.norm(scan.volume.affine[:3, 0])
    opened = open_volume(scan.folder)
    assert facts(opened)["gantry tilt"].startswith("15.0 degrees")
    assert opened.volume.spacing[0] == pytest.approx(step * np.cos(np.radians(15.0)), rel=1e-3), "from slice to slice"
    axes = opened.volume.affine[:3, :3] / opened.volume.spacing
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    export(opened, tmp_path / "out.nii.gz")
    image = SimpleITK.ReadImage(str(tmp_path / "out.nii.gz"))  # it refuses what is sheared
    assert SimpleITK.GetArrayFromImage(image).shape[0] == 24
    mask = np.zeros((*scan.volume.hu.shape, 1), np.uint8)
    mask[5:9, 20:60, 20:60] = 1
    path = saved(segmentation(scan.items, mask), tmp_path / "seg.dcm")
    found = read_labels(path, opened.volume.affine, opened.volume.hu.shape, opened.origin).mask("segment 1")
    np.testing.assert_array_equal(np.flatnonzero(found.any(axis=(1, 2))), range(5, 9))
    assert np.median(np.abs(opened.volume.hu[found].astype(float) - scan.volume.hu[mask[..., 0] == 1])) < 60
    assert "gantry tilt" not in facts(open_volume(scanned(tmp_path / "upright").folder))


def test_overlapping_segments_can_be_chosen_or_written_each(
    scan: Scan, tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a planning system's structures are: the tumour lies in the lung."""
    lung = [contour(rectangle(i, (20.5, 60.5), (20.5, 60.5))) for i in scan.items[5:15]]
    tumour = [contour(rectangle(i, (30.5, 40.5), (30.5, 40.5))) for i in scan.items[7:10]]
    path = saved(structures(scan.items[0], {"Lung [/left]/1": lung, "GTV": tumour}), tmp_path / "RS.dcm")
    words = ("label", str(scan.folder), str(path), "--output")
    with pytest.raises(UserError, match=r"labels to all\.nii\.gz: segments overlap, .* allowed: some of them \(--segm"):
        run(*words, str(tmp_path / "all.nii.gz"))
    assert not list(tmp_path.glob("all*"))
    assert run(*words, str(tmp_path / "tumour.nii.gz"), "--segment", "GTV") == 0
    shape, affine = scan.volume.hu.shape, scan.volume.affine
    one = read_labels(tmp_path / "tumour.nii.gz", affine, shape)
    assert [(s.name, s.code, s.voxels) for s in one.segments] == [("GTV", "ORGAN", 300)]
    assert run(*words, str(tmp_path / "each")) == 0
    assert "Lung [/left]/1" in capsys.readouterr().out, "as it stands, not as markup"
    files = sorted((tmp_path / "each").glob("*.nii.gz"))
    assert [file.name for file in files] == ["01-Lung_left_1.nii.gz", "02-GTV.nii.gz"]
    both = read_labels(path, affine, shape)
    for file, name in zip(files, ("Lung [/left]/1", "GTV"), strict=True):
        np.testing.assert_array_equal(read_labels(file, affine, shape).mask(name), both.mask(name))
    with pytest.raises(UserError, match=r"labels to a\.png: allowed are names that end in .*, and folders"):
        export_labels(both, tmp_path / "a.png")


def test_titles_of_a_row_stand_clear_of_the_planes_above() -> None:
    """Planes of a stack a few voxels high and deep are low."""
    from components.looking.volume import Opened

    flat = Volume(np.zeros((3, 3, 200), np.int16), np.diag([5.0, 5.0, 5.0, 1.0])[:, [2, 1, 0, 3]])
    figure = picture(Opened("flat", flat, {}), ("soft", "lung", "bone", "brain"), None, None)
    figure.canvas.draw()  # type: ignore[no-untyped-call]
    drawn: object = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    axes = figure.axes
    for above, below in zip(axes, axes[3:], strict=False):
        title = below.title.get_window_extent(drawn)  # type: ignore[arg-type]
        plane = above.get_window_extent(drawn)  # type: ignore[arg-type]
        assert title.y1 <= plane.y0, f"{title.y1:.0f} of {plane.y0:.0f} pixels"
