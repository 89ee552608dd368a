"""Real DICOM against SimpleITK as an independent reader; damage is named, never guessed over."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK

from components.preprocess.dicom import DecodeError, read_series

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@pytest.mark.parametrize("name", ["sts_001", "sts_007"])
def test_voxels_and_affine_equal_simpleitk(ct_root: Path, name: str) -> None:
    folder = ct_root / "dicom" / name
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    volume = read_series(sorted(folder.iterdir(), reverse=True))  # the order of names must not matter
    np.testing.assert_array_equal(volume.hu, SimpleITK.GetArrayFromImage(image))
    np.testing.assert_allclose(volume.affine[:3, 3], LPS_TO_RAS @ image.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(volume.spacing, image.GetSpacing()[::-1], atol=1e-4)


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
