"""A map as DICOM lies on the scan, is of its study, and is the same for the same scan."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from label_files import scanned

from components.ct.dicom import read_series
from components.ct.store import Volume
from serving.dicom_map import dicom_capture, dicom_map
from serving.sniff import InputError

MODEL = {"name": "ctfoundry-head", "digest": "3f2a" * 16}
TOLD = {"part": "findings/ich", "of_class": "present", "way": "occlusion", "blocks": [6, 6, 6], "point_mm": None}


class Scanned:
    """A series on the disk, as a volume, and a map that is highest at one voxel of it."""

    def __init__(self, folder: Path) -> None:
        self.images: list[pydicom.Dataset] = scanned(folder).items
        for image in self.images:
            image.FrameOfReferenceUID = image.get("FrameOfReferenceUID") or "1.2.5"
        self.volume: Volume = read_series(sorted(folder.rglob("*.dcm")) or sorted(folder.rglob("*")), False)
        self.values = np.random.default_rng(2).normal(0, 0.1, self.volume.hu.shape).astype(np.float32)
        self.peak = tuple(n // 3 for n in self.volume.hu.shape)
        self.values[self.peak] = 3.0

    def map(self, **told: Any) -> bytes:
        return dicom_map(self.images, self.values, self.volume.affine, {**TOLD, **told}, MODEL)

    def capture(self, **told: Any) -> bytes:
        volume = self.volume
        return dicom_capture(self.images, self.values, volume.hu, volume.affine, {**TOLD, **told}, MODEL)


@pytest.fixture
def scan(tmp_path: Path) -> Scanned:
    return Scanned(tmp_path / "scan")


def read(content: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(content))


def test_every_value_lies_where_it_is_in_the_scan(scan: Scanned) -> None:
    made = read(scan.map())
    assert (made.StudyInstanceUID, made.PatientID) == (scan.images[0].StudyInstanceUID, scan.images[0].PatientID)
    frames: npt.NDArray[np.float32] = made.pixel_array
    assert frames.dtype == np.float32
    frame, row, column = np.unravel_index(frames.argmax(), frames.shape)
    place = made.PerFrameFunctionalGroupsSequence[int(frame)].PlanePositionSequence[0].ImagePositionPatient
    shared = made.SharedFunctionalGroupsSequence[0]
    along_row, along_column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    spacing = [float(mm) for mm in shared.PixelMeasuresSequence[0].PixelSpacing]
    lps = np.array(place, float) + along_row * spacing[1] * int(column) + along_column * spacing[0] * int(row)
    ras = (scan.volume.affine @ [*scan.peak, 1.0])[:3]
    np.testing.assert_allclose(lps * [-1, -1, 1], ras, atol=1e-3)
    assert sorted(frames.ravel()) == pytest.approx(sorted(scan.values.ravel()))


def test_the_picture_is_of_the_slice_with_the_highest_value(scan: Scanned) -> None:
    made = read(scan.capture())
    pixels: npt.NDArray[np.uint8] = made.pixel_array
    assert pixels.shape == (scan.images[0].Rows, scan.images[0].Columns, 3)
    assert made.StudyInstanceUID == scan.images[0].StudyInstanceUID
    colour = np.ptp(pixels.astype(int), axis=2)
    lps = (scan.volume.affine @ [*scan.peak, 1.0])[:3] * [-1, -1, 1]
    image = min(scan.images, key=lambda image: abs(float(image.ImagePositionPatient[2]) - lps[2]))
    spacing = [float(mm) for mm in image.PixelSpacing]
    row, column = np.unravel_index(colour.argmax(), colour.shape)
    assert row == pytest.approx((lps[1] - float(image.ImagePositionPatient[1])) / spacing[0], abs=0.01)
    assert column == pytest.approx((lps[0] - float(image.ImagePositionPatient[0])) / spacing[1], abs=0.01)
    assert list(made.PatientOrientation) == ["L", "P"]


def test_equal_maps_give_equal_bytes_and_other_questions_other_objects(scan: Scanned) -> None:
    for make in (scan.map, scan.capture):
        first = make()
        assert make() == first
        others = [{"of_class": "absent"}, {"way": "gradients"}, {"point_mm": (1.0, 2.0, 3.0)}]
        uids = {read(content).SOPInstanceUID for content in [first, *(make(**other) for other in others)]}
        assert len(uids) == 4
    assert read(scan.map()).SeriesInstanceUID != read(scan.capture()).SeriesInstanceUID


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian's dicom3tools) is not installed")
def test_an_independent_judge_finds_no_error(scan: Scanned, tmp_path: Path) -> None:
    for name, content in (("map", scan.map()), ("capture", scan.capture())):
        (tmp_path / name).write_bytes(content)
        said = subprocess.run(["dciodvfy", str(tmp_path / name)], capture_output=True, text=True, check=False)
        errors = [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]
        assert errors == [], name


def test_an_image_without_a_frame_of_reference_has_no_map_and_a_picture(scan: Scanned) -> None:
    for image in scan.images:
        del image.FrameOfReferenceUID
    with pytest.raises(InputError, match="no FrameOfReferenceUID"):
        scan.map()
    assert read(scan.capture()).Modality == "OT"
