"""Real DICOM against SimpleITK as an independent reader; damage is named, never guessed over."""

from __future__ import annotations

import itertools
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from phantom_plans import small, with_vendor

from components.ct.dicom import DecodeError, read_series
from components.ct.standardise import resample_only
from components.ct.store import AIR_HU, Volume
from components.preprocess.config import PreprocessConfig
from components.settings import load_stage
from components.sources.phantom.equipment import VENDORS
from components.sources.phantom.scanner import scan

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
SLAB = 80  # slices compared after resampling: SimpleITK takes half a minute for a whole chest
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


SARCOMAS = [f"sts_{number:03d}" for number in range(1, 13)]


def differs_from_simpleitk(folder: Path, line: str = "wholebody") -> str:
    """What SimpleITK's reader, with GDCM's own sorting, sees otherwise than ours; '' where nothing."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = affine_of(image)
    volume = read_series(sorted(folder.glob("*.dcm"), reverse=True))  # the order of names must not matter
    hu = SimpleITK.GetArrayFromImage(image)
    first = pydicom.dcmread(next(folder.glob("*.dcm")), stop_before_pixels=True)
    if "PixelPaddingValue" in first:  # outside of the scanner's circle, which to SimpleITK is a value like others
        hu[hu == first.PixelPaddingValue * first.RescaleSlope + first.RescaleIntercept] = AIR_HU
    same = np.array_equal(volume.hu, hu)
    off = float(np.abs(volume.affine - affine).max())
    if not same or off >= 1e-4:
        return f"{folder.name}: voxels {'equal' if same else 'differ'}, affine off by {off}"
    corrected = SimpleITK.GetImageFromArray(hu[:SLAB])
    for read in ("Spacing", "Origin", "Direction"):
        getattr(corrected, f"Set{read}")(getattr(image, f"Get{read}")())
    config = load_stage(PreprocessConfig, line, "preprocess", PARAMS).model_copy(update={"enlarging": "linear"})
    apart = mean_difference_after_resampling(Volume(volume.hu[:SLAB], volume.affine), corrected, config)
    return "" if apart <= 0.5 else f"{folder.name}: {apart:.3f} HU apart after resampling"


def affine_of(image: SimpleITK.Image) -> np.ndarray:
    """(slice, row, column) to RAS mm."""
    columns = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = LPS_TO_RAS @ columns[:, ::-1], LPS_TO_RAS @ image.GetOrigin()
    return affine


def mean_difference_after_resampling(volume: Volume, image: SimpleITK.Image, config: PreprocessConfig) -> float:
    """In HU, on the grid of ours. Raises AssertionError where that grid is not the line's."""
    ours = resample_only(volume, config)
    assert "".join(nib.aff2axcodes(ours.affine)) == config.orientation
    np.testing.assert_allclose(ours.spacing, config.spacing_mm, atol=1e-6)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(ours.affine), nib.orientations.io_orientation(volume.affine)
    )
    hu = nib.orientations.apply_orientation(ours.hu, turn)
    affine = ours.affine @ nib.orientations.inv_ornt_aff(turn, ours.hu.shape)
    image = SimpleITK.Cast(image, SimpleITK.sitkFloat64)
    for axis in range(3):
        image = resampled_along(image, axis, affine, hu.shape[2 - axis])
    np.testing.assert_allclose(affine_of(image), affine, atol=1e-4)
    clipped = np.clip(SimpleITK.GetArrayFromImage(image), *config.clip_hu)
    return float(np.abs(hu - clipped).mean())


def resampled_along(image: SimpleITK.Image, axis: int, affine: np.ndarray, size: int) -> SimpleITK.Image:
    """One axis onto the grid of ``affine`` by SimpleITK's linear interpolation: of the values, where voxels shrink; of
    their running sum at the voxels' edges, where they grow, whose differences are averages over the new voxels."""
    new = float(np.linalg.norm(affine[:3, 2 - axis]))
    old = image.GetSpacing()[axis]
    start = image.TransformPhysicalPointToContinuousIndex((LPS_TO_RAS @ affine[:3, 3]).tolist())[axis]
    if new <= old:
        return along(image, axis, start, new, size)
    sums = []
    for values in (SimpleITK.GetArrayFromImage(image), np.ones(image.GetSize()[::-1])):
        total = np.cumsum(values, axis=2 - axis)
        edges = np.concatenate([np.zeros_like(np.take(total, [0], axis=2 - axis)), total], axis=2 - axis)
        last = np.take(edges, [-1], axis=2 - axis)
        edged = SimpleITK.GetImageFromArray(np.concatenate([edges, last, last], axis=2 - axis))  # nothing lies beyond
        edged.CopyInformation(SimpleITK.Image(edged.GetSize(), SimpleITK.sitkFloat64))
        edged.SetSpacing(image.GetSpacing())
        edged.SetDirection(image.GetDirection())
        edged.SetOrigin(image.TransformContinuousIndexToPhysicalPoint([-0.5 if n == axis else 0.0 for n in range(3)]))
        first = start + 0.5 - new / old / 2
        sums.append(np.diff(SimpleITK.GetArrayFromImage(along(edged, axis, first, new, size + 1)), axis=2 - axis))
    result = SimpleITK.GetImageFromArray(sums[0] / sums[1])
    result.CopyInformation(along(image, axis, start, new, size))
    return result


def along(image: SimpleITK.Image, axis: int, start: float, spacing: float, size: int) -> SimpleITK.Image:
    sizes, spacings = list(image.GetSize()), list(image.GetSpacing())
    sizes[axis], spacings[axis] = size, spacing
    origin = image.TransformContinuousIndexToPhysicalPoint([start if n == axis else 0.0 for n in range(3)])
    return SimpleITK.Resample(
        image, sizes, SimpleITK.Transform(), SimpleITK.sitkLinear, origin, spacings, image.GetDirection(), 0.0,
        SimpleITK.sitkFloat64,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["lidc_idri_0314", *SARCOMAS])
def test_voxels_affine_and_resampling_equal_simpleitk(ct_root: Path, name: str, tmp_path: Path) -> None:
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
        plan = small(("trunk", "head")[number % 2], position=position, descending=descending, oblique_deg=oblique)
        plan = with_vendor(
            replace(plan, matrix=64, slices=9, scan_seed=number), vendors[(number + number // 32) % len(vendors)]
        )
        scan(plan, tmp_path / str(number))
    assert len(cases) == 60
    lines = ("head", "wholebody")  # the other line's grid: phantoms are coarser than one and finer than the other
    said = [differs_from_simpleitk(tmp_path / str(number), lines[number // 3 % 2]) for number in range(60)]
    assert [difference for difference in said if difference] == []


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
