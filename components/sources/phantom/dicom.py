"""Genuine DICOM: CT Image Storage with every type 1 and 2 attribute (PS3.3 A.3), written without clock or chance."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from components.sources.phantom.equipment import VENDORS
from components.sources.phantom.geometry import Geometry
from components.sources.phantom.plan import ScanPlan
from components.sources.phantom.seeds import uid
from components.sources.phantom.subject import Subject

IMPLEMENTATION_UID = uid("ctfoundry", "phantom", "implementation")
_DATE, _TIME = "20200101", "120000"  # fixed: a phantom has no date, and outputs carry no clock


def series(plan: ScanPlan, geometry: Geometry, hu: npt.NDArray[np.generic], subject: Subject) -> list[Dataset]:
    """One dataset per slice, in the order of file names.

    Args:
        hu: (K, R, C) Hounsfield units in stored orientation.
        subject: whom the headers are to say it is.
    """
    vendor = VENDORS[plan.vendor]
    pixels = stored_values(plan, hu)
    template = _reread(_template(plan, geometry, subject), explicit=vendor.explicit)
    meta = with_meta(Dataset(dict(template.items())), explicit=vendor.explicit).file_meta
    order = range(plan.slices - 1, -1, -1) if plan.descending else range(plan.slices)
    slices = []
    for number, k in enumerate(order, start=1):
        item = Dataset(dict(template.items()))  # the elements themselves are shared
        item.SOPInstanceUID = uid(plan.series_uid, "instance", k)
        item.InstanceNumber = number
        item.ImagePositionPatient = [decimal(v) for v in geometry.position(k)]
        item.SliceLocation = decimal(geometry.position(k)[2])
        item.PixelData = pixels[k].tobytes()
        item["PixelData"].VR = "OW"
        slices.append(with_meta(item, meta, explicit=vendor.explicit))
    return slices


def stored_values(plan: ScanPlan, hu: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """HU to stored pixels, int16 or uint16, in the vendor's way; 12 bits of range as scanners have."""
    vendor = VENDORS[plan.vendor]
    clipped = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    stored: npt.NDArray[np.int16] = clipped - np.int16(vendor.intercept)
    if vendor.padding is not None:
        axis = np.arange(plan.matrix) - (plan.matrix - 1) / 2
        outside = axis[:, None] ** 2 + axis[None] ** 2 > (plan.matrix / 2) ** 2
        stored[:, outside] = vendor.padding
    return stored if vendor.signed else stored.astype(np.uint16)


def write(slices: list[Dataset], folder: Path) -> list[Path]:
    """Write the files 0001.dcm, 0002.dcm, ... and return their paths.

    Slices share most of their elements, as objects: each such element is encoded once per series. That makes writing
    several times faster than ``dcmwrite`` slice by slice, with the same bytes (a test compares).
    """
    encoded: dict[int, bytes] = {}
    paths = []
    for number, item in enumerate(slices, start=1):
        path = folder / f"{number:04d}.dcm"
        path.write_bytes(encode(item, encoded))
        paths.append(path)
    return paths


def encode(item: Dataset, encoded: dict[int, bytes]) -> bytes:
    """One file's bytes (PS3.10). ``encoded`` keeps the bytes of elements, by identity, while the slices live."""
    meta = _elements(item.file_meta, encoded, implicit=False)
    body = _elements(item, encoded, implicit=item.file_meta.TransferSyntaxUID.is_implicit_VR)
    return b"\0" * 128 + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta)) + meta + body


def _elements(item: Dataset, encoded: dict[int, bytes], *, implicit: bool) -> bytes:
    parts = []
    for _, element in sorted(item.items(), key=lambda pair: int(pair[0])):
        key = id(element)
        code = encoded.get(key)
        if code is None:
            buffer = DicomBytesIO()
            buffer.is_little_endian, buffer.is_implicit_VR = True, implicit
            if isinstance(element, RawDataElement) and element.value is None:  # what dcmread makes of an empty value
                element = element._replace(value=b"")
            write_data_element(buffer, element, "latin_1")
            code = encoded[key] = buffer.getvalue()
        parts.append(code)
    return b"".join(parts)


def with_meta(item: Dataset, shared: FileMetaDataset | None = None, *, explicit: bool) -> Dataset:
    """Add the file meta information to a dataset; elements of ``shared`` are taken over."""
    if shared is not None:
        own = "MediaStorageSOPInstanceUID"
        item.file_meta = FileMetaDataset({tag: e for tag, e in shared.items() if tag != tag_for_keyword(own)})
        item.file_meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID
        return item
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = item.SOPClassUID
    meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    meta.ImplementationVersionName = "CTFOUNDRY"
    item.file_meta = meta
    return item


