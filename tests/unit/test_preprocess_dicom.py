"""Real DICOM against SimpleITK as an independent reader; damage is named, never guessed over."""

from __future__ import annotations

import itertools
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from phantom_plans import small, with_vendor

from components.phantom.equipment import VENDORS
from components.phantom.scanner import scan
from components.preprocess.dicom import DecodeError, read_series
from components.preprocess.store import AIR_HU

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


SARCOMAS = [f"sts_{number:03d}" for number in range(1, 13)]


def differs_from_simpleitk(folder: Path) -> str:
    """What SimpleITK's reader, with GDCM's own sorting, sees otherwise than ours; '' where nothing."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    columns = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = LPS_TO_RAS @ columns[:, ::-1], LPS_TO_RAS @ image.GetOrigin()
    volume = read_series(sorted(folder.glob("*.dcm"), reverse=True))  # the order of names must not matter
    hu = SimpleITK.GetArrayFromImage(image)
    first = pydicom.dcmread(next(folder.glob("*.dcm")), stop_before_pixels=True)
    if "PixelPaddingValue" in first:  # outside of the scanner's circle, which to SimpleITK is a value like others
        hu[hu == first.PixelPaddingValue * first.RescaleSlope + first.RescaleIntercept] = AIR_HU
    same = np.array_equal(volume.hu, hu)
    off = float(np.abs(volume.affine - affine).max())
    return "" if same and off < 1e-4 else f"{folder.name}: voxels {'equal' if same else 'differ'}, affine off by {off}"


@pytest.mark.parametrize("name", ["lidc_idri_0314", *SARCOMAS])
def test_voxels_and_affine_equal_simpleitk(ct_root: Path, name: str, tmp_path: Path) -> None:
    folder = ct_root / "dicom" / name
    if not folder.is_dir():
        with zipfile.ZipFile(folder.with_suffix(".zip")) as archive:
            archive.extractall(tmp_path)
        folder = next(tmp_path.rglob("*.dcm")).parent
    assert differs_from_simpleitk(folder) == ""


def test_phantoms_of_all_orientations_equal_simpleitk(tmp_path: Path) -> None:
    """Sixty: four positions of the patient, both orders of slices, planes straight to steeply oblique, by turns of
    line and vendor."""
    cases = list(itertools.product(("HFS", "FFS", "HFP", "FFP"), (False, True), (0.0, 0.6, 12.0, 35.0)))
    cases += cases[: 60 - len(cases)]
    vendors = sorted(VENDORS)
    for number, (position, descending, oblique) in enumerate(cases):
        plan = small(("wholebody", "head")[number % 2], position=position, descending=descending, oblique_deg=oblique)
        plan = with_vendor(
            replace(plan, matrix=64, slices=9, scan_seed=number), vendors[(number + number // 32) % len(vendors)]
        )
        scan(plan, tmp_path / str(number))
    assert len(cases) == 60
    assert [said for number in range(60) if (said := differs_from_simpleitk(tmp_path / str(number)))] == []


def test_jpeg2000_is_decoded_exactly(ct_root: Path) -> None:
    paths = sorted((ct_root / "dicom" / "abdomen_jpeg2000").iterdir())
    volume = read_series(paths)
    first = pydicom.dcmread(paths[0])
    lowest = min(paths, key=lambda p: pydicom.dcmread(p, stop_before_pixels=True).ImagePositionPatient[2])
    reference = pydicom.dcmread(lowest)
    expected = reference.pixel_array * float(first.RescaleSlope) + float(first.RescaleIntercept)
    np.testing.assert_array_equal(volume.hu[0], expected)


def test_short_pixel_data_is_an_error_not_a_guess(ct_root: Path, tmp_path: Path) -> None:
    for path in sorted((ct_root / "dicom" / "sts_001").iterdir())[:4]:
        shutil.copyfile(path, tmp_path / path.name)
    damaged = pydicom.dcmread(tmp_path / "000002.dcm")
    damaged.PixelData = damaged.PixelData[: len(damaged.PixelData) // 2]
    damaged.save_as(tmp_path / "000002.dcm")
    with pytest.raises(DecodeError, match=r"000002\.dcm: \d+ bytes of pixel data, its matrix needs \d+"):
        read_series(sorted(tmp_path.iterdir()))


def test_padding_is_air(ct_root: Path) -> None:
    volume = read_series(sorted((ct_root / "dicom" / "abdomen_3slices").iterdir()))
    assert volume.hu[0, 0, 0] == -1024 or volume.hu[0, 0, 0] <= -1000
    assert volume.hu.min() >= -1100, "padding of -3024 must not pass as HU"
