"""Whose a NIfTI volume is, is stated and never guessed: a patient of an evaluation set is found under every layout."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from components.cohort.config import CohortConfig
from components.ct.keys import patient_key
from components.errors import UserError
from components.settings import ParamsError, load_stage, parse
from components.sources.config import NiftiConfig
from components.sources.interface import Listing
from components.sources.nifti import NiftiSource
from components.sources.tree import tree_digest

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
HELD = "LIDC-IDRI-0314"
pytestmark = pytest.mark.usefixtures("secret")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CTFOUNDRY_ROOT_NIFTI", str(tmp_path / "root"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def put(root: Path, *places: str) -> None:
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(b"volume of " + place.encode())


def listed(root: Path, patient: str | None, held_out: frozenset[str] = frozenset(), **changes: Any) -> Listing:
    config = load_stage(CohortConfig, "wholebody", "cohort", PARAMS)
    of_site = {"source": "nifti", "source_digest": tree_digest(root), "paths": "shown",
               "nifti": parse(NiftiConfig, {"patient": patient}, "nifti"), **changes}  # fmt: skip
    return NiftiSource(config.model_copy(update=of_site), "wholebody").list_series(held_out)


@pytest.mark.parametrize(("place", "rule"), [
    (f"{HELD}/ct.nii.gz", "{patient}/**"),
    (f"{HELD}/2020/thorax/ct.nii", "{patient}/**"),
    (f"{HELD}.nii.gz", "{patient}"),
    (f"{HELD}.nii", "{patient}"),
    (f"LIDC-IDRI/{HELD}/ct.nii.gz", "*/{patient}/*"),
    (f"imagesTr/{HELD}_0000.nii.gz", "imagesTr/{patient}_*"),
    (f"imagesTr/{HELD}_0000.nii.gz", r"imagesTr/(?P<patient>.+)_\d{4}"),
    (f"a/b/{HELD}.nii.gz", "**/{patient}"),
])  # fmt: skip
def test_the_patient_is_what_the_pattern_says(root: Path, place: str, rule: str) -> None:
    put(root, place)
    (series,) = listed(root, rule, frozenset({patient_key(HELD)})).series
    assert series.patient == patient_key(HELD)


def test_the_patient_may_stand_in_a_table_of_the_tree(root: Path) -> None:
    put(root, "a/1.nii.gz", "a/2.nii.gz")
    table = f"file,patient\na/1.nii.gz,{HELD} \na/2.nii.gz,007\n"
    (root / "patients.csv").write_text(table)
    before = tree_digest(root)
    assert [s.patient for s in sorted(listed(root, "patients.csv").series, key=lambda s: s.location)] == [
        patient_key(HELD), patient_key("007"),
    ]  # fmt: skip
    (root / "patients.csv").write_text(table.replace("007", "008"))
    assert tree_digest(root) != before


@pytest.mark.parametrize(("content", "said"), [
    (None, "'patients.csv' cannot be read"),
    ("name,patient\na.nii,x\n", "wanted are the columns file and patient"),
    ("file,patient\na.nii,x\na.nii,y\n", "each file once"),
])  # fmt: skip
def test_a_table_that_is_none_is_one_line(root: Path, content: str | None, said: str) -> None:
    put(root, "a.nii")
    if content:
        (root / "patients.csv").write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        listed(root, "patients.csv")
    assert str(root) not in str(caught.value)


def test_without_a_statement_nothing_is_read_beside_patients_who_are_held_out(root: Path) -> None:
    put(root, f"{HELD}.nii.gz")
    with pytest.raises(
        UserError, match=r"wholebody\.cohort\.nifti\.patient: null is not allowed where patients are held"
    ):
        listed(root, None, frozenset({patient_key(HELD)}))


def test_without_a_statement_every_volume_is_a_patient_of_its_own(root: Path) -> None:
    put(root, "dataset/a.nii.gz", "dataset/b.nii.gz", "c.nii")
    assert len({series.patient for series in listed(root, None).series}) == 3


def test_a_volume_whose_patient_nothing_tells_is_left_out_and_counted(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(root, "p1/ct.nii.gz", "stray.nii.gz", "p2/ct.nii.gz", "study/p3/ct.nii.gz")
    with caplog.at_level(logging.WARNING):
        listing = listed(root, "{patient}/*")
    assert sorted(listing.files.status) == ["image", "image", "no_patient", "no_patient"]
    assert len(listing.series) == 2
    assert "2 of 4 volumes are left out" in caplog.text
    assert "stray" not in caplog.text
    with pytest.raises(UserError, match=r"file of a patient by 'x/\{patient\}' below it; its files: no_patient 4"):
        listed(root, "x/{patient}")


@pytest.mark.parametrize("rule", ["", "patient", "(?P<patient", "{patient}/{patient}", "(?P<name>.*)"])
def test_a_statement_that_tells_no_patient_is_refused(rule: str) -> None:
    with pytest.raises(ParamsError, match=r"nifti\.patient"):
        parse(NiftiConfig, {"patient": rule}, "wholebody.cohort.nifti")


@pytest.mark.usefixtures("root")
def test_a_tree_without_a_volume_says_what_is_there(tmp_path: Path) -> None:
    put(tmp_path / "root", "a.mha", "b.txt")
    with pytest.raises(UserError, match=r"no \.nii or \.nii\.gz file below it; its files: not_nifti 2"):
        listed(tmp_path / "root", None)
