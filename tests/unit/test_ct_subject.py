"""Sex, age and contrast of a series: what a header says, and '' for what it does not; never an exact age."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest

from components.ct.headers import measure_series, read_instance
from components.ct.subject import age_of, contrast_of, sex_of, subject_of
from components.sources.phantom.scanner import scan
from tests.unit.phantom_plans import small


@pytest.mark.parametrize(
    ("said", "sex"), [("M", "M"), ("f ", "F"), ("O", "O"), ("", ""), ("MALE", ""), ("ANONYMIZED", ""), (None, "")]
)
def test_sex_is_one_of_dicoms_three(said: str | None, sex: str) -> None:
    assert sex_of({} if said is None else {"PatientSex": said}) == sex


@pytest.mark.parametrize(
    ("said", "age"),
    [
        ("047Y", "40-49"), ("009Y", "0-9"), ("010Y", "10-19"), ("089Y", "80-89"), ("090Y", "90+"), ("103Y", "90+"),
        ("007M", "0-9"), ("130M", "10-19"), ("003W", "0-9"), ("010D", "0-9"), ("000M", "0-9"),
        # Masks, dates that were made up, and what is no age.
        ("000Y", ""), ("121Y", ""), ("47Y", ""), ("47", ""), ("0047Y", ""), ("", ""), ("XXXY", ""),
    ],
)  # fmt: skip
def test_age_is_a_decade(said: str, age: str) -> None:
    assert age_of({"PatientAge": said}) == age


@pytest.mark.parametrize(
    ("birth", "study", "age"),
    [
        ("19500615", "20200614", "60-69"), ("19500615", "20200615", "70-79"), ("19500615", "", ""),
        ("", "20200615", ""), ("20210101", "20200101", ""), ("19000101", "20200101", ""), ("18000101", "18500101", ""),
        ("19501340", "20200101", ""), ("1950", "20200101", ""), ("18950101", "20200101", ""),
    ],
)  # fmt: skip
def test_without_an_age_it_follows_from_the_dates(birth: str, study: str, age: str) -> None:
    tags = {"PatientBirthDate": birth, "StudyDate": study}
    assert age_of(tags) == age
    assert age_of(tags | {"PatientAge": "033Y"}) == "30-39"


@pytest.mark.parametrize(
    ("agent", "contrast"),
    [("IODINE", "yes"), ("Omnipaque 350", "yes"), ("NONE", "no"), ("no contrast", "no"), ("N/A", "no"), ("0", "no"),
     ("ANONYMIZED", ""), ("REMOVED", ""), ("XXXX", ""), ("", "")],
)  # fmt: skip
def test_contrast_is_what_the_header_says_of_it(agent: str, contrast: str) -> None:
    assert contrast_of({"ContrastBolusAgent": agent} if agent else {}) == contrast


def test_one_enhanced_image_makes_an_enhanced_series_and_one_that_says_nothing_an_unknown_one() -> None:
    none, iodine = {"ContrastBolusAgent": "NONE"}, {"ContrastBolusAgent": "IODINE"}
    assert [subject_of(images)["contrast"] for images in ([none, iodine, {}], [none, {}], [none, none], [])] == [
        "yes", "", "no", "",
    ]  # fmt: skip


def measured(folder: Path) -> dict[str, str]:
    instances = []
    for path in sorted(folder.glob("*.dcm")):
        with path.open("rb") as stream:
            instances.append(read_instance(stream, path.name, path.stat().st_size))
    return {name: measure_series(instances)[name] for name in ("sex", "age", "contrast")}


@pytest.mark.parametrize("anatomy", ["trunk", "head"])
def test_a_phantom_says_who_it_is_the_same_in_every_scan_and_a_receipt_holds_no_exact_age(
    anatomy: str, tmp_path: Path
) -> None:
    told = []
    for scan_seed in (1, 2):
        folder = tmp_path / str(scan_seed)
        scan(small(anatomy, scan_seed=scan_seed, slices=4), folder)
        told.append(measured(folder))
    assert told[0] == told[1]
    header = pydicom.dcmread(tmp_path / "1" / "0001.dcm", stop_before_pixels=True)
    assert told[0]["sex"] == header.PatientSex
    start = int(header.PatientAge[:3]) // 10 * 10
    assert told[0]["age"] == f"{start}-{start + 9}"
    assert told[0]["contrast"] == {"IODINE": "yes", "NONE": "no"}[header.ContrastBolusAgent]


def test_a_header_without_them_says_nothing(tmp_path: Path) -> None:
    scan(small("head", slices=4), tmp_path)
    for path in tmp_path.glob("*.dcm"):
        item = pydicom.dcmread(path)
        for keyword in ("PatientSex", "PatientAge", "ContrastBolusAgent"):
            delattr(item, keyword)
        item.save_as(path)
    assert measured(tmp_path) == {"sex": "", "age": "", "contrast": ""}
    assert {measure_series([])[name] for name in ("sex", "age", "contrast")} == {""}
