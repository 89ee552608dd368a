"""Faults beyond the phantom scanner's own, each planted into a genuine series; ``planted_in_cohort`` has a cohort's."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import reduce
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from pydicom import DataElement, Dataset, Sequence
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from components.sources.phantom.seeds import uid

HU = npt.NDArray[np.float32]
Slices = list[Dataset]
Change = Callable[[Slices], Slices]
TableChange = Callable[[pd.DataFrame], pd.DataFrame]


@dataclass(frozen=True)
class Planted:
    """Attributes:
    name, says: the fault, in a word and in words.
    suite: that must catch it. reason: the code that it must be caught with.
    severity: ``reject``, ``critical`` (the run stops) or ``warning``.
    slices, hu, cohort: what it does, at its point of attack.
    """

    name: str
    says: str
    suite: str
    reason: str
    severity: str = "reject"
    slices: Change | None = None
    hu: Callable[[HU], HU] | None = None
    cohort: TableChange | None = None


def every(**values: Any) -> Change:
    return some(lambda items: items, **values)


def half(**values: Any) -> Change:
    return some(lambda items: items[len(items) // 2 :], **values)


def one(**values: Any) -> Change:
    return some(lambda items: items[7:8], **values)


def some(choose: Change, **values: Any) -> Change:
    """Set attributes of the chosen slices; None takes the attribute away."""

    def plant(items: Slices) -> Slices:
        for item in choose(items):
            for keyword, value in values.items():
                if value is not None:
                    setattr(item, keyword, value)
                elif keyword in item:
                    delattr(item, keyword)
        return items

    return plant


def both(*plants: Change) -> Change:
    return lambda items: reduce(lambda done, plant: plant(done), plants, items)


def _pixels(item: Dataset) -> npt.NDArray[Any]:
    return np.frombuffer(item.PixelData, np.int16 if item.PixelRepresentation else np.uint16).reshape(
        item.Rows, item.Columns
    )


def _cropped(rows: int, columns: int) -> Change:
    def plant(items: Slices) -> Slices:
        for item in items:
            top, left = (item.Rows - rows) // 2, (item.Columns - columns) // 2
            view = _pixels(item)[top : top + rows, left : left + columns]
            item.Rows, item.Columns, item.PixelData = rows, columns, view.tobytes()
        return items

    return plant


def _in_eight_bits(items: Slices) -> Slices:
    for item in items:
        item.PixelData = np.clip(_pixels(item) / 16, 0, 255).astype(np.uint8).tobytes()
        item.BitsAllocated, item.BitsStored, item.HighBit = 8, 8, 7
    return items


def _in_colour(items: Slices) -> Slices:
    for item in items:
        item.PixelData = np.repeat(_pixels(item)[..., None], 3, axis=2).tobytes()
        item.SamplesPerPixel, item.PhotometricInterpretation, item.PlanarConfiguration = 3, "RGB", 0
    return items


def _as_jpeg(items: Slices) -> Slices:
    """Lossy by transfer syntax alone: LossyImageCompression still says 00."""
    for item in items:
        grey = np.clip(_pixels(item) / 16, 0, 255).astype(np.uint8)
        item.PixelData = encapsulate([cv2.imencode(".jpg", grey)[1].tobytes()])
        item["PixelData"].VR, item["PixelData"].is_undefined_length = "OB", True
        item.BitsAllocated, item.BitsStored, item.HighBit = 8, 8, 7
        item.file_meta = deepcopy(item.file_meta)
        item.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return items


def _moved(change: Callable[[int, list[float]], list[float]]) -> Change:
    def plant(items: Slices) -> Slices:
        for number, item in enumerate(items):
            position = [float(v) for v in item.ImagePositionPatient]
            item.ImagePositionPatient = [round(v, 4) for v in change(number, position)]
        return items

    return plant


def _inserted(items: Slices) -> Slices:
    extra = deepcopy(items[10])
    extra.SOPInstanceUID = extra.file_meta.MediaStorageSOPInstanceUID = uid("inserted")
    above = float(items[11].ImagePositionPatient[2])
    x, y, z = (float(v) for v in extra.ImagePositionPatient)
    extra.ImagePositionPatient = [x, y, (z + above) / 2]
    return [*items, extra]


def _named_twice(items: Slices) -> Slices:
    items[5].SOPInstanceUID = items[5].file_meta.MediaStorageSOPInstanceUID = items[4].SOPInstanceUID
    return items


def _private(choose: Change) -> Change:
    def plant(items: Slices) -> Slices:
        for item in choose(items):
            item.private_block(0x0009, "ACME SYNTHETIC 1.0", create=True).add_new(0x01, "LO", "ward 7, bed 2")
        return items

    return plant


def _nested(items: Slices) -> Slices:
    inner = Dataset()
    inner.PatientID, inner.IssuerOfPatientID = "4711-0815", "GENERAL HOSPITAL"
    for item in items:
        item["OtherPatientIDsSequence"] = DataElement(0x00101002, "SQ", Sequence([inner]))
    return items


UNSTATED: dict[str, Any] = {"PatientIdentityRemoved": None, "DeidentificationMethod": None, "PatientName": ""}


def header_faults() -> list[Planted]:
    """Into the headers of one clean series of 5 mm slices."""
    return [*_image_faults(), *_stack_faults()]


def _in_headers(name: str, reason: str, says: str, slices: Change, severity: str = "reject") -> Planted:
    return Planted(name, says, "headers", reason, severity, slices=slices)


def _image_faults() -> list[Planted]:
    """In what the images are, and in what they must share."""
    fault = _in_headers
    return [
        fault("wrong_modality", "not_ct", "PET filed with the class of CT", every(Modality="PT")),
        fault("duplicate_instances", "duplicate_instances", "two slices with one SOP instance UID", _named_twice),
        fault("mixed_kernels", "mixed_kernels", "half reconstructed with another kernel",
              half(ConvolutionKernel="B80f")),
        fault("mixed_scanners", "mixed_scanners", "half from another scanner", half(ManufacturerModelName="Other")),
        fault("kvp_low", "kvp", "tube voltage of 30 kV, a mammograph's", every(KVP="30")),
        fault("kvp_high", "kvp", "tube voltage in volts", every(KVP="120000")),
        fault("pixels_not_square", "pixel_aspect", "pixels twice as wide as high", every(PixelSpacing=[2.0, 4.0])),
        fault("pixels_in_cm", "pixel_spacing", "pixel spacing in cm", every(PixelSpacing=[0.043, 0.043])),
        fault("pixels_coarse", "pixel_spacing", "pixels of 12 mm", every(PixelSpacing=[12.0, 12.0])),
        fault("field_small", "field_of_view", "a field of view of 29 mm", every(PixelSpacing=[0.3, 0.3])),
        fault("thumbnail", "matrix_too_small", "a matrix of 40 x 40", _cropped(40, 40)),
        fault("not_square", "matrix_not_square", "fewer rows than columns", _cropped(80, 96), "warning"),
        fault("palette", "photometric", "colours from a palette", every(PhotometricInterpretation="PALETTE COLOR")),
        fault("colour", "photometric", "RGB pixels", _in_colour),
        fault("eight_bits", "bit_depth", "8 bits per pixel", _in_eight_bits),
        fault("ten_bits", "bit_depth", "10 bits stored", every(BitsStored=10, HighBit=9)),
        fault("multi_frame", "multi_frame", "two frames per image", every(NumberOfFrames="2")),
        fault("projection", "projection", "maximum intensity projections",
              every(ImageType=["DERIVED", "SECONDARY", "MIP"])),
        fault("lossy_syntax", "lossy_compression", "baseline JPEG, though the header says lossless", _as_jpeg),
        fault("no_rescale", "rescale", "no rescale slope and intercept",
              every(RescaleSlope=None, RescaleIntercept=None)),
        fault("no_rescale_in_one", "rescale", "one slice without a rescale intercept", one(RescaleIntercept=None)),
        fault("slopes_differ", "rescale", "another rescale slope in half of the slices", half(RescaleSlope="2")),
        fault("intercepts_differ", "rescale", "another intercept in one slice", one(RescaleIntercept="0")),
        fault("slope_zero", "rescale", "rescale slope 0", every(RescaleSlope="0")),
        fault("slope_negative", "rescale", "rescale slope -1", every(RescaleSlope="-1")),
        fault("not_hu", "rescale", "electron density instead of HU", every(RescaleType="ED")),
        fault("position_unknown", "patient_position", "a patient position that is no defined term",
              every(PatientPosition="SUPINE")),
        fault("positions_mixed", "patient_position", "half head first, half feet first", half(PatientPosition="FFS")),
        fault("patients_mixed", "mixed_patients", "one slice of another patient", one(PatientID="PHANTOM-WB-9999")),
        fault("studies_mixed", "mixed_series", "half from another study", half(StudyInstanceUID=uid("other study"))),
        fault("series_mixed", "mixed_series", "half from another series", half(SeriesInstanceUID=uid("other series"))),
        fault("frames_mixed", "mixed_series", "two frames of reference", half(FrameOfReferenceUID=uid("other frame"))),
    ]  # fmt: skip


def _stack_faults() -> list[Planted]:
    """In where the slices lie."""
    fault = _in_headers
    return [
        fault("orientation_scaled", "orientation", "row direction of length 2",
              every(ImageOrientationPatient=[2, 0, 0, 0, 1, 0])),
        fault("orientation_skewed", "orientation", "rows and columns at 60 degrees",
              every(ImageOrientationPatient=[1, 0, 0, 0.5, 0.866025, 0])),
        fault("orientation_zero", "orientation", "orientation of zeros",
              every(ImageOrientationPatient=[0, 0, 0, 0, 0, 0])),
        fault("position_short", "missing_tags", "a slice position of two numbers", one(ImagePositionPatient=[0, 0])),
        fault("gaps", "slice_coverage", "1 mm slices every 5 mm", every(SliceThickness="1")),
        fault("overlap", "slice_coverage", "5 mm slices every 0.25 mm", _moved(lambda n, p: [p[0], p[1], p[2] * 0.05])),
        fault("steps_long", "slice_step", "25 mm from slice to slice", _moved(lambda n, p: [p[0], p[1], p[2] * 5])),
        fault("drifting", "uneven_spacing", "half of the gaps 10 % longer: 6 mm off the affine in the middle",
              _moved(lambda n, p: [p[0], p[1], p[2] + 0.5 * max(0, n - 12)])),
        fault("inserted", "uneven_spacing", "a slice half-way between two others", _inserted),
        fault("off_line", "uneven_spacing", "one slice 20 mm to the side",
              _moved(lambda n, p: [p[0] + (20 if n == 9 else 0), p[1], p[2]])),
        fault("one_position", "repeated_positions", "all slices at one position",
              _moved(lambda n, p: [p[0], p[1], 0.0])),
        fault("thin", "slice_thickness", "slices of 0.05 mm", every(SliceThickness="0.05")),
        fault("mixed_thickness", "mixed_thickness", "half of the slices 4 mm thick", half(SliceThickness="4"),
              "warning"),
        fault("stated_step", "stated_step", "SpacingBetweenSlices is half of the distance",
              every(SpacingBetweenSlices="2.5"), "warning"),
    ]  # fmt: skip


def privacy_faults() -> list[Planted]:
    """Into headers: what a site's export may still carry. None states that the identity was removed, but the last."""

    def fault(name: str, reason: str, says: str, slices: Change) -> Planted:
        return Planted(name, says, "headers", reason, "critical", slices=both(every(**UNSTATED), slices))

    ward = {"ReferringPhysicianName": "Watson^John", "OperatorsName": "Hudson^Martha"}
    return [
        fault("name", "direct_identifiers", "patient's name", every(PatientName="Doe^Jane")),
        fault("name_in_one", "direct_identifiers", "patient's name in one slice of all", one(PatientName="Doe^Jane")),
        fault("birth_date", "direct_identifiers", "birth date", every(PatientBirthDate="19610203")),
        fault("accession", "direct_identifiers", "accession number", every(AccessionNumber="20240117-0042")),
        fault("address", "direct_identifiers", "home address", every(PatientAddress="12 High Street")),
        fault("staff", "direct_identifiers", "names of physician and operator", every(**ward)),
        fault("nested", "direct_identifiers", "another PatientID inside a sequence", _nested),
        fault("removal_denied", "direct_identifiers", "a name, and the header says NO to removal",
              every(PatientName="Doe^Jane", PatientIdentityRemoved="NO")),
        fault("private", "private_tags", "an unknown private element", _private(lambda items: items)),
        fault("private_in_one", "private_tags", "an unknown private element in one slice",
              _private(lambda items: items[9:10])),
        fault("burned_in", "burned_in_annotation", "burned-in annotation in one slice", one(BurnedInAnnotation="YES")),
        Planted("name_stated", "patient's name, though the header states its removal", "headers", "direct_identifiers",
                "warning", slices=every(PatientName="Doe^Jane")),
        Planted("private_stated", "an unknown private element, though the header states removal", "headers",
                "private_tags", "warning", slices=_private(lambda items: items)),
    ]  # fmt: skip


