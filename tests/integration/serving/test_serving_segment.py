"""The structures of a scan: over HTTP as offline, as JSON, NIfTI and DICOM SEG, on the scan as it was sent."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import highdicom as hd
import httpx
import nibabel as nib
import numpy as np
import pydicom
import pytest
from client import PATIENT, ct_slice, nifti, refused, zipped
from conftest import running
from released import ROOT, write_segmenter

from components.bundle.manifest import write_manifest
from components.ct.dicom import read_series
from components.ct.labels.label_map import names_within
from components.ct.labels.onto_grid import read_labels
from serving.embedding import open_release
from serving.segmenting import Segmented, segment_file

STRUCTURES = ("liver", "kidney_left", "thing of ours")


@pytest.fixture(scope="module")
def with_decoder(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("decoder") / "wholebody"))
    write_segmenter(folder, "organs_segmented", STRUCTURES)
    write_manifest(folder, "wholebody", "ctfoundry-wholebody", {"code": "0" * 64})
    return folder


@pytest.fixture(scope="module")
def segmenting(with_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(with_decoder, tmp_path_factory.mktemp("bentoml")) as (address, _):
        yield address


@pytest.fixture(scope="module")
def good() -> bytes:
    """A series whose images say in which frame of reference they lie, as scanners' do."""
    return zipped({f"CT/IM{n:03d}": ct_slice(n, "1.2.3.4", FrameOfReferenceUID="1.2.5") for n in range(26)})


@pytest.fixture(scope="module")
def offline(with_decoder: Path, good: bytes, tmp_path_factory: pytest.TempPathFactory) -> Segmented:
    scan = tmp_path_factory.mktemp("scan") / "scan.zip"
    scan.write_bytes(good)
    return segment_file(scan, open_release(with_decoder), with_images=True)


def ask(url: str, content: bytes, query: str = "") -> httpx.Response:
    return httpx.post(f"{url}/segment{query}", content=content, timeout=60)


def test_the_structures_are_told_as_offline(segmenting: str, good: bytes, offline: Segmented) -> None:
    answer = ask(segmenting, good)
    assert answer.status_code == 200
    assert answer.json() == json.loads(json.dumps(offline.content))
    found = {item["name"]: item for item in answer.json()["structures"].values()}
    assert tuple(found) == STRUCTURES
    voxel_ml = abs(np.linalg.det(offline.affine[:3, :3])) / 1000
    assert found["liver"]["volume_ml"] == pytest.approx((offline.labels == 1).sum() * voxel_ml, abs=1e-3)
    assert sum(item["volume_ml"] > 0 for item in found.values()) >= 2, "made-up weights find several"
    assert PATIENT not in answer.text
    told = httpx.get(f"{segmenting}/model", timeout=5).json()
    assert told["segments"] == {"organs_segmented": list(STRUCTURES)}


def test_a_label_map_lies_on_the_scan_and_names_its_structures(
    segmenting: str, good: bytes, offline: Segmented, tmp_path: Path
) -> None:
    answer = ask(segmenting, good, "?form=nifti&head=organs_segmented")
    assert answer.headers["content-type"] == "application/gzip"
    assert answer.headers["content-disposition"] == 'attachment; filename="labels.nii.gz"'
    assert answer.content == offline.as_nifti()
    (tmp_path / "labels.nii.gz").write_bytes(answer.content)
    assert names_within(tmp_path / "labels.nii.gz") == dict(enumerate(STRUCTURES, start=1))
    image = nib.load(tmp_path / "labels.nii.gz")
    assert image.shape == (128, 128, 26)
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), offline.labels)


def test_a_dicom_seg_lies_on_the_scan_voxel_by_voxel(
    segmenting: str, good: bytes, offline: Segmented, tmp_path: Path
) -> None:
    answer = ask(segmenting, good, "?form=dicom")
    assert answer.headers["content-type"] == "application/dicom"
    assert answer.content == offline.as_dicom()
    (tmp_path / "seg.dcm").write_bytes(answer.content)
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        members = [Path(archive.extract(name, tmp_path)) for name in archive.namelist() if name.startswith("CT/")]
    volume = read_series(members)
    labels = read_labels(tmp_path / "seg.dcm", volume.affine, volume.hu.shape)
    for value, name in enumerate(STRUCTURES, start=1):
        if (offline.labels == value).any():
            np.testing.assert_array_equal(labels.mask(name), offline.labels == value)
    seg, image = hd.seg.segread(tmp_path / "seg.dcm"), pydicom.dcmread(members[0])
    assert (seg.StudyInstanceUID, seg.PatientID) == (image.StudyInstanceUID, PATIENT)
    assert seg.SoftwareVersions == offline.content["model"]["digest"]


def test_what_cannot_be_answered_is_one_line(segmenting: str, good: bytes) -> None:
    refused(ask(segmenting, nifti(), "?form=dicom"), 422, "the scan was sent as NIfTI; ask for NIfTI", segmenting)
    refused(ask(segmenting, good, "?form=jpeg"), 400, "form 'jpeg' is not allowed: json, nifti, dicom", segmenting)
    refused(
        ask(segmenting, good, "?head=lesions"),
        400,
        "head 'lesions' is not allowed: head= one of organs_segmented",
        segmenting,
    )
    refused(ask(segmenting, b"no scan"), 415, "", segmenting)
    figures = httpx.get(f"{segmenting}/metrics", timeout=5).text
    assert 'ctfoundry_requests_total{outcome="refused_422",route="segment"}' in figures
    assert 'ctfoundry_requests_total{outcome="segmented",route="segment"}' in figures


@pytest.mark.parametrize(("name", "writes"), [("labels.nii.gz", "as_nifti"), ("labels.dcm", "as_dicom")])
def test_the_command_writes_the_same_bytes(
    name: str, writes: str, with_decoder: Path, good: bytes, offline: Segmented, tmp_path: Path
) -> None:
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_text("lines: [wholebody]\n")
    (tmp_path / "releases").mkdir()
    (tmp_path / "releases" / "wholebody").symlink_to(with_decoder)
    (tmp_path / "scan.zip").write_bytes(good)

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-W", "ignore", "-c", "from flows.cli import main; main()", "segment", "scan.zip"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [*program, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    done = command("--out", name)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps(offline.content))
    assert (tmp_path / name).read_bytes() == getattr(offline, writes)()
    wrong = command("--out", "labels.png")
    assert (wrong.returncode, wrong.stderr) == (
        1, "ctfoundry: --out 'labels.png' is not allowed: a name that ends in .nii.gz or .dcm\n",
    )  # fmt: skip