def decimal(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5 table 6.2-1)."""
    text = f"{value:.9f}".rstrip("0").rstrip(".")
    text = text if len(text) <= 16 else f"{value:.9g}"
    return "0" if text in ("-0", "") else text


def _reread(item: Dataset, *, explicit: bool) -> Dataset:
    """The same dataset with its elements still encoded: slices then share their bytes, and writing is fast."""
    item.SOPInstanceUID = uid("template")
    buffer = BytesIO()
    dcmwrite(buffer, with_meta(item, explicit=explicit), enforce_file_format=True, implicit_vr=not explicit,
             little_endian=True)  # fmt: skip
    buffer.seek(0)
    return dcmread(buffer)


def _template(plan: ScanPlan, geometry: Geometry, subject: Subject) -> Dataset:
    item = Dataset()
    for part in (_patient(plan, subject), _study(plan), _equipment(plan), _image(plan, geometry), _pixel_module(plan)):
        for keyword, value in part.items():
            setattr(item, keyword, value)
    padding = VENDORS[plan.vendor].padding
    if padding is not None:
        item.PixelPaddingValue = padding
    return item


def _patient(plan: ScanPlan, subject: Subject) -> dict[str, Any]:
    return {
        "SpecificCharacterSet": "ISO_IR 100",
        "PatientName": plan.patient_id.replace("-", "^", 1),
        "PatientID": plan.patient_id,
        "PatientBirthDate": "",
        "PatientSex": subject.sex,
        "PatientAge": f"{subject.years:03d}Y",
        "ContrastBolusAgent": subject.agent,
        "PatientIdentityRemoved": "YES",
        "DeidentificationMethod": "Synthetic phantom, no patient",
        "PatientPosition": plan.position,
    }


def _study(plan: ScanPlan) -> dict[str, Any]:
    body = plan.anatomy == "trunk"
    return {
        "StudyInstanceUID": plan.study_uid,
        "SeriesInstanceUID": plan.series_uid,
        "FrameOfReferenceUID": plan.frame_uid,
        "PositionReferenceIndicator": "",
        "StudyID": str(plan.scan),
        "SeriesNumber": 2,
        "AcquisitionNumber": 1,
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "StudyDate": _DATE,
        "SeriesDate": _DATE,
        "AcquisitionDate": _DATE,
        "ContentDate": _DATE,
        "StudyTime": _TIME,
        "SeriesTime": _TIME,
        "AcquisitionTime": _TIME,
        "ContentTime": _TIME,
        "StudyDescription": "CT chest abdomen" if body else "CT head without contrast",
        "SeriesDescription": f"{plan.kernel} {decimal(plan.thickness_mm)} mm",
        "BodyPartExamined": "CHESTABDOMEN" if body else "HEAD",
    }


def _equipment(plan: ScanPlan) -> dict[str, Any]:
    return {
        "Manufacturer": VENDORS[plan.vendor].manufacturer,
        "ManufacturerModelName": plan.model,
        "InstitutionName": "ctfoundry phantom",
        "StationName": "PHANTOM",
        "SoftwareVersions": "1",
        "KVP": str(plan.kvp),
        "ConvolutionKernel": plan.kernel,
        "XRayTubeCurrent": plan.mas,
        "ExposureTime": 1000,
        "FilterType": "BODY" if plan.anatomy == "trunk" else "HEAD",
        "ReconstructionDiameter": decimal(round(plan.pixel_mm * plan.matrix, 3)),
        "GantryDetectorTilt": decimal(plan.gantry_tilt_deg),
        "TableHeight": "150",
        "RotationDirection": "CW",
    }


def _image(plan: ScanPlan, geometry: Geometry) -> dict[str, Any]:
    return {
        "SOPClassUID": CTImageStorage,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ImageOrientationPatient": [decimal(v) for v in geometry.orientation],
        "PixelSpacing": [decimal(plan.pixel_mm)] * 2,
        "SliceThickness": decimal(plan.thickness_mm),
        "SpacingBetweenSlices": decimal(plan.increment_mm),
        "BurnedInAnnotation": "NO",
        "LossyImageCompression": "00",
        "WindowCenter": "40",
        "WindowWidth": "400" if plan.anatomy == "trunk" else "80",
    }


def _pixel_module(plan: ScanPlan) -> dict[str, Any]:
    vendor = VENDORS[plan.vendor]
    bits = 16 if vendor.signed else 12
    return {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": plan.matrix,
        "Columns": plan.matrix,
        "BitsAllocated": 16,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(vendor.signed),
        "RescaleIntercept": str(vendor.intercept),
        "RescaleSlope": "1",
        "RescaleType": "HU",
    }
