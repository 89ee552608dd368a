"""What the service's heads answer, and how it refuses where they cannot."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import highdicom as hd
import httpx
import pytest
from client import PATIENT, nifti
from conftest import running

from components.bundle.manifest import write_manifest
from serving.classifying import classify_file
from serving.embedding import open_release
from tests.unit.test_serving_classifying import head


@pytest.fixture(scope="module")
def with_heads(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release, with a head that sees scans and one that sees points."""
    folder = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("heads") / "wholebody"))
    head(folder, "findings/ich", "scan")
    head(folder, "organs", "point")
    write_manifest(folder, "wholebody", "ctfoundry-wholebody", {"code": "0" * 64})
    return folder


@pytest.fixture(scope="module")
def answering(with_heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(with_heads, tmp_path_factory.mktemp("bentoml")) as (address, _):
        yield address


def ask(url: str, content: bytes, query: str = "") -> httpx.Response:
    return httpx.post(f"{url}/classify{query}", content=content, timeout=60)


def test_the_service_answers_as_the_same_code_does_offline(
    answering: str, with_heads: Path, good: bytes, tmp_path: Path
) -> None:
    answer = ask(answering, good).json()
    (tmp_path / "scan").write_bytes(good)
    offline = classify_file(tmp_path / "scan", open_release(with_heads))
    ours, theirs = (of["answers"]["findings/ich"]["probabilities"] for of in (answer, offline))
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert list(answer["not_answered"]) == ["organs"]
    assert answer["model"] == {"name": "ctfoundry-wholebody", "digest": open_release(with_heads).manifest.digest}
    assert PATIENT not in str(answer)
    both = ask(answering, good, "?point_mm=0,0,40").json()
    assert sorted(both["answers"]) == ["findings/ich", "organs"]
    assert httpx.get(f"{answering}/model", timeout=5).json()["heads"] == {"findings/ich": "scan", "organs": "point"}


def test_the_answers_come_as_a_structured_report_of_the_scans_study(answering: str, good: bytes) -> None:
    answer = ask(answering, good, "?form=dicom")
    assert answer.headers["content-type"] == "application/dicom"
    assert answer.headers["content-disposition"] == 'attachment; filename="answers.dcm"'
    assert answer.content == ask(answering, good, "?form=dicom").content
    report = hd.sr.srread(io.BytesIO(answer.content))
    assert (report.StudyInstanceUID, report.PatientID) == ("1.2.3", PATIENT)
    (group,) = report.content.get_image_measurement_groups()
    told = ask(answering, good).json()["answers"]["findings/ich"]
    assert [item.value for item in group.get_measurements()] == list(told["probabilities"].values())
    assert group.get_qualitative_evaluations()[0].value.meaning == told["answer"]
    assert "sent as NIfTI; ask for JSON" in refused_here(ask(answering, nifti(), "?form=dicom"), 422)
    assert refused_here(ask(answering, good, "?form=nifti"), 400) == "form 'nifti' is not allowed: json, dicom"


def test_what_embedding_refuses_is_refused_here_and_so_is_what_is_no_point(answering: str, good: bytes) -> None:
    refused_here(ask(answering, b"no scan"), 415)
    assert "is not allowed: point_mm=R,A,S" in refused_here(ask(answering, good, "?point_mm=1,2"), 400)
    assert "is not in the scan" in refused_here(ask(answering, nifti(), "?point_mm=9000,0,0"), 422)
    figures = httpx.get(f"{answering}/metrics", timeout=5).text
    assert 'ctfoundry_requests_total{outcome="refused_400",route="classify"}' in figures
    assert 'route="embed"' not in figures


def refused_here(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    message = str(response.json()["error"])
    assert "\n" not in message
    return message


def test_a_release_without_heads_says_so(url: str, good: bytes) -> None:
    assert refused_here(ask(url, good), 404).startswith("this release has no heads")
