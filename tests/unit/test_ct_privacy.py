"""A header that names a person is found out, wherever the name stands; values themselves are never kept."""

from __future__ import annotations

import io
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from components.ct.headers import measure_series, read_instance, read_with_pydicom
from components.ct.instance import Instance
from components.ct.privacy import DIRECT_IDENTIFIERS, IDENTIFYING, is_dummy
from components.sources.config import PhantomConfig
from components.sources.phantom.dealing import plan_scans
from components.sources.phantom.scanner import scan

CLEAN = {"identifiers": "", "private_unknown": 0, "identity_removed": True, "burned_in": False}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    sizes = {"pretrain_patients": 1, "evaluation_patients": 4, "retest_patients": 0, "fault_share": 0.0}
    folder = tmp_path_factory.mktemp("series")
    scan(plan_scans(PhantomConfig(anatomy="head", seed=1, **sizes))[0], folder)
    return sorted(folder.glob("*.dcm"))


def in_memory(content: bytes, location: str) -> Instance:
    return read_instance(io.BytesIO(content), location, len(content))


def read(dataset: Dataset, explicit: bool = True) -> Instance:
    """Through bytes, and checked against pydicom."""
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, implicit_vr=not explicit, little_endian=True)
    instance = in_memory(buffer.getvalue(), "a")
    assert instance == read_with_pydicom(io.BytesIO(buffer.getvalue()), "a", len(buffer.getvalue()))
    return instance


def test_every_listed_keyword_is_in_the_dictionary() -> None:
    assert sorted(IDENTIFYING.values()) == sorted(DIRECT_IDENTIFIERS)


def test_the_phantoms_own_series_are_clean(phantom: list[Path]) -> None:
    measured = measure_series([in_memory(p.read_bytes(), p.name) for p in phantom])
    assert {name: measured[name] for name in CLEAN} == CLEAN
    assert {name: measure_series([])[name] for name in CLEAN} == {**CLEAN, "identity_removed": False}


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientName", "MEIER^ANNA"),
        ("PatientBirthDate", "19520314"),
        ("OtherPatientIDs", ["12345", "67890"]),
        ("PatientAddress", "1 High Street"),
        ("PatientTelephoneNumbers", "+49 30 1234567"),
        ("ReferringPhysicianName", "SCHMIDT^B"),
        ("OperatorsName", "X^Y^Z^ROE"),
        ("InstitutionName", "St. Mary's Hospital"),
        ("AccessionNumber", "A1234567"),
    ],
)
def test_a_planted_identifier_is_named(phantom: list[Path], keyword: str, value: object, explicit: bool) -> None:
    dataset = pydicom.dcmread(phantom[0])
    setattr(dataset, keyword, value)
    instance = read(dataset, explicit)
    assert instance.identifiers == (keyword,)
    clean = in_memory(phantom[1].read_bytes(), "b")
    assert measure_series([clean, instance])["identifiers"] == keyword, "one slice is enough"


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("undefined", [True, False])
def test_names_within_sequences(phantom: list[Path], explicit: bool, undefined: bool) -> None:
    physician, code, request = Dataset(), Dataset(), Dataset()
    code.CodeValue, code.CodeMeaning = "77", "Dr. Schmidt"
    physician.PersonIdentificationCodeSequence = Sequence([code])
    physician.InstitutionName = "REMOVED"
    request.RequestingPhysician = "SCHMIDT^B"
    dataset = pydicom.dcmread(phantom[0])
    dataset.ReferringPhysicianIdentificationSequence = Sequence([physician])
    dataset.RequestAttributesSequence = Sequence([request])
    for keyword in ("ReferringPhysicianIdentificationSequence", "RequestAttributesSequence"):
        dataset[keyword].is_undefined_length = undefined
        for item in dataset[keyword].value:
            item.is_undefined_length_sequence_item = undefined
    assert read(dataset, explicit).identifiers == ("PersonIdentificationCodeSequence", "RequestingPhysician")


@pytest.mark.parametrize(
    "value",
    ["", " ", "^^^^", "ANONYMOUS", "Anonymous^Patient", "anon_0042", "Removed by CTP", "DE-IDENTIFIED", "None", "n/a",
     "XXXX^XXX", "000000", "UNKNOWN^", "N.A.", "not available"],
)  # fmt: skip
def test_dummies(value: str) -> None:
    assert is_dummy("PatientName", value.encode(), "7", identity_removed=False)


@pytest.mark.parametrize("value", ["Meier", "NONE^ANNA", "Ünal", "山田^太郎", "A1234567", "12345", "Patient^Zero"])
def test_values_that_may_be_real(value: str) -> None:
    assert not is_dummy("PatientName", value.encode(), "7", identity_removed=True)


def test_a_name_that_repeats_the_id_needs_the_statement() -> None:
    assert is_dummy("PatientName", b"LIDC^IDRI^0314", "LIDC-IDRI-0314", identity_removed=True)
    assert not is_dummy("PatientName", b"LIDC^IDRI^0314", "LIDC-IDRI-0314", identity_removed=False)
    assert is_dummy("PatientBirthDate", b"19000101", "7", identity_removed=False)


@pytest.mark.parametrize("explicit", [True, False])
def test_private_elements_are_counted_once_and_safe_ones_not(phantom: list[Path], explicit: bool) -> None:
    instances = []
    for path in phantom[:3]:
        dataset = pydicom.dcmread(path)
        safe = dataset.private_block(0x0019, "GEMS_ACQU_01", create=True)
        safe.add_new(0x23, "DS", "0.9")
        safe.add_new(0x02, "SL", 912)
        other = dataset.private_block(0x0019, "SITE", create=True)
        other.add_new(0x23, "LO", "anything")
        other.add_new(0x24, "LO", "")
        instances.append(read(dataset, explicit))
    assert instances[0].private_unknown == {"GEMS_ACQU_01|0019,xx02", "SITE|0019,xx23"}
    assert measure_series(instances)["private_unknown"] == 2


def test_the_statement_must_stand_in_every_image(phantom: list[Path]) -> None:
    dataset = pydicom.dcmread(phantom[0])
    del dataset.PatientIdentityRemoved
    instances = [read(dataset), in_memory(phantom[1].read_bytes(), "b")]
    assert not measure_series(instances)["identity_removed"]


def test_a_face_that_could_be_recognised_is_no_burned_in_text(phantom: list[Path]) -> None:
    dataset = pydicom.dcmread(phantom[0])
    dataset.RecognizableVisualFeatures = "YES"
    assert not measure_series([read(dataset)])["burned_in"]
    dataset.BurnedInAnnotation = "YES"
    assert measure_series([read(dataset)])["burned_in"]
