"""``ctfoundry run``: every scan of a folder, as the service answers it; killed and gone on with, to the same bytes."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from client import PATIENT, ct_slice, nifti, zipped
from conftest import running
from released import ROOT, write_segmenter

from components.bundle.manifest import write_manifest
from tests.unit.test_serving_classifying import head

SERIES = {"1.2.3.4": 26, "1.2.3.5": 24}
TEXT_SUFFIXES = (".csv", ".json", ".html")


def instance(number: int, series: str, **changes: Any) -> bytes:
    return ct_slice(number, series, FrameOfReferenceUID="1.2.5", **changes)


def served(folder: Path, code: str) -> Path:
    """The release with a head that classifies scans and one that segments them."""
    head(folder, "findings/ich", "scan")
    write_segmenter(folder, "organs_segmented", ("liver", "kidney_left"))
    write_manifest(folder, "wholebody", "ctfoundry-wholebody", {"code": code * 64})
    return folder


@pytest.fixture(scope="module")
def checkout(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a release, and ``scans``: two series mixed in one folder with a scout and a damaged file, and
    elsewhere a zip, a NIfTI volume and a copy of it, none of them named as what it is."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "dvc.yaml").touch()
    (root / "params.yaml").write_text("lines: [wholebody]\n")
    served(Path(shutil.copytree(bundle, root / "releases" / "wholebody")), "0")
    mixed, other = root / "scans" / "mixed", root / "scans" / "other" / "deep"
    mixed.mkdir(parents=True)
    other.mkdir(parents=True)
    for series, count in SERIES.items():
        for number in range(count):
            (mixed / f"{number:02d}-{series[-1]}").write_bytes(instance(number, series))
    (mixed / "scout").write_bytes(instance(0, "1.2.3.9", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    (mixed / "damaged.dcm").write_bytes(instance(0, "1.2.3.4")[:300])
    (other / "archive").write_bytes(packed("1.2.3.6", 22))
    (other / "volume.dat").write_bytes(nifti())
    (other / "volume-copy.dat").write_bytes(nifti())
    (other / "notes.txt").write_text("hello")
    return root


def packed(series: str, count: int) -> bytes:
    return zipped({f"IM{number:02d}": instance(number, series) for number in range(count)})


def started(checkout: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-W", "ignore", "-c", "from flows.cli import main; main()", "run", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.Popen(
        program, cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(checkout: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    process = started(checkout, *arguments, **variables)
    said, errors = process.communicate(timeout=300)
    return process.returncode, said, errors


def tree(folder: Path) -> dict[str, str]:
    """Every file but the lock, and the SHA-256 of its bytes."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(out: Path) -> dict[str, dict[str, str]]:
    """By kind and where."""
    with (out / "scans.csv").open(newline="") as file:
        return {f"{row['kind']} {row['where']} {row['instances']}": row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def whole(checkout: Path) -> Path:
    """The output of a run that nothing interrupted."""
    code, said, errors = run(checkout, "scans", "--output", "whole")
    assert code == 3, errors
    assert said == ("5 scans: 4 done, 1 failed; files left out: 1 duplicate, 1 localizer, 1 not_dicom; "
                    "see whole/report.html\n")  # fmt: skip
    assert "failed: mixed: damaged.dcm: damaged or cut-short DICOM file" in errors
    return checkout / "whole"


def test_every_file_is_of_a_row_or_left_out_for_a_reason(whole: Path) -> None:
    found = rows(whole)
    assert sorted((name, row["status"]) for name, row in found.items()) == [
        ("dicom mixed ", "failed"), ("dicom mixed 24", "done"), ("dicom mixed 26", "done"),
        ("nifti other/deep/volume-copy.dat 1", "done"), ("zip other/deep/archive 22", "done"),
    ]  # fmt: skip
    assert (whole / "left_out.csv").read_text() == (
        "where,reason,files\nmixed,localizer,1\nother/deep,not_dicom,1\nother/deep/volume.dat,duplicate,1\n"
    )
    row = found["dicom mixed 26"]
    assert (row["shape"], row["spacing_mm"], row["id"]) == ("26 x 128 x 128", "3 x 2.5 x 2.5", row["series"])
    assert 0 < float(row["findings/ich:present"]) < 1
    assert row["findings/ich"] in ("absent", "present")
    assert float(row["organs_segmented:liver_ml"]) + float(row["organs_segmented:kidney_left_ml"]) > 0


def test_the_answers_are_those_of_the_service(
    checkout: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = rows(whole)
    sent = {f"dicom mixed {count}": packed(series, count) for series, count in SERIES.items()}
    sent |= {"zip other/deep/archive 22": packed("1.2.3.6", 22), "nifti other/deep/volume-copy.dat 1": nifti()}
    vectors = np.load(whole / "embeddings.npz")
    assert vectors["embeddings"].dtype == np.float32
    with running(checkout / "releases" / "wholebody", tmp_path_factory.mktemp("bentoml")) as (url, _):
        for name, content in sent.items():
            receipt = json.loads((whole / "receipts" / f"{found[name]['id']}.json").read_text())

            def ask(route: str, content: bytes = content) -> httpx.Response:
                answer = httpx.post(f"{url}/{route}", content=content, timeout=60)
                assert answer.status_code == 200
                return answer

            assert receipt["answers"] == {
                "embed": ask("embed").json(),
                "classify": ask("classify").json(),
                "segment": {"organs_segmented": ask("segment").json()},
            }
            at = vectors["ids"].tolist().index(receipt["id"])
            np.testing.assert_array_equal(vectors["embeddings"][at], np.float32(ask("embed").json()["embedding"]))
            label_map = whole / found[name]["organs_segmented:file"]
            assert label_map.read_bytes() == ask("segment?form=nifti").content


def test_receipts_tell_what_went_in_and_came_out_and_nothing_names_the_patient(checkout: Path, whole: Path) -> None:
    receipts = [json.loads(path.read_text()) for path in (whole / "receipts").iterdir()]
    assert len(receipts) == 5
    for receipt in receipts:
        assert receipt["release"]["digest"] == json.loads((whole / "run.json").read_text())["release"]["digest"]
        for output in receipt["outputs"].values():
            assert hashlib.sha256((whole / output["file"]).read_bytes()).hexdigest() == output["sha256"]
        if receipt["kind"] != "dicom":
            content = (checkout / "scans" / receipt["where"]).read_bytes()
            assert receipt["input"]["sha256"] == hashlib.sha256(content).hexdigest()
    for path in (path for path in whole.rglob("*") if path.suffix in TEXT_SUFFIXES):
        text = path.read_text()
        assert PATIENT not in text
        assert "1.2.3." not in text, "a UID"
        assert str(checkout) not in text, "a place of this machine"
    page = (whole / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page.replace("http-equiv", "")


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(checkout: Path, whole: Path) -> None:
    out = checkout / "killed"
    for _ in range(2):
        before = set(out.glob("receipts/*.json"))
        process = started(checkout, "scans", "--output", "killed", "--jobs", "1")
        deadline = time.monotonic() + 120
        while set(out.glob("receipts/*.json")) == before and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = {path: path.stat().st_mtime_ns for path in out.glob("receipts/*.json")}
    assert 1 <= len(done) < 5
    code, _, errors = run(checkout, "scans", "--output", "killed", "--jobs", "2")
    assert code == 3, errors
    assert "kept: " in errors
    kept = [path for path, when in done.items() if path.stat().st_mtime_ns == when]
    assert len(kept) >= len(done) - 1, "what was done is not done again, but for the damaged file"
    assert tree(out) == tree(whole)


def test_what_is_no_longer_so_is_made_again_and_said(checkout: Path, whole: Path) -> None:
    out = Path(shutil.copytree(whole, checkout / "changed"))
    scans = Path(shutil.copytree(checkout / "scans", checkout / "other-scans"))
    (scans / "other" / "deep" / "archive").write_bytes(packed("1.2.3.6", 23))
    (scans / "other" / "deep" / "volume-copy.dat").unlink()
    (scans / "other" / "deep" / "volume.dat").unlink()
    (scans / "mixed" / "damaged.dcm").unlink()
    picture = next((out / "pictures").glob("s*.png"))
    picture.write_bytes(b"not what the receipt says")
    code, said, errors = run(checkout, "other-scans", "--output", "changed")
    assert (code, said[:16]) == (0, "3 scans: 3 done;"), errors
    assert "made again: 1, whose results were damaged\nmade again: 1, whose results were of other input" in errors
    assert "removed: results of 2 that the folder no longer holds" in errors
    run(checkout, "other-scans", "--output", "anew")
    assert tree(out) == tree(checkout / "anew")
    code, _, errors = run(checkout, "other-scans", "--output", "changed", "--only", "embed")
    assert (code, "made again: 3, whose results were of other options" in errors) == (0, True)
    assert not list((out / "segmentations").iterdir())


def test_segmentations_are_dicom_where_asked_for_and_possible(checkout: Path, whole: Path) -> None:
    code, _, errors = run(checkout, "scans", "--output", "seg", "--only", "segment", "--form", "dicom")
    assert code == 3, errors
    suffixes = sorted(path.name.partition(".")[2] for path in (checkout / "seg" / "segmentations").iterdir())
    assert suffixes == ["dcm", "dcm", "dcm", "nii.gz"]
    assert not (checkout / "seg" / "embeddings.npz").exists()


def test_an_output_that_is_anothers_is_refused_in_one_line(checkout: Path, whole: Path, bundle: Path) -> None:
    releases = checkout / "releases"
    out = Path(shutil.copytree(whole, checkout / "mine"))
    process = started(checkout, "scans", "--output", "busy")
    while not (checkout / "busy" / ".lock").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.5)
    code, _, errors = run(checkout, "scans", "--output", "busy")
    process.communicate()
    assert (code, errors) == (1, "ctfoundry: --output 'busy' is in use by another run; wait for it to end, or choose "
                              "another folder\n")  # fmt: skip
    (releases / "wholebody").rename(releases / "before")
    try:
        served(Path(shutil.copytree(bundle, releases / "wholebody")), "1")
        code, _, errors = run(checkout, "scans", "--output", "mine")
        assert (code, len(errors.splitlines())) == (1, 1)
        assert "--output 'mine' is of another release" in errors
        assert tree(out) == tree(whole), "nothing was touched"
        code, _, errors = run(checkout, "scans", "--output", "mine", "--again")
        assert (code, "made again: 5, whose results were of another release" in errors) == (3, True)
    finally:
        shutil.rmtree(releases / "wholebody")
        (releases / "before").rename(releases / "wholebody")


def test_a_scan_beyond_its_bounds_costs_itself_only(checkout: Path, whole: Path) -> None:
    code, said, errors = run(checkout, "scans", "--output", "small", CTFOUNDRY_MAX_VOXELS="2500000")
    assert (code, said[:26]) == (3, "5 scans: 3 done, 2 failed;"), errors
    assert "failed: mixed: volume of 78 x 320 x 320 mm: 2.66e+06 voxels on the model's grid, at most 2500000" in errors
    code, said, errors = run(checkout, "scans", "--output", "small")
    assert (code, said[:26]) == (3, "5 scans: 4 done, 1 failed;"), "what failed is tried again"
    assert tree(checkout / "small") == tree(whole)