def _with(hu: HU, where: Any, value: Any) -> HU:
    out = hu.copy()
    out[where] = value
    return out


def _noisy(hu: HU, sigma: float) -> HU:
    return np.asarray(hu + np.random.default_rng(3).normal(0, sigma, hu.shape), np.float32)


def voxel_faults() -> list[Planted]:
    """Into the HU of one clean series, (slices, rows, columns)."""

    def fault(name: str, reason: str, says: str, hu: Callable[[HU], HU]) -> Planted:
        return Planted(name, says, "volumes", reason, hu=hu)

    def foreign(hu: HU) -> HU:
        return _with(hu, 20, hu[20, ::-1, ::-1] + 400)

    def nearly_empty(hu: HU) -> HU:
        out = _noisy(np.full_like(hu, -1000), 10)
        out[:, 40:52, 40:52] = _noisy(np.zeros_like(out[:, 40:52, 40:52]), 15)
        return out

    return [
        fault("clipped", "hu_clipped", "bone clipped to 150 HU", lambda hu: np.minimum(hu, 150)),
        fault("windowed", "few_levels", "clipped to the window -160 to 240 HU", lambda hu: np.clip(hu, -160, 240)),
        fault("screenshot", "few_levels", "256 grey values stretched over the HU range",
              lambda hu: np.round((hu + 1024) / 10) * 10 - 1024),
        fault("painted", "noise", "no noise: flat colours", lambda hu: np.round(hu / 100) * 100),
        fault("starved", "noise", "noise of hundreds of HU: no photons", lambda hu: _noisy(hu, 500)),
        fault("copied_slices", "duplicate_slices", "three slices with their neighbour's pixels",
              lambda hu: _with(hu, slice(11, 14), hu[10])),
        fault("foreign_slice", "slice_jump", "one slice of something else", foreign),
        fault("inverted", "hu_calibration", "air is bright and bone is dark", lambda hu: -hu),
        fault("doubled", "hu_calibration", "every HU is twice what it is", lambda hu: 2 * hu + 1000),
        fault("no_air", "hu_calibration", "nothing darker than water", lambda hu: np.maximum(hu, 0)),
        fault("bright", "hu_range", "a tenth of the volume at 3000 HU: metal",
              lambda hu: _with(hu, (slice(None), slice(20, 45), slice(30, 70)), 3000)),
        fault("dull", "hu_range", "nothing brighter than soft tissue", lambda hu: np.minimum(hu, 50)),
        fault("nearly_empty", "mostly_air", "a thin rod in air", nearly_empty),
        Planted("small_animal", "an animal of 8 cm2 across", "volumes", "body_size",
                slices=every(PixelSpacing=[0.55, 0.55])),
        Planted("too_long", "slices spread over more than 3 m", "volumes", "scan_too_long",
                slices=_moved(lambda n, p: [p[0], p[1], p[2] * 30])),
        Planted("cut", "the field of view ends within the patient", "volumes", "body_cut", "warning",
                slices=_cropped(48, 48)),
    ]  # fmt: skip
