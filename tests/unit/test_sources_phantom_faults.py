"""Each fault breaks a series in its own way, and in that way only as far as headers and pixels show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantom_plans import small
from pydicom.errors import InvalidDicomError

from components.sources.phantom.faults import FAULTS
from components.sources.phantom.scanner import scan


def items_of(fault: str, folder: Path, anatomy: str = "trunk") -> list[pydicom.FileDataset]:
    scan(small(anatomy, fault=fault), folder)
    return [pydicom.dcmread(p) for p in sorted(folder.glob("*.dcm"))]


def heights(items: list[pydicom.FileDataset]) -> np.ndarray:
    return np.sort([float(item.ImagePositionPatient[2]) for item in items])


@pytest.mark.parametrize("anatomy", ["trunk", "head"])
@pytest.mark.parametrize("fault", [f.name for f in FAULTS])
def test_every_fault_writes_files_that_differ_from_the_clean_scan(fault: str, anatomy: str, tmp_path: Path) -> None:
    plan = small(anatomy)
    scan(plan, tmp_path / "clean")
    scan(replace(plan, fault=fault), tmp_path / "faulty")
    clean, faulty = ({p.name: p.read_bytes() for p in (tmp_path / d).glob("*.dcm")} for d in ("clean", "faulty"))
    assert faulty
    assert clean != faulty


def test_not_ct(tmp_path: Path) -> None:
    assert {item.Modality for item in items_of("not_ct", tmp_path / "a")} == {"OT"}
    assert {item.Modality for item in items_of("not_ct_mr", tmp_path / "b")} == {"MR"}


def test_localizer_is_ct_with_localizer_in_image_type(tmp_path: Path) -> None:
    items = items_of("localizer", tmp_path)
    assert len(items) == 2
    for item in items:
        assert "LOCALIZER" in item.ImageType
        assert item.SOPClassUID == pydicom.uid.CTImageStorage
        assert item.pixel_array.shape == (item.Rows, item.Columns)


def test_unreadable_files(tmp_path: Path) -> None:
    scan(small("trunk", fault="unreadable_files"), tmp_path)
    broken = 0
    for path in tmp_path.glob("*.dcm"):
        try:
            broken += "SOPInstanceUID" not in pydicom.dcmread(path)
        except (InvalidDicomError, EOFError):
            broken += 1
    assert broken == 3


def test_missing_tags(tmp_path: Path) -> None:
    for item in items_of("missing_tags", tmp_path):
        assert "PixelSpacing" not in item or "ImagePositionPatient" not in item


def test_positions(tmp_path: Path) -> None:
    repeated = items_of("repeated_positions", tmp_path / "a")
    assert len({item.SOPInstanceUID for item in repeated}) == len(repeated)
    assert all(item.SOPInstanceUID == item.file_meta.MediaStorageSOPInstanceUID for item in repeated)
    assert [item.InstanceNumber for item in repeated] == list(range(1, len(repeated) + 1))
    assert np.sum(np.diff(heights(repeated)) < 0.01) == 4
    gaps = np.diff(heights(items_of("uneven_spacing", tmp_path / "b")))
    assert gaps.max() / np.median(gaps) > 1.5


def test_lengths_and_thickness(tmp_path: Path) -> None:
    assert len(items_of("too_few_slices", tmp_path / "a")) == 8
    thick = items_of("slice_thickness", tmp_path / "b")
    assert float(thick[0].SliceThickness) >= 8
    assert len(thick) >= 16
    short = items_of("scan_too_short", tmp_path / "c")
    assert len(short) == 20
    assert np.ptp(heights(short)) < 30


def test_gantry_tilt_shears_the_volume(tmp_path: Path) -> None:
    items = items_of("gantry_tilt", tmp_path, "head")
    orientation = np.array(items[0].ImageOrientationPatient, float)
    normal = np.cross(orientation[:3], orientation[3:])
    step = np.array(items[1].ImagePositionPatient, float) - np.array(items[0].ImagePositionPatient, float)
    angle = np.degrees(np.arccos(abs(normal @ step) / np.linalg.norm(step)))
    assert 11.9 < angle < 20.1
    assert abs(float(items[0].GantryDetectorTilt)) == pytest.approx(angle, abs=0.01)


def test_mixed_geometry(tmp_path: Path) -> None:
    items = items_of("mixed_geometry", tmp_path / "a")
    assert len({(item.Rows, float(item.PixelSpacing[0])) for item in items}) == 2
    turned = items_of("mixed_orientation", tmp_path / "b")
    assert len({tuple(item.ImageOrientationPatient) for item in turned}) == 2


def test_marks_in_the_header(tmp_path: Path) -> None:
    assert {item.LossyImageCompression for item in items_of("lossy_compression", tmp_path / "a")} == {"01"}
    burned = items_of("burned_in_annotation", tmp_path / "b")
    assert {item.BurnedInAnnotation for item in burned} == {"YES"}
    assert (burned[0].pixel_array == 3000).sum() > 50


def test_pixels(tmp_path: Path) -> None:
    short = [len(i.PixelData) < i.Rows * i.Columns * 2 for i in items_of("decode_failed", tmp_path / "a")]
    assert sum(short) == 3
    empty = np.stack([i.pixel_array + float(i.RescaleIntercept) for i in items_of("no_body", tmp_path / "b")])
    assert (empty > -200).mean() < 0.005
    shifted = np.stack([i.pixel_array + float(i.RescaleIntercept) for i in items_of("hu_calibration", tmp_path / "c")])
    assert np.percentile(shifted, 5) > -600
    blank = [np.ptp(i.pixel_array) == 0 for i in items_of("constant_slices", tmp_path / "d")]
    assert sum(blank) >= 5
