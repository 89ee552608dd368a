"""A label map as DICOM SEG: on the scan voxel by voxel, whoever reads it; the same bytes for the same input."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import time
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from label_files import Scan, three_scans
from pydicom.sr.codedict import codes
from test_ct_frames import enhanced, written

from components.ct.dicom import read_series
from components.ct.labels.onto_grid import read_labels
from components.ct.store import Volume
from serving.dicom_seg import SCHEME, concept_of, dicom_seg
from serving.sniff import InputError

STRUCTURES = {1: "liver", 2: "lung_left", 3: "nowhere", 7: "my own thing"}
MODEL = {"name": "ctfoundry-wholebody", "digest": "0123456789abcdef" * 4}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scan]:
    return three_scans(tmp_path_factory.mktemp("scans"))


def labels_of(volume: Volume) -> np.ndarray:
    labels = np.zeros(volume.hu.shape, np.uint8)
    labels[5:15, 20:60, 30:50] = 1
    labels[8:12, 5:25, 10:20] = 2
    labels[0, 0, 0] = 7
    return labels


def headers(scan: Scan, seed: int = 5) -> list[pydicom.Dataset]:
    """As the service has them: without pixels, in the order of the archive."""
    items = []
    for item in scan.items:
        held = io.BytesIO()
        item.save_as(held, enforce_file_format=True)
        held.seek(0)
        items.append(pydicom.dcmread(held, stop_before_pixels=True))
    random.Random(seed).shuffle(items)
    return items


def made(images: list[pydicom.Dataset], volume: Volume, **changes: object) -> bytes:
    given = {"structures": STRUCTURES, "part": "organs", "model": MODEL} | changes
    return dicom_seg(images, labels_of(volume), volume.affine, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["even", "tilted", "uneven"])
def test_every_segment_lies_where_its_labels_do(scans: dict[str, Scan], name: str, tmp_path: Path) -> None:
    scan = scans[name]
    path = tmp_path / "seg.dcm"
    path.write_bytes(made(headers(scan), scan.volume))
    labels = labels_of(scan.volume)
    ours = read_labels(path, scan.volume.affine, scan.volume.hu.shape)
    assert [(s.name, s.voxels) for s in ours.segments if s.voxels] == [
        ("liver", 8000), ("lung_left", 800), ("my own thing", 1),
    ]  # fmt: skip
    for value, structure in STRUCTURES.items():
        if value != 3:
            np.testing.assert_array_equal(ours.mask(structure), labels == value)
    # Another reader: of each image, by the UID that the frames refer to.
    seg = hd.seg.segread(path)
    assert [seg.get_segment_description(n).segment_label for n in seg.segment_numbers] == list(STRUCTURES.values())
    uids = [str(item.SOPInstanceUID) for item in scan.items]
    frames = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True, combine_segments=False)
    for item, of_image in zip(scan.items, frames, strict=True):
        index = np.linalg.solve(scan.volume.affine, [*np.array(item.ImagePositionPatient) * [-1, -1, 1], 1.0])[:3]
        plane = labels[round(index[0])]
        for number, value in enumerate(STRUCTURES):
            np.testing.assert_array_equal(of_image[..., number], plane == value)


def test_a_toolkit_that_judges_dicom_finds_no_error(scans: dict[str, Scan], tmp_path: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    path = tmp_path / "seg.dcm"
    path.write_bytes(made(headers(scans["even"]), scans["even"].volume))
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    assert "Error" not in done.stderr + done.stdout, done.stderr
    assert "Segmentation" in done.stderr + done.stdout


def test_it_is_of_the_scans_study_and_says_what_made_it(scans: dict[str, Scan]) -> None:
    scan = scans["even"]
    seg = pydicom.dcmread(io.BytesIO(made(headers(scan), scan.volume)))
    image = scan.items[0]
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "StudyDate"):
        assert seg[keyword].value == image[keyword].value
    assert seg.SeriesInstanceUID != image.SeriesInstanceUID
    assert seg.SoftwareVersions == MODEL["digest"]
    assert seg.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"


def test_images_with_a_frame_of_reference_each_have_one_segmentation(scans: dict[str, Scan], tmp_path: Path) -> None:
    """As LIDC-IDRI's have: each was given another UID on its way out of the hospital."""
    scan = scans["even"]

    def apart(seed: int) -> list[pydicom.Dataset]:
        images = headers(scan, seed)
        for image in images:
            image.FrameOfReferenceUID = f"1.2.3.{round(float(image.ImagePositionPatient[2]) * 10) + 90000}"
        return images

    content = made(apart(5), scan.volume)
    assert content == made(apart(6), scan.volume)
    assert str(pydicom.dcmread(io.BytesIO(content)).FrameOfReferenceUID) in {i.FrameOfReferenceUID for i in apart(1)}
    (tmp_path / "seg.dcm").write_bytes(content)
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    uids = [str(item.SOPInstanceUID) for item in scan.items]
    frames = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True, combine_segments=False)
    assert int(frames[..., 0].sum()) == int((labels_of(scan.volume) == 1).sum())


