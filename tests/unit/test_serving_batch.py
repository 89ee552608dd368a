"""Many scans: which files are one scan, what is told of the rest, and what a row, a picture and the page show."""

from __future__ import annotations

import io
import json
import os
import random
import sys
import tarfile
from pathlib import Path
from typing import Any

import cv2
import nibabel as nib
import numpy as np
import pytest

from components.ct.dicom import read_series
from components.ct.keys import series_key
from components.ct.store import Volume
from components.errors import UserError
from flows.cli import main
from serving.batch import _asked, _line
from serving.batch_command import _jobs
from serving.batch_files import alone, check_places, check_release, clean, remove_others
from serving.batch_inputs import ScanFiles, as_upload, find_scans, input_of
from serving.batch_report import write_report
from serving.batch_scan import picture
from serving.batch_tables import row_of, write_tables
from serving.embedding import Found, Grid, Scan
from serving.limits import Limits
from serving.reading import read_upload
from tests.integration.serving.client import PATIENT, ct_slice, nifti, zipped

LIMITS = Limits()
RUN = {"format": 1, "release": {"name": "ctfoundry-wholebody", "line": "wholebody", "digest": "ab" * 32},
       "options": {"only": ["embed", "classify", "segment"], "form": "nifti"}}  # fmt: skip
FOUND = {"kind": "dicom", "series": "s0123456789abcdef", "instances": 5, "ignored": {},
         "as_sent": {"shape": [5, 64, 48], "spacing_mm": [3.0, 0.78125, 0.5], "orientation": "SPL"},
         "body_fraction": 0.25, "warnings": ["too few: <b>5</b>"]}  # fmt: skip


def files(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def series(uid: str, count: int = 4, prefix: str = "") -> dict[str, bytes]:
    return {f"{prefix}{uid[-1]}-{number}": ct_slice(number, uid) for number in range(count)}


def receipt(name: str = "s1", **changes: Any) -> dict[str, Any]:
    base = {**RUN, "id": name, "where": "a/b", "kind": "dicom", "input": {}, "status": "done", "reason": ""}
    return base | {"answers": {}, "outputs": {}} | changes


def answered(name: str = "s1") -> dict[str, Any]:
    head = {"answer": "present", "probabilities": {"absent": 0.25, "present": 0.75}, "limits": ["Of a test."]}
    structures = {"1": {"name": "liver", "volume_ml": 12.5}, "2": {"name": "spleen", "volume_ml": 0.0}}
    answers = {
        "embed": {"embedding": [0.1, 0.2], "found": FOUND},
        "classify": {"answers": {"findings/ich": head}, "found": FOUND},
        "segment": {"organs": {"structures": structures, "limits": ["Of a test."], "found": FOUND}},
    }
    outputs = {"segment organs": {"file": f"segmentations/{name}.nii.gz", "sha256": ""},
               "picture": {"file": f"pictures/{name}.png", "sha256": ""}}  # fmt: skip
    return receipt(name, answers=answers, outputs=outputs)


def test_series_are_told_apart_by_their_headers_wherever_their_files_lie(tmp_path: Path) -> None:
    contents = {**series("1.2.1"), **series("1.2.2"), **series("1.2.1", 2, "deep/er/"), "zip": zipped(series("1.2.3"))}
    contents |= {"more/scan": nifti(), "more/plain": nifti(compress=False)}
    contents["deep/er/1-0"] = ct_slice(7, "1.2.1")
    found = find_scans(files(tmp_path / "one", contents), LIMITS)
    told = [(scan.where, scan.kind, len(scan.files)) for scan in found.scans]
    assert told == [
        (".", "dicom", 4), (".;deep/er", "dicom", 5), ("more/plain", "nifti", 1), ("more/scan", "nifti", 1),
        ("zip", "zip", 1),
    ]  # fmt: skip
    assert found.left_out == {("deep/er", "duplicate"): 1}
    assert found.scans[1].id == series_key(f"{PATIENT}|1.2.3|1.2.1|")
    shuffled = list(contents.items())
    random.Random(3).shuffle(shuffled)
    assert find_scans(files(tmp_path / "other", dict(shuffled)), LIMITS) == found


def test_what_is_no_scan_is_counted_by_reason(tmp_path: Path) -> None:
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    contents = {**series("1.2.1"), "scout": ct_slice(0, "1.2.7", **scout), "mr": ct_slice(0, "1.2.8", Modality="MR")}
    contents |= {"text": b"hello", "empty": b"", "x/again": nifti(), "x/scan": nifti()}
    folder = files(tmp_path, contents)
    (folder / "broken").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    found = find_scans(folder, LIMITS)
    assert [scan.where for scan in found.scans] == [".", "x/again"]
    assert found.left_out == {
        (".", "broken_link"): 1, (".", "localizer"): 1, (".", "not_ct"): 1, (".", "not_dicom"): 2, (".", "special"): 1,
        ("x/scan", "duplicate"): 1,
    }  # fmt: skip


def test_a_series_with_a_scout_or_another_image_among_its_slices_is_a_scan_that_reading_judges(tmp_path: Path) -> None:
    contents = series("1.2.1") | {"dose": ct_slice(9, "1.2.1", Modality="OT")}
    contents |= {"scout": ct_slice(8, "1.2.1", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])}
    (scan,) = find_scans(files(tmp_path, contents), LIMITS).scans
    assert len(scan.files) == 6


