"""Enhanced and legacy converted multi-frame CT is the same volume, and measures the same, as its single slices."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from phantom_plans import small
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

from components.ct.dicom import DecodeError, read_series
from components.ct.headers import TAGS, measure_series, read_instance
from components.sources.phantom.scanner import scan

# What only single files state, or only multi-frame files: the same scan otherwise.
# Enhanced CT states its contrast in a sequence, which is not read: nothing is known of it.
OF_FILES = {"contrast", "sop_class", "transfer_syntax", "series_uids", "photometric", "identifiers", "private_unknown"}


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slices")
    scan(replace(small("trunk", oblique_deg=8.0, descending=True), slices=14, matrix=64, pixel_mm=6.0), folder)
    return sorted(folder.glob("*.dcm"))


def enhanced(paths: list[Path]) -> Dataset:
    """The slices as frames of one Enhanced CT image (PS3.3 A.38.1), in random order, with the groups that place
    them and give them HU."""
    read = [pydicom.dcmread(path) for path in paths]
    random.Random(3).shuffle(read)
    first = read[0]
    image = Dataset()
    for element in first:
        if element.keyword not in TAGS or element.keyword in (
            "Manufacturer", "ManufacturerModelName", "PatientID", "StudyInstanceUID", "Modality", "Rows", "Columns",
            "SeriesInstanceUID", "FrameOfReferenceUID", "BitsAllocated", "BitsStored", "PatientPosition",
            "PatientIdentityRemoved", "BurnedInAnnotation", "LossyImageCompression", "SamplesPerPixel",
            "PhotometricInterpretation", "BodyPartExamined", "PatientSex", "PatientAge", "StudyDate",
        ):  # fmt: skip
            image.add(element)
    image.SOPClassUID, image.SOPInstanceUID = EnhancedCTImageStorage, generate_uid(entropy_srcs=["enhanced"])
    image.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    image.NumberOfFrames = len(read)
    image.PixelData = b"".join(item.PixelData for item in read)
    shared = group(
        PixelMeasures={"PixelSpacing": first.PixelSpacing, "SliceThickness": first.SliceThickness,
                       "SpacingBetweenSlices": first.SpacingBetweenSlices},
        PlaneOrientation={"ImageOrientationPatient": first.ImageOrientationPatient},
        CTReconstruction={"ConvolutionKernel": first.ConvolutionKernel},
        CTXRayDetails={"KVP": first.KVP},
    )  # fmt: skip
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = [
        group(
            FrameContent={"FrameAcquisitionNumber": 1, "StackID": "1", "InStackPositionNumber": number},
            PlanePosition={"ImagePositionPatient": item.ImagePositionPatient},
            CTImageFrameType={"FrameType": ["ORIGINAL", "PRIMARY", "AXIAL", "NONE"]},
            PixelValueTransformation={"RescaleIntercept": item.RescaleIntercept, "RescaleSlope": item.RescaleSlope,
                                      "RescaleType": "HU"},
        )
        for number, item in enumerate(read, start=1)
    ]  # fmt: skip
    image.file_meta = first.file_meta
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return image


def group(**macros: dict[str, object]) -> Dataset:
    item = Dataset()
    for name, values in macros.items():
        macro = Dataset()
        for keyword, value in values.items():
            setattr(macro, keyword, value)
        setattr(item, f"{name}Sequence", [macro])
    return item


def written(image: Dataset, path: Path) -> Path:
    pydicom.dcmwrite(path, image, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return path


def measured(paths: list[Path]) -> dict[str, object]:
    read = [read_instance(io.BytesIO(p.read_bytes()), p.name, p.stat().st_size) for p in paths]
    return measure_series(read)


def test_enhanced_ct(slices: list[Path], tmp_path: Path) -> None:
    path = written(enhanced(slices), tmp_path / "enhanced.dcm")
    single, multi = read_series(slices), read_series([path])
    np.testing.assert_array_equal(multi.hu, single.hu)
    np.testing.assert_allclose(multi.affine, single.affine, atol=1e-9)

    image = SimpleITK.ReadImage(str(path))  # GDCM's own reading of the groups; it keeps the frames' order
    frames = SimpleITK.GetArrayFromImage(image)
    positions = [g.PlanePositionSequence[0].ImagePositionPatient[2] for g in enhanced(slices)[0x52009230].value]
    np.testing.assert_array_equal(multi.hu, frames[np.argsort(positions)])

    one, other = measured([path]), measured(slices)
    same = {key: value for key, value in other.items() if value == value and key not in OF_FILES}  # not NaN
    assert {key: one[key] for key in same} == same
    assert (one["instances"], one["positions"], one["duplicate_instances"]) == (14, 14, 0)
    assert (one["is_ct_image"], one["frames_per_image"], one["tilt_degrees"]) == (True, 1.0, other["tilt_degrees"])


def test_legacy_converted_ct(slices: list[Path], tmp_path: Path) -> None:
    image = highdicom.legacy.LegacyConvertedEnhancedCTImage(
        [pydicom.dcmread(path) for path in slices], generate_uid(entropy_srcs=["s"]), 7, generate_uid(), 1
    )
    image.save_as(tmp_path / "legacy.dcm")
    multi = read_series([tmp_path / "legacy.dcm"])
    np.testing.assert_array_equal(multi.hu, read_series(slices).hu)
    one = measured([tmp_path / "legacy.dcm"])
    assert (one["instances"], one["is_ct_image"], one["gap_ratio"]) == (14, True, 1.0)
    assert (one["kernel"], one["kvp"]) == tuple(measured(slices)[k] for k in ("kernel", "kvp"))


def test_the_second_tube_is_not_the_first(slices: list[Path], tmp_path: Path) -> None:
    """Dual-source CT: other macros state a KVP, a spacing, an orientation, too (PS3.3 C.8.15.3.12)."""
    image = enhanced(slices)
    more = group(CTAdditionalXRaySource={"KVP": "70"}, CTTableDynamics={"SliceThickness": "99"})
    image.SharedFunctionalGroupsSequence[0].update(more)
    second = Dataset()
    second.KVP = "80"
    image.SharedFunctionalGroupsSequence[0].CTXRayDetailsSequence.append(second)
    one, other = measured([written(image, tmp_path / "dual.dcm")]), measured(slices)
    for column in ("kvp", "kvp_min", "kvp_max", "thickness_max_mm", "gap_median_mm"):
        assert one[column] == other[column], column


def test_frames_without_the_class_are_frames_to_every_reader(slices: list[Path], tmp_path: Path) -> None:
    """What the headers measure as slices decodes as slices, also where an export strips the class."""
    image = enhanced(slices)
    del image.SOPClassUID
    path = written(image, tmp_path / "stripped.dcm")
    assert (measured([path])["instances"], measured([path])["is_ct_image"]) == (14, True)
    np.testing.assert_array_equal(read_series([path]).hu, read_series(slices).hu)


def test_deflated_frames(slices: list[Path], tmp_path: Path) -> None:
    image = enhanced(slices)
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = written(image, tmp_path / "deflated.dcm")
    np.testing.assert_array_equal(read_series([path]).hu, read_series(slices).hu)
    assert (measured([path])["instances"], measured([path])["unreadable_files"]) == (14, 0)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_frames(slices: list[Path], tmp_path: Path, syntax: str) -> None:
    image = enhanced(slices)
    image.compress(syntax)
    path = written(image, tmp_path / "compressed.dcm")
    np.testing.assert_array_equal(read_series([path]).hu, read_series(slices).hu)
    image.PixelData = encapsulate([b"\xff\x4f damaged"] * 14)
    with pytest.raises(DecodeError, match=r"compressed\.dcm: pixels do not decode"):
        read_series([written(image, path)])


def test_what_does_not_fit_is_named(slices: list[Path], tmp_path: Path) -> None:
    image = enhanced(slices)
    image.PixelData = image.PixelData[:-200]
    path = written(image, tmp_path / "short.dcm")
    assert measured([path])["unreadable_files"] == 0, "the file ends where its pixel data say"
    with pytest.raises(DecodeError, match=r"short\.dcm: \d+ bytes of pixel data, its matrix needs \d+"):
        read_series([path])
    image = enhanced(slices)
    del image.PerFrameFunctionalGroupsSequence[3:]
    path = written(image, tmp_path / "groups.dcm")
    assert measured([path])["frames_per_image"] == 14, "the suite *headers* rejects it: multi_frame"
    with pytest.raises(DecodeError, match=r"groups\.dcm: functional groups of 3 frames, NumberOfFrames is 14"):
        read_series([path])
