"""Saliency, the place of a point and the nearest cases: over HTTP as offline, whatever the scan is sent in."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pydicom
import pytest
from answering import write_answering, write_index
from client import PATIENT, ct_series, ct_slice, nifti, refused, zipped
from conftest import running

from serving.asking import INDEX_VARIABLE
from serving.embedding import ServedBundle, open_release
from serving.explaining import Wanted, saliency_file
from serving.locating import locate_files
from serving.nearest import Index, retrieve_file

POINT = (0.0, 0.0, 40.0)
AT = "point_mm=0,0,40"


@pytest.fixture(scope="module")
def folder(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_answering(bundle, tmp_path_factory.mktemp("heads") / "wholebody")


@pytest.fixture(scope="module")
def offline(folder: Path) -> ServedBundle:
    return open_release(folder)


@pytest.fixture(scope="module")
def index(offline: ServedBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_index(offline, tmp_path_factory.mktemp("index") / "cases.safetensors")


@pytest.fixture(scope="module")
def served(folder: Path, index: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(folder, tmp_path_factory.mktemp("bentoml"), **{INDEX_VARIABLE: str(index)}) as (address, _):
        yield address


@pytest.fixture(scope="module")
def scan(good: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan"
    path.write_bytes(good)
    return path


def test_a_head_is_explained_as_offline(served: str, offline: ServedBundle, scan: Path, good: bytes) -> None:
    query = f"head=organs&{AT}&blocks=3&of_class=absent"
    answer = httpx.post(f"{served}/saliency?{query}", content=good, timeout=60)
    found = saliency_file(scan, offline, Wanted("organs", "absent", POINT, blocks=3))
    assert answer.json() == json.loads(json.dumps(found.content))
    assert PATIENT not in answer.text
    image = httpx.post(f"{served}/saliency?{query}&form=nifti", content=good, timeout=60)
    assert image.headers["content-disposition"] == 'attachment; filename="saliency.nii.gz"'
    assert image.content == found.as_nifti()
    read = nib.Nifti1Image.from_bytes(gzip.decompress(image.content))
    assert read.shape == (128, 128, 26)
    assert np.asarray(read.dataobj).dtype == np.float32
    for way, part in (("gradients", f"head=organs&{AT}&way=gradients"), ("occlusion", "head=findings/ich")):
        told = httpx.post(f"{served}/saliency?{part}", content=good, timeout=60).json()
        assert told["way"] == way


def test_a_point_is_found_as_offline(served: str, offline: ServedBundle, scan: Path, good: bytes) -> None:
    files = {"scan": ("a.zip", good), "other": ("b.zip", zipped(ct_series("1.2.9")))}
    answer = httpx.post(f"{served}/locate?{AT}", files=files, timeout=60)
    other = scan.with_name("other")
    other.write_bytes(files["other"][1])
    assert answer.json() == json.loads(json.dumps(locate_files(scan, other, offline, POINT)))
    assert PATIENT not in answer.text
    both = [("scan", ("a.zip", good)), *(("other", (name, of)) for name, of in ct_series("1.2.9").items())]
    assert httpx.post(f"{served}/locate?{AT}", files=both, timeout=60).json()["places"] == answer.json()["places"]


def test_the_nearest_cases_are_as_offline_and_not_of_the_patient(
    served: str, offline: ServedBundle, index: Path, scan: Path, good: bytes
) -> None:
    answer = httpx.post(f"{served}/retrieve?nearest=10", content=good, timeout=60)
    assert answer.json() == json.loads(json.dumps(retrieve_file(scan, offline, Index.read(index), 10)))
    assert {case["patient"] for case in answer.json()["nearest"]} == {"p1", "p2"}
    assert answer.json()["left_out"] == 1
    assert len(httpx.post(f"{served}/retrieve?nearest=1", content=good, timeout=60).json()["nearest"]) == 1
    unnamed = httpx.post(f"{served}/retrieve", content=nifti(), timeout=60).json()
    assert (len(unnamed["nearest"]), unnamed["left_out"]) == (3, 0)
    assert unnamed["limits"][-1].startswith("The scan names no patient")
    told = httpx.get(f"{served}/model", timeout=5).json()
    assert told["index"] == answer.json()["index"]
    assert told["classes"] == {"findings/ich": ["absent", "present"], "organs": ["absent", "present"]}


def tarred(members: dict[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


def test_a_series_is_the_same_in_whatever_it_is_sent(served: str) -> None:
    series = ct_series()
    expected = httpx.post(f"{served}/embed", content=zipped(series), timeout=60).json()
    for mode in ("w", "w:gz"):
        found = httpx.post(f"{served}/embed", content=tarred({**series, "notes.txt": b"hello"}, mode), timeout=60)
        assert found.json()["embedding"] == expected["embedding"]
        assert found.json()["found"]["ignored"] == {"not_dicom": 1}
    several = [("any", (name, content)) for name, content in reversed(series.items())]
    assert httpx.post(f"{served}/embed", files=several, timeout=60).json() == expected


def test_what_cannot_be_answered_is_one_line(served: str, url: str, good: bytes) -> None:
    def ask(query: str, status: int, says: str, base: str = served, **options: object) -> None:
        given = options or {"content": good}
        refused(httpx.post(f"{base}/{query}", timeout=60, **given), status, says, base)  # type: ignore[arg-type]

    ask("saliency", 400, "several heads classify: head= one of findings/ich, organs")
    ask("saliency?head=organs", 409, "head organs sees a point: send point_mm=R,A,S")
    ask("saliency?head=findings/ich&way=guess", 400, "way 'guess' is not allowed: occlusion, gradients")
    ask("saliency?head=findings/ich&blocks=0", 400, "blocks '0' is not allowed: a whole number from 1 to 16")
    ask("saliency?head=findings/ich&form=png", 400, "form 'png' is not allowed: json, nifti, dicom, capture")
    ask("saliency?head=findings/ich&of_class=maybe", 400, "of_class 'maybe' is not allowed: absent, present")
    ask("saliency", 404, "this release has no head that classifies", url)
    ask("saliency?head=organs&point_mm=1,2,3&point_mm=4,5,6", 400, "'point_mm' is in the query more than once")
    form = {"content-type": f"multipart/form-data; boundary={'b' * 5000}"}
    ask("embed", 400, "boundary of 5000 characters is not allowed: at most 70", content=b"--b", headers=form)
    ask("locate", 409, "this route sees a point: send point_mm=R,A,S")
    ask(f"locate?{AT}", 400, "a raw body is not allowed: one scan in each of the file fields scan, other")
    one, two = ("a.zip", good), ("b.zip", b"no scan")
    ask(f"locate?{AT}", 400, "form field 'other' holds no file", files={"scan": one})
    ask(f"locate?{AT}", 400, "form field 'more' is not allowed", files={"scan": one, "other": one, "more": one})
    ask(f"locate?{AT}", 415, "other: neither a zip", files={"scan": one, "other": two})
    ask("retrieve?nearest=101", 400, "nearest '101' is not allowed: a whole number from 1 to 100")
    ask("retrieve", 404, "no index is served: make one with `ctfoundry index`", url)
    several = [("file", (f"{n}.dcm", ct_slice(n, f"1.2.{n % 2}"))) for n in range(8)]
    ask("embed", 422, "files: 2 CT series in it (of 4, 4 images); send one at a time", files=several)
    ask("embed", 422, "tar: no CT series in it (1 not_dicom)", content=tarred({"a": b"b"}, "w:gz"))
    cut = tarred(ct_series(), "w:gz")
    ask("embed", 422, "tar: damaged or cut short", content=cut[: len(cut) // 2])


def test_a_map_is_stored_as_other_dicom_answers_are(served: str) -> None:
    series = zipped({f"{n}.dcm": ct_slice(n, "1.2.77", FrameOfReferenceUID="1.2.5") for n in range(26)})
    for form in ("dicom", "capture"):
        query = f"saliency?head=findings%2Fich&form={form}"
        first, second = (httpx.post(f"{served}/{query}", content=series, timeout=60) for _ in range(2))
        assert first.status_code == 200, first.text
        assert first.content == second.content
        assert first.headers["content-type"] == "application/dicom"
        assert pydicom.dcmread(io.BytesIO(first.content)).PatientID == PATIENT
    refused(httpx.post(f"{served}/saliency?form=dicom&head=findings%2Fich", content=nifti(), timeout=60), 422,
            "the scan was sent as NIfTI", served)  # fmt: skip
