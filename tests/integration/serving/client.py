"""What clients send to the service, and how its refusals are checked."""

from __future__ import annotations

import gzip
import io
import zipfile
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

PATIENT = "SECRET^PATIENT"
MAX_BODY = 256 * 1024**2


def ct_slice(index: int, series: str, **changes: Any) -> bytes:
    """One CT instance: an ellipse of soft tissue with bone in air, 3 mm below the one before."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series, str(index)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientID, dataset.PatientName, dataset.StudyInstanceUID = PATIENT, PATIENT, "1.2.3"
    dataset.SeriesInstanceUID, dataset.Modality, dataset.ImageType = series, "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [-160, -160, 3 * index], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [2.5, 2.5], 3
    dataset.Rows = dataset.Columns = 128
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
    y, x = np.mgrid[:128, :128] - 63.5
    noise = np.random.default_rng(index).normal(0, 8, (128, 128))
    hu = np.where((x / 44) ** 2 + (y / 30) ** 2 < 1, 40 + 30 * np.sin(index / 5), -1000) + noise
    hu = np.where(x**2 + (y - 18) ** 2 < 64, hu + 400 + 40 * x, hu)  # bone
    dataset.PixelData = np.rint(hu + 1024).astype("<i2").tobytes()
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def ct_series(series: str = "1.2.3.4", count: int = 26) -> dict[str, bytes]:
    return {f"CT/IM{index:03d}": ct_slice(index, series) for index in range(count)}


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def nifti(compress: bool = True) -> bytes:
    hu = np.full((60, 60, 40), -1000, dtype=np.int16)
    hu[10:50, 15:45] = 40
    content = nib.Nifti1Image(hu, np.diag([3.0, 3.0, 3.0, 1.0])).to_bytes()
    return gzip.compress(content) if compress else content


def post(url: str, content: bytes, **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/embed", content=content, headers=headers, timeout=60)


def refused(response: httpx.Response, status: int, says: str, base: str = "") -> None:
    """A refusal is one clear line of JSON, names no patient, and the service goes on."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    message = response.json()["error"]
    assert says in message, message
    assert "\n" not in message
    assert PATIENT not in message
    assert "/tmp" not in message
    base = base or str(response.url).removesuffix("/embed")
    assert httpx.get(f"{base}/healthz", timeout=5).status_code == 200