def test_a_damaged_file_counts_to_the_series_of_its_folder_or_is_told_of_alone(tmp_path: Path) -> None:
    damaged = ct_slice(0, "1.2.1")[:300]
    contents = {**series("1.2.1", prefix="one/"), "one/damaged": damaged}
    contents |= {**series("1.2.2", prefix="two/"), **series("1.2.3", prefix="two/"), "two/damaged": damaged + b" "}
    contents |= {"one/overwritten.dcm": bytes(1000), "one/._resource.dcm": b"of macOS"}
    found = find_scans(files(tmp_path, contents), LIMITS)
    assert sorted((scan.where, len(scan.files)) for scan in found.scans) == [
        ("one", 1), ("one", 5), ("two", 1), ("two", 4), ("two", 4),
    ]  # fmt: skip
    assert found.left_out == {("one", "not_dicom"): 1}


def test_a_folder_without_a_scan_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no CT scan in it \(1 not_dicom\); allowed: DICOM series, zips of one, NIfTI"):
        find_scans(files(tmp_path, {"text": b"hello"}), LIMITS)
    with pytest.raises(UserError, match="no such folder"):
        find_scans(tmp_path / "missing", LIMITS)


def test_a_name_may_be_any_bytes(tmp_path: Path) -> None:
    for number, content in enumerate(series("1.2.1").values()):
        (tmp_path / os.fsdecode(b"\xff%d" % number)).write_bytes(content)
    (tmp_path / os.fsdecode(b"\xfe.nii")).write_bytes(nifti(compress=False))
    dicom, volume = find_scans(tmp_path, LIMITS).scans
    (tmp_path / "scratch").mkdir()
    assert read_upload(as_upload(tmp_path, dicom, tmp_path / "scratch"), "zip", LIMITS).instances == 4
    assert volume.where == "\ufffd.nii"


