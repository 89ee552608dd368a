"""The phantom's series: genuine DICOM, equal bytes on every run, masks and annotations on the scan's own grid."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK
from phantom_plans import small, with_vendor

from components.sources.phantom.body import LABELS
from components.sources.phantom.dicom import decimal
from components.sources.phantom.equipment import VENDORS
from components.sources.phantom.plan import FINDINGS
from components.sources.phantom.scanner import scan

ANATOMIES = ("trunk", "head")
POSITIONS = ("HFS", "FFS", "HFP", "FFP")


def read(folder: Path) -> SimpleITK.Image:
    """As SimpleITK's GDCM series reader sees the folder, turned to LPS."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return SimpleITK.DICOMOrient(reader.Execute(), "LPS")


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_equal_plans_give_equal_bytes(anatomy: str, tmp_path: Path) -> None:
    first = scan(small(anatomy), tmp_path / "a")
    second = scan(small(anatomy), tmp_path / "b")
    pd.testing.assert_frame_equal(first, second)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


@pytest.mark.parametrize("anatomy", ANATOMIES)
@pytest.mark.parametrize("vendor", sorted(VENDORS))
def test_dciodvfy_finds_no_error(anatomy: str, vendor: str, tmp_path: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    scan(replace(with_vendor(small(anatomy), vendor), slices=3), tmp_path)
    for path in sorted(tmp_path.glob("*.dcm")):
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        assert "Error" not in done.stderr + done.stdout, done.stderr
        assert "CTImage" in done.stderr + done.stdout


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("descending", [False, True])
def test_mask_lies_on_the_voxels_that_simpleitk_reads(position: str, descending: bool, tmp_path: Path) -> None:
    """Air in the lungs, bone in the spine: label and intensity agree in world space, however the patient lies."""
    plan = small("trunk", position=position, descending=descending, oblique_deg=0.6)
    scan(plan, tmp_path)
    image = read(tmp_path)
    assert image.GetSpacing() == pytest.approx((plan.pixel_mm, plan.pixel_mm, plan.increment_mm), abs=1e-4)
    mask = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(tmp_path / "mask.nii.gz")), "LPS")
    assert mask.GetOrigin() == pytest.approx(image.GetOrigin(), abs=1e-2)
    hu, label = SimpleITK.GetArrayFromImage(image), SimpleITK.GetArrayFromImage(mask)
    assert hu.shape == label.shape
    values = LABELS
    assert np.median(hu[label == values["lung_left"]]) < -700
    assert np.median(hu[label == values["spine"]]) > 80
    assert np.median(hu[label == 0]) < -950


@pytest.mark.parametrize("vendor", sorted(VENDORS))
def test_every_vendor_stores_the_same_hounsfield_units(vendor: str, tmp_path: Path) -> None:
    scan(with_vendor(small("trunk"), vendor), tmp_path)
    items = [pydicom.dcmread(p) for p in sorted(tmp_path.glob("*.dcm"))]
    item = items[len(items) // 2]
    assert item.file_meta.TransferSyntaxUID == (
        "1.2.840.10008.1.2.1" if VENDORS[vendor].explicit else "1.2.840.10008.1.2"
    )
    stored = item.pixel_array.astype(int)
    inside = stored != VENDORS[vendor].padding
    hu = stored * float(item.RescaleSlope) + float(item.RescaleIntercept)
    air = hu[inside & (hu < -900)]
    assert abs(float(np.median(air)) + 1000) < 15
    if VENDORS[vendor].padding is not None:
        assert item.PixelPaddingValue == VENDORS[vendor].padding
        assert not inside[0, 0]


@pytest.mark.parametrize("vendor", sorted(VENDORS))
def test_fast_writing_gives_the_bytes_of_dcmwrite(vendor: str, tmp_path: Path) -> None:
    scan(replace(with_vendor(small("head"), vendor), slices=2), tmp_path)
    path = tmp_path / "0002.dcm"
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, pydicom.dcmread(path), enforce_file_format=True)
    assert buffer.getvalue() == path.read_bytes()


@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_annotations_point_into_their_own_label(anatomy: str, tmp_path: Path) -> None:
    findings = FINDINGS[1:] if anatomy == "head" else ()
    table = scan(small(anatomy, findings=findings), tmp_path)
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    label = np.asarray(mask.dataobj)
    names = json.loads((tmp_path / "labels.json").read_text())
    stands_for = {"finding_hydrocephalus": "ventricles", "finding_dementia": "csf"}
    for row in table[table.present].itertuples():
        if row.structure == "finding_ich":
            continue
        index = np.rint(np.linalg.inv(mask.affine) @ [row.x, row.y, row.z, 1])[:3].astype(int)
        value = int(label[tuple(index)])
        assert names[str(value)] == stands_for.get(row.structure, row.structure)
        voxel_ml = abs(np.linalg.det(mask.affine[:3, :3])) / 1000
        assert row.volume_ml == pytest.approx(np.sum(label == value) * voxel_ml, rel=1e-3)


def test_healthy_control_places_lie_in_the_organ(tmp_path: Path) -> None:
    table = scan(small("trunk"), tmp_path)
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    label = np.asarray(mask.dataobj)
    names = json.loads((tmp_path / "labels.json").read_text())
    controls = table[(table.kind == "lesion") & ~table.present]
    assert len(controls) > 0
    for row in controls.itertuples():
        index = np.rint(np.linalg.inv(mask.affine) @ [row.x, row.y, row.z, 1])[:3].astype(int)
        assert names[str(int(label[tuple(index)]))].split("_")[0] == row.structure.removeprefix("lesion_")
        assert row.volume_ml == 0


def test_all_ten_findings_are_visible_when_planned_and_absent_when_not(tmp_path: Path) -> None:
    sick = scan(small("head", findings=FINDINGS[1:]), tmp_path / "sick")
    assert list(sick.structure) == [f"finding_{name}" for name in FINDINGS]
    assert sick.present.all()
    assert (sick.volume_ml > 0).all()
    well = scan(small("head", findings=()), tmp_path / "well")
    assert list(well.structure) == list(sick.structure)
    assert not well.present.any()
    assert well[["x", "y", "z"]].isna().all().all()


def test_all_organs_are_in_most_scans(tmp_path: Path) -> None:
    table = scan(small("trunk"), tmp_path)
    organs = set(table[table.kind == "organ"].structure)
    assert organs == set(LABELS) - {"ribs", "body"}


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -1234.56789, 1e-9, 0.123456789123, 123456.789123456])
def test_decimal_strings_fit_and_keep_their_value(value: float) -> None:
    assert len(decimal(value)) <= 16
    assert float(decimal(value)) == pytest.approx(value, abs=1e-5)
