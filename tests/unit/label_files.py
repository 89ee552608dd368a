"""Small CT series and the RTSTRUCT and SEG files drawn on them, for the tests of labels."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from phantom_plans import small
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from components.ct.dicom import read_series
from components.ct.store import Volume
from components.sources.phantom.scanner import scan

LATER = dict.fromkeys(range(12, 24), 0.3)  # one gap 6 % longer than the others


@dataclass
class Scan:
    """A CT series of 24 slices: its files, from the lowest slice up, and its volume."""

    folder: Path
    items: list[Dataset]
    volume: Volume


def scanned(folder: Path, shifts_mm: dict[int, float] | None = None, **changes: object) -> Scan:
    """``shifts_mm``: how far slices are moved up the table."""
    scan(small("trunk", **{"slices": 24, "increment_mm": 5.0, "thickness_mm": 5.0, **changes}), folder)
    paths = list(folder.glob("*.dcm"))
    for path in set(folder.iterdir()) - set(paths):  # masks and findings, which no scanner writes
        path.unlink()
    items = [pydicom.dcmread(path) for path in paths]
    order = sorted(range(len(items)), key=lambda n: float(items[n].ImagePositionPatient[2]))
    for number, index in enumerate(order):
        if shifts_mm and number in shifts_mm:
            x, y, z = (float(v) for v in items[index].ImagePositionPatient)
            items[index].ImagePositionPatient = [x, y, round(z + shifts_mm[number], 3)]
            items[index].save_as(paths[index])
    return Scan(folder, [items[n] for n in order], read_series(sorted(paths)))


def three_scans(base: Path) -> dict[str, Scan]:
    """An even grid, a tilted gantry, and one gap longer than the others."""
    return {
        "even": scanned(base / "even"),
        "tilted": scanned(base / "tilted", gantry_tilt_deg=15.0),
        "uneven": scanned(base / "uneven", LATER),
    }


def rectangle(item: Dataset, rows: tuple[float, float], columns: tuple[float, float], decimals: int = 3) -> list[float]:
    """Corners in pixels, on a slice, as ContourData."""
    position = np.array([float(v) for v in item.ImagePositionPatient])
    along, down = np.array([float(v) for v in item.ImageOrientationPatient]).reshape(2, 3)
    dy, dx = (float(v) for v in item.PixelSpacing)
    places = [(rows[0], columns[0]), (rows[0], columns[1]), (rows[1], columns[1]), (rows[1], columns[0])]
    points = np.array([position + column * dx * along + row * dy * down for row, column in places])
    return [round(float(v), decimals) for v in points.ravel()]


def contour(points: list[float] | None, kind: str | None = "CLOSED_PLANAR") -> Dataset:
    item = Dataset()
    if kind is not None:
        item.ContourGeometricType = kind
    if points is not None:
        item.NumberOfContourPoints = len(points) // 3
        item.ContourData = points
    return item


def structures(ct: Dataset, rois: dict[str, list[Dataset]], frame: str | None = None) -> Dataset:
    """An RTSTRUCT; ``rois``: name to contours."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = RTStructureSetStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(entropy_srcs=["labels"])
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.Modality, dataset.PatientID, dataset.StudyInstanceUID = "RTSTRUCT", ct.PatientID, ct.StudyInstanceUID
    reference, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = ct.SeriesInstanceUID
    study.RTReferencedSeriesSequence = Sequence([series])
    reference.RTReferencedStudySequence = Sequence([study])
    reference.FrameOfReferenceUID = frame or ct.FrameOfReferenceUID
    dataset.ReferencedFrameOfReferenceSequence = Sequence([reference])
    dataset.StructureSetROISequence, dataset.ROIContourSequence = Sequence(), Sequence()
    dataset.RTROIObservationsSequence = Sequence()
    for number, (name, contours) in enumerate(rois.items(), start=1):
        roi, drawn, seen = Dataset(), Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, reference.FrameOfReferenceUID
        drawn.ReferencedROINumber, drawn.ContourSequence = number, Sequence(contours)
        seen.ObservationNumber, seen.ReferencedROINumber, seen.RTROIInterpretedType = number, number, "ORGAN"
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(drawn)
        dataset.RTROIObservationsSequence.append(seen)
    return dataset


def saved(dataset: Dataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def bare(dataset: Dataset, path: Path, implicit: bool = True) -> Path:
    """Without preamble and file meta information."""
    alone = Dataset()
    alone.update({element.tag: element for element in dataset})
    alone.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    return path


def segmentation(items: list[Dataset], masks: np.ndarray, kind: str = "BINARY", names: tuple[str, ...] = ()) -> Any:
    """A SEG of masks (slices, rows, columns, segments) on slices ``items``; fractions may stand for masks."""
    names = names or tuple(f"segment {n}" for n in range(1, masks.shape[3] + 1))
    manual = highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
    return highdicom.seg.Segmentation(
        source_images=deepcopy(items),  # it shares their elements, which tests then change
        pixel_array=masks,
        segmentation_type=kind,
        segment_descriptions=[
            highdicom.seg.SegmentDescription(number, name, codes.SCT.Organ, codes.SCT.Liver, manual)
            for number, name in enumerate(names, start=1)
        ],
        series_instance_uid=generate_uid(entropy_srcs=["seg"]), series_number=1,
        sop_instance_uid=generate_uid(entropy_srcs=["seg image"]), instance_number=1, manufacturer="t",
        manufacturer_model_name="t", software_versions="1", device_serial_number="1",
    )  # fmt: skip