def test_the_input_is_known_by_its_bytes_and_not_by_names(tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        (scan,) = find_scans(folder, LIMITS).scans
        return str(input_of(folder, scan)["sha256"])

    contents = series("1.2.1")
    first = digest(files(tmp_path / "a", contents))
    renamed = {f"deep/{99 - n}": content for n, content in enumerate(contents.values())}
    assert digest(files(tmp_path / "b", renamed)) == first
    pixels = bytearray(contents["1-2"])
    pixels[-9] ^= 1
    assert digest(files(tmp_path / "c", contents | {"1-2": bytes(pixels)})) != first


@pytest.mark.parametrize("uid", ["1.2.1", ""])
def test_a_series_is_read_as_the_service_reads_its_zip(uid: str, tmp_path: Path) -> None:
    contents = {f"a/{n}": ct_slice(n, "1.2.1", SeriesInstanceUID=uid) for n in range(5)}
    folder = files(tmp_path / "in", contents)
    (scan,) = find_scans(folder, LIMITS).scans
    reading = read_upload(as_upload(folder, scan, tmp_path), "zip", LIMITS)
    np.testing.assert_array_equal(reading.volume.hu, read_series([folder / file for file in scan.files]).hu)
    assert reading.ignored == {}


@pytest.mark.parametrize("axes", ["SPL", "IPR", "RAS", "SAR"])
def test_a_picture_shows_the_middle_slice_as_a_workstation_does(axes: str) -> None:
    """The patient's left is at the right and anterior at the top, whatever the array's axes; true to millimetres."""
    hu = np.full((36, 40, 20), -1000, np.int16)  # right, anterior, superior: 2, 1, 3 mm
    labels = np.zeros(hu.shape, np.uint8)
    hu[:9, 30:, 10] = 240  # the patient's left, anterior, in the middle
    hu[:, :, :10] = hu[:, :, 11:] = 100
    labels[27:, :10, 10] = 3  # right, posterior
    affine = np.diag([2.0, 1.0, 3.0, 1.0])
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(axes))
    )
    turned = nib.orientations.apply_orientation(hu, turn)
    moved = affine @ nib.orientations.inv_ornt_aff(turn, hu.shape)
    grid = Grid((1, 1, 1), (1.0, 1.0, 1.0), axes)
    volume = Volume(np.ascontiguousarray(turned), moved)
    scan = Scan(volume, volume, Found("nifti", "", 1, {}, grid, grid, 0.5, ()))
    content = picture(scan, nib.orientations.apply_orientation(labels, turn))
    shown = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (178, 320, 3)  # 40 mm by 72 mm
    assert shown[10, 310].tolist() == [255, 255, 255]
    assert shown[10, 10].tolist() == [0, 0, 0]
    assert shown[170, 10].tolist() == [115, 59, 4]  # the third colour in BGR, over black
    assert shown[170, 310].tolist() == [0, 0, 0]
    assert picture(scan, None) != content


def test_a_row_holds_findings_and_volumes_by_name(tmp_path: Path) -> None:
    row = row_of(answered())
    assert (row["shape"], row["spacing_mm"], row["warnings"]) == ("5 x 64 x 48", "3 x 0.78125 x 0.5", 1)
    assert (row["findings/ich"], row["findings/ich:present"]) == ("present", 0.75)
    assert (row["organs:liver_ml"], row["organs:file"]) == (12.5, "segmentations/s1.nii.gz")
    failed = receipt("s2", status="failed", reason='a "quoted", reason')
    write_tables(tmp_path, [failed, answered()], {("x", "localizer"): 2})
    lines = (tmp_path / "scans.csv").read_text().splitlines()
    assert lines[1].startswith('s2,a/b,dicom,failed,"a ""quoted"", reason",,')
    vectors = np.load(tmp_path / "embeddings.npz")
    assert (vectors["ids"].tolist(), vectors["embeddings"].shape) == (["s1"], (1, 2))
    before = (tmp_path / "embeddings.npz").read_bytes()
    write_tables(tmp_path, [failed, answered()], {})
    assert (tmp_path / "embeddings.npz").read_bytes() == before


def test_the_page_shows_what_was_found_and_believes_no_name(tmp_path: Path) -> None:
    scans = [answered(f"s{n:02d}") | {"where": "<script>alert(1)</script>"} for n in range(26)]
    (tmp_path / "pictures").mkdir()
    for scan in scans:
        (tmp_path / scan["outputs"]["picture"]["file"]).write_bytes(b"PNG")
    scans.append(receipt("s99", status="failed", reason="damaged & cut short"))
    write_report(tmp_path, RUN, scans, {("x", "localizer"): 2, ("y", "localizer"): 1})
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("data:image/png;base64,") == 24
    for text in (RUN["release"]["digest"], "damaged &amp; cut short", "findings/ich: present (0.750)", "liver 12.5 ml",
                 "too few: &lt;b&gt;5&lt;/b&gt;", '<td>scouts</td><td class="n">3</td>', "Of a test."):  # fmt: skip
        assert text in page
    assert "spleen 0.0 ml" not in page