def test_equal_input_gives_equal_bytes_and_another_model_another_object(scans: dict[str, Scan]) -> None:
    scan = scans["even"]
    first = made(headers(scan), scan.volume)
    time.sleep(1.1)  # DICOM's times are whole seconds
    assert made(headers(scan, seed=6), scan.volume) == first
    read = [
        pydicom.dcmread(io.BytesIO(content))
        for content in (
            first,
            made(headers(scan), scan.volume, model=MODEL | {"digest": "f" * 64}),
            made(headers(scan), scan.volume, part="lesions"),
            made(headers(scan)[:-1], scan.volume),  # before its last image came
        )
    ]
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert len({str(seg[keyword].value) for seg in read}) == 4


def test_frames_of_an_enhanced_ct_have_theirs(scans: dict[str, Scan], tmp_path: Path) -> None:
    folder = tmp_path / "slices"
    folder.mkdir()
    for number, item in enumerate(scans["even"].items):
        item.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)
    multi = written(enhanced(sorted(folder.iterdir())), tmp_path / "enhanced.dcm")
    volume = read_series([multi])
    path = tmp_path / "seg.dcm"
    path.write_bytes(made([pydicom.dcmread(multi, stop_before_pixels=True)], volume))
    found = read_labels(path, volume.affine, volume.hu.shape)
    np.testing.assert_array_equal(found.mask("liver"), labels_of(volume) == 1)


def test_images_outside_of_the_volume_have_no_labels(scans: dict[str, Scan]) -> None:
    """Of a series with two stacks the larger is the volume."""
    scan = scans["even"]
    images = headers(scan)
    away = pydicom.dcmread(io.BytesIO(saved_bytes(images[0])))
    away.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["away"])
    away.ImagePositionPatient = [float(mm) + 1000 * (axis == 2) for axis, mm in enumerate(away.ImagePositionPatient)]
    seg = pydicom.dcmread(io.BytesIO(made([away, *images], scan.volume)))
    assert str(away.SOPInstanceUID) not in str(seg)
    assert seg.NumberOfFrames == 15


def saved_bytes(item: pydicom.Dataset) -> bytes:
    held = io.BytesIO()
    item.save_as(held, enforce_file_format=True)
    return held.getvalue()


def test_what_cannot_be_stored_is_one_line(scans: dict[str, Scan], tmp_path: Path) -> None:
    scan = scans["even"]
    images = headers(scan)
    with pytest.raises(InputError, match="none of the release's structures was found"):
        dicom_seg(images, np.zeros(scan.volume.hu.shape, np.uint8), scan.volume.affine, STRUCTURES, "organs", MODEL)
    moved = scan.volume.affine.copy()
    moved[:3, 3] += 0.4 * moved[:3, 0]
    with pytest.raises(InputError, match=r"image 1 of 24 lies between the planes of the volume.*ask for NIfTI"):
        made(images, Volume(scan.volume.hu, moved))
    bare = headers(scan)
    del bare[3].FrameOfReferenceUID
    bare[3].SOPClassUID = ""
    with pytest.raises(InputError, match="an image of the scan has no SOPClassUID, FrameOfReferenceUID"):
        made(bare, scan.volume)


def test_identifiers_that_many_scans_do_without_may_be_missing(scans: dict[str, Scan]) -> None:
    images = headers(scans["even"])
    for image in images:
        for keyword in ("PatientID", "PatientName", "StudyID", "AccessionNumber", "PatientSex", "StudyTime"):
            if keyword in image:
                delattr(image, keyword)
    assert pydicom.dcmread(io.BytesIO(made(images, scans["even"].volume))).PatientID == ""


@pytest.mark.parametrize(
    ("name", "concept", "side"),
    [
        ("liver", codes.SCT.Liver, None),
        ("lung_left", codes.SCT.Lung, codes.SCT.Left),
        ("right_kidney", codes.SCT.Kidney, codes.SCT.Right),
        ("kidneys", codes.SCT.Kidney, None),
        ("spinal_cord", codes.SCT.SpinalCord, None),
    ],
)
def test_structures_have_their_codes(name: str, concept: object, side: object) -> None:
    assert concept_of(name) == (concept, side)


@pytest.mark.parametrize("name", ["vertebrae_L5", "left", "a structure with quite a long name", "__class__", "dir"])
def test_what_has_no_code_has_one_of_ours(name: str) -> None:
    concept, side = concept_of(name)
    assert concept.scheme_designator == SCHEME
    assert concept.meaning == name
    assert len(concept.value) <= 16
    assert side is None
