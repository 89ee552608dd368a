"""A structured report says what the heads answered, is of the scan's study, and is the same for the same scan."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import highdicom as hd
import pydicom
import pytest
from label_files import scanned

from serving.dicom_sr import dicom_sr
from serving.sniff import InputError

MODEL = {"name": "ctfoundry-head", "digest": "3f2a" * 16}
RATE = {"value": 0.8, "low": 0.7, "high": 0.9}
ANSWERS: dict[str, Any] = {
    "findings/ich": {
        "probabilities": {"absent": 0.638724, "present": 0.361276}, "answer": "absent", "auc": RATE,
        "operating_point": {"wanted_specificity": 0.9, "threshold": 0.673875, "sensitivity": RATE, "specificity": RATE},
        "limits": ["Of a test."],
    },
    "organs": {
        "probabilities": {"lung": 0.25, "liver": 0.75, "spleen of ours with a long name": 0.0}, "answer": "liver",
        "auc": RATE, "operating_point": None, "limits": [],
    },
}  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> list[pydicom.Dataset]:
    return scanned(tmp_path / "scan").items


def test_every_answer_is_read_back(images: list[pydicom.Dataset]) -> None:
    made = hd.sr.srread(io.BytesIO(dicom_sr(images, ANSWERS, MODEL)))
    assert made.StudyInstanceUID == images[0].StudyInstanceUID
    assert made.PatientID == images[0].PatientID
    assert (made.VerificationFlag, made.SoftwareVersions) == ("UNVERIFIED", MODEL["digest"])
    referred = made.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert {item.ReferencedSOPInstanceUID for item in referred.ReferencedSOPSequence} == {
        image.SOPInstanceUID for image in images
    }
    groups = made.content.get_image_measurement_groups()
    assert [group.tracking_identifier for group in groups] == list(ANSWERS)
    for group, answer in zip(groups, ANSWERS.values(), strict=True):
        found = {m.name.meaning: m.value for m in group.get_measurements()}
        assert found == {f"Probability of {name}": p for name, p in answer["probabilities"].items()}
        assert [q.value.meaning for q in group.get_qualitative_evaluations()] == [answer["answer"]]
    told = [str(element.value) for element in made.iterall() if element.keyword == "TextValue"]
    rate = "0.800 [0.700, 0.900]"
    assert f"Threshold 0.673875; on test patients sensitivity {rate} and specificity {rate}." in told
    assert "Of a test." in told


def test_equal_answers_give_equal_bytes_and_others_do_not(images: list[pydicom.Dataset]) -> None:
    first = dicom_sr(images, ANSWERS, MODEL)
    assert dicom_sr(list(images), dict(reversed(ANSWERS.items())), MODEL) == first
    other = dicom_sr(images, ANSWERS, {**MODEL, "digest": "77be" * 16})
    uids = [pydicom.dcmread(io.BytesIO(content)).SOPInstanceUID for content in (first, other)]
    assert uids[0] != uids[1]


def test_codes_of_ours_differ_where_what_they_mean_does(images: list[pydicom.Dataset]) -> None:
    made = hd.sr.srread(io.BytesIO(dicom_sr(images, ANSWERS, MODEL)))
    meanings: dict[str, set[str]] = {}
    for group in made.content.get_image_measurement_groups():
        for item in group.get_measurements():
            meanings.setdefault(item.name.value, set()).add(item.name.meaning)
            assert len(item.name.value) <= 16
    assert all(len(of) == 1 for of in meanings.values())
    assert len(meanings) == 5


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian's dicom3tools) is not installed")
def test_an_independent_judge_finds_no_error(images: list[pydicom.Dataset], tmp_path: Path) -> None:
    (tmp_path / "answers.dcm").write_bytes(dicom_sr(images, ANSWERS, MODEL))
    said = subprocess.run(["dciodvfy", str(tmp_path / "answers.dcm")], capture_output=True, text=True, check=False)
    errors = [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]
    assert errors == []


def test_an_image_that_nothing_can_refer_to_is_told(images: list[pydicom.Dataset]) -> None:
    del images[1].SOPInstanceUID
    with pytest.raises(InputError, match=r"no SOPInstanceUID: nothing could refer to it; ask for JSON$"):
        dicom_sr(images, ANSWERS, MODEL)