def test_an_output_is_new_or_that_of_a_run_and_outside_of_the_input(tmp_path: Path) -> None:
    folder = files(tmp_path / "in", {"a": b"", "b/c": b""})
    out = tmp_path / "out"
    check_places(folder, out)
    refused = {folder / "b": "lies in the folder that is read", folder: "lies in the folder that is read",
               folder / "a": "a file; a new or empty folder", tmp_path: "it holds other files"}  # fmt: skip
    for wrong, says in refused.items():
        with pytest.raises(UserError, match=says):
            check_places(folder, wrong)
    with alone(out):
        check_places(folder, out)  # as a run leaves it that was killed at once
        with pytest.raises(UserError, match="is in use by another run"), alone(out):
            pass
    with alone(out):
        pass


def test_another_releases_output_is_kept_unless_asked_for(tmp_path: Path) -> None:
    check_release(tmp_path, "cd" * 32, again=False)
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    check_release(tmp_path, "ab" * 32, again=False)
    with pytest.raises(UserError, match=r"is of another release \(abababababab; now it is cdcdcdcdcdcd\); choose"):
        check_release(tmp_path, "cd" * 32, again=False)
    check_release(tmp_path, "cd" * 32, again=True)


def test_what_a_killed_run_left_and_what_nothing_names_goes(tmp_path: Path) -> None:
    left = (".scratch-x/1/upload", ".scans.csv.host.1.partial", "receipts/.a.json.host.2.partial")
    kept = ("receipts/s1.json", "segmentations/s1.nii.gz", "pictures/s1.png", "notes")
    gone = ("receipts/s2.json", "segmentations/s2.dcm", "pictures/s2.png")
    files(tmp_path, dict.fromkeys((*left, *kept, *gone), b""))
    clean(tmp_path)
    assert remove_others(tmp_path, [answered("s1")]) == 1
    there = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert there == sorted(kept)


def test_what_is_asked_is_what_the_release_answers() -> None:
    model: dict[str, Any] = {"heads": {"organs": "point"}, "segments": {"organs_segmented": ["liver"]}}
    assert _asked(None, model) == ("embed", "segment")
    assert _asked(("segment", "embed"), model) == ("embed", "segment")
    assert _asked(None, {"heads": {"ich": "scan"}, "segments": {}}) == ("embed", "classify")
    for only, says in (
        (("classify",), "see a point"),
        (("detect",), "--only 'detect' is not allowed: of embed, class"),
    ):
        with pytest.raises(UserError, match=says):
            _asked(only, model)
    with pytest.raises(UserError, match="no head that segments"):
        _asked(("segment",), {"heads": {}, "segments": {}})


def test_a_refusal_of_a_series_speaks_of_no_zip() -> None:
    scan = ScanFiles("s1", ".", "dicom", ("a",))
    assert _line(scan, "zip: 2 of the\n4 images are no CT") == "series: 2 of the 4 images are no CT"
    assert _line(ScanFiles("f1", "a", "zip", ("a",)), "zip: damaged") == "zip: damaged"


@pytest.mark.parametrize("text", ["0", "-1", "two", "1000000", ""])
def test_jobs_are_at_most_the_cores(text: str) -> None:
    with pytest.raises(UserError, match=r"is not allowed: scans at a time, 1 to \d+, the cores of this machine"):
        _jobs(text)
    assert _jobs("1") == 1


def test_a_wrong_form_ends_with_status_1_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ctfoundry", "run", "in", "--output", "out", "--form", "png"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "ctfoundry: --form 'png' is not allowed: nifti or dicom\n"


def test_a_tar_is_a_scan_of_its_own_and_is_sent_as_it_is(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for number in range(6):
            content = ct_slice(number, "1.2.7")
            info = tarfile.TarInfo(f"IM{number}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    folder = files(tmp_path / "in", {"day/one.tar.gz": buffer.getvalue()})
    (scan,) = find_scans(folder, LIMITS).scans
    assert (scan.kind, scan.where) == ("tar", "day/one.tar.gz")
    assert read_upload(as_upload(folder, scan, tmp_path), "tar", LIMITS).instances == 6
