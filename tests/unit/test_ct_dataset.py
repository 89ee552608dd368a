"""Deflated files cost no more memory than their header and matrix; files without meta information are read as what
their bytes are; what is no image is no slice."""

from __future__ import annotations

import errno
import io
import os
import resource
import shutil
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pydicom
import pytest
from phantom_plans import small
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
)

from components.ct.copies import copies
from components.ct.dataset import InflateLimitError, inflated_dataset
from components.ct.dicom import DecodeError, read_series
from components.ct.headers import measure_series, read_instance, read_with_pydicom
from components.ct.instance import Instance
from components.ct.store import Volume
from components.files import NO_ROOM
from components.sources.phantom.scanner import scan
from serving import reading
from serving.limits import Limits
from serving.reading import Reading, read_upload
from serving.sniff import InputError

MIB = 2**20
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slices")
    scan(replace(small("trunk"), slices=6, matrix=32, pixel_mm=12.0), folder)
    return sorted(folder.glob("*.dcm"))


@pytest.fixture(scope="module")
def ordinary(slices: list[Path]) -> Volume:
    return read_series(slices)


def read(content: bytes, **options: Any) -> Instance:
    return read_instance(io.BytesIO(content), "a", len(content), **options)


def encoded(dataset: Dataset, **options: Any) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, **options)
    return buffer.getvalue()


def deflated(path: Path, megabytes: int = 0, before: bool = False) -> bytes:
    """The file deflated, with so many MiB of zeros in a private element ``before`` the pixels, or in padding behind."""
    content = path.read_bytes()
    begin = 144 + int.from_bytes(content[140:144], "little")
    plain, pixels = content[begin:], content[begin:].index(b"\xe0\x7f\x10\0OW")
    tag = (0x7FDF, 0x1001) if before else (0xFFFC, 0xFFFC)
    extra = struct.pack("<HH2sHL", *tag, b"OB", 0, megabytes * MIB)
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    parts = [plain[:pixels], extra, plain[pixels:]] if before else [plain, extra]
    packed = b""
    for part in parts if megabytes else [plain]:
        packed += engine.compress(part)
        packed += b"".join(engine.compress(bytes(MIB)) for _ in range(megabytes)) if part is extra else b""
    meta = pydicom.dcmread(path).file_meta
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head = io.BytesIO()
    pydicom.filewriter.write_file_meta_info(head, meta)
    return bytes(128) + b"DICM" + head.getvalue() + packed + engine.flush()


def peak(function: Callable[[], Any]) -> int:
    """Bytes that a call takes, at most."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_deflated_is_read_as_what_it_holds(slices: list[Path], ordinary: Volume, tmp_path: Path) -> None:
    for path in slices:
        (tmp_path / path.name).write_bytes(deflated(path))
    found, plain = read(deflated(slices[0])), read(slices[0].read_bytes())
    assert (found.status, found.truncated, found.tags) == ("image", False, plain.tags)
    assert (found.transfer_syntax, found.unpacked > found.bytes) == (DeflatedExplicitVRLittleEndian, True)
    np.testing.assert_array_equal(read_series(sorted(tmp_path.iterdir())).hu, ordinary.hu)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("listing", [True, False])
def test_a_deflated_bomb_is_refused(slices: list[Path], listing: bool, before: bool) -> None:
    bomb = deflated(slices[0], 120, before)
    assert len(bomb) < MIB
    for reader in (read_instance, read_with_pydicom):
        found: list[Instance] = []
        used = peak(partial(_keep, found, reader, io.BytesIO(bomb), "a", len(bomb), listing, 80 * MIB))
        assert used < 100 * MIB, "the header's share is 64"
        detail = f"deflated data of more than {80 * MIB} bytes are not allowed"
        assert (found[0].status, found[0].too_large, found[0].detail) == ("unreadable", True, detail)


def _keep(found: list[Instance], reader: Callable[..., Instance], *arguments: Any) -> None:
    found.append(reader(*arguments))


def test_behind_the_pixels_nothing_is_inflated_to_memory(slices: list[Path], tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(deflated(slices[0], 120))
    assert peak(lambda: read_series([tmp_path / "a.dcm"])) < 100 * MIB
    (tmp_path / "a.dcm").write_bytes(deflated(slices[0], 70, before=True))
    with pytest.raises(DecodeError, match=r"^a\.dcm: "):  # its header is longer than any header is
        read_series([tmp_path / "a.dcm"])


def test_the_services_limit_counts_what_is_inflated(slices: list[Path], tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for number, path in enumerate(slices):
            target.writestr(f"{number}.dcm", deflated(path, 2))
    assert read_upload(archive, "zip", Limits(unpacked_bytes=20 * MIB)).instances == 6
    with pytest.raises(InputError, match=r"^5\.dcm: deflated data of more than \d+ bytes are not allowed$") as refused:
        read_upload(archive, "zip", Limits(unpacked_bytes=11 * MIB))
    assert refused.value.status == 413


def test_labels_are_inflated_within_bounds(slices: list[Path], tmp_path: Path) -> None:
    whole = inflated_dataset_of(deflated(slices[0]), tmp_path)
    assert all(whole[e.tag] == e for e in pydicom.dcmread(slices[0]))
    with pytest.raises(InflateLimitError, match="deflated data of more than"):
        inflated_dataset_of(deflated(slices[0], 120), tmp_path, inflated_bytes=20 * MIB)
    (tmp_path / "plain.dcm").write_bytes(slices[0].read_bytes())
    assert inflated_dataset(tmp_path / "plain.dcm", force=False) is None


def inflated_dataset_of(content: bytes, folder: Path, **options: Any) -> Dataset:
    (folder / "deflated.dcm").write_bytes(content)
    found = inflated_dataset(folder / "deflated.dcm", force=False, **options)
    assert found is not None
    return found


@pytest.mark.parametrize("cut", [30, 4000])
def test_deflated_data_cut_short(slices: list[Path], cut: int, tmp_path: Path) -> None:
    content = deflated(slices[0])
    content = content[: max(400, len(content) - cut)]
    assert (read(content).status, read(content).detail) == ("unreadable", "deflated data are cut short")
    (tmp_path / "a.dcm").write_bytes(content)
    with pytest.raises(DecodeError, match=r"^a\.dcm: deflated data are cut short$"):
        read_series([tmp_path / "a.dcm"])


def bare(dataset: Dataset, implicit: bool, little: bool) -> bytes:
    alone = Dataset()
    alone.update({element.tag: element for element in dataset})
    if not little:
        alone.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    return encoded(alone, implicit_vr=implicit, little_endian=little, enforce_file_format=False)


def without_syntax(dataset: Dataset) -> bytes:
    content = encoded(dataset, enforce_file_format=True)
    at = content.index(b"\2\0\x10\0UI")
    end = at + 8 + int.from_bytes(content[at + 6 : at + 8], "little")
    length = int.from_bytes(content[140:144], "little") - (end - at)
    return content[:140] + length.to_bytes(4, "little") + content[144:at] + content[end:]


WRITERS: dict[str, Callable[[Dataset], bytes]] = {
    "1.2.840.10008.1.2": lambda dataset: bare(dataset, True, True),
    "1.2.840.10008.1.2.1": lambda dataset: bare(dataset, False, True),
    "1.2.840.10008.1.2.2": lambda dataset: bare(dataset, False, False),
    "": without_syntax,
}


@pytest.mark.parametrize("syntax", sorted(WRITERS))
def test_files_that_state_no_transfer_syntax(slices: list[Path], ordinary: Volume, syntax: str, tmp_path: Path) -> None:
    """In training as in the service."""
    for path in slices:
        (tmp_path / path.name).write_bytes(WRITERS[syntax](pydicom.dcmread(path)))
    found = read((tmp_path / slices[0].name).read_bytes())
    expected = syntax or str(pydicom.dcmread(slices[0]).file_meta.TransferSyntaxUID)
    assert (found.status, found.truncated, found.transfer_syntax) == ("image", False, expected)
    assert found.tags == read(slices[0].read_bytes()).tags
    volume = read_series(sorted(tmp_path.glob("*.dcm")))
    np.testing.assert_array_equal(volume.hu, ordinary.hu)
    np.testing.assert_allclose(volume.affine, ordinary.affine)
    np.testing.assert_array_equal(served(sorted(tmp_path.glob("*.dcm")), tmp_path).volume.hu, ordinary.hu)


def test_compressed_pixels_of_no_stated_kind_are_refused(slices: list[Path], tmp_path: Path) -> None:
    dataset = pydicom.dcmread(slices[0])
    dataset.PixelData = encapsulate([bytes(100)])
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    (tmp_path / "a.dcm").write_bytes(bare(dataset, False, True))
    assert read((tmp_path / "a.dcm").read_bytes()).transfer_syntax == ""
    with pytest.raises(DecodeError, match=r"^a\.dcm: pixels do not decode"):
        read_series([tmp_path / "a.dcm"])


def served(paths: list[Path], folder: Path) -> Reading:
    archive = folder / "upload.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in paths:
            target.write(path, f"{path.parent.name}/{path.name}")
    return read_upload(archive, "zip", Limits())


def beside(path: Path, sop_class: str) -> Dataset:
    """An object without an image under the slices' series UID."""
    first, made = pydicom.dcmread(path), Dataset()
    for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality"):
        setattr(made, keyword, first[keyword].value)
    made.SOPClassUID, made.SOPInstanceUID, made.file_meta = sop_class, "1.2.3.4", first.file_meta
    made.file_meta.MediaStorageSOPClassUID = sop_class
    return made


@pytest.mark.parametrize("sop_class", [RTStructureSetStorage, GrayscaleSoftcopyPresentationStateStorage])
def test_an_object_under_the_series_uid_is_no_slice(
    slices: list[Path], ordinary: Volume, sop_class: str, tmp_path: Path
) -> None:
    paths = [Path(shutil.copy(path, tmp_path)) for path in slices]
    (tmp_path / "object.dcm").write_bytes(encoded(beside(slices[0], sop_class)))
    paths.append(tmp_path / "object.dcm")
    measured = measure_series([read(path.read_bytes()) for path in paths])
    alone = measure_series([read(path.read_bytes()) for path in slices])
    assert (measured.pop("no_image"), alone.pop("no_image")) == (1, 0)
    assert measured.pop("sop_class") == "|".join(sorted([sop_class, alone.pop("sop_class")]))
    np.testing.assert_equal(measured, alone)
    np.testing.assert_array_equal(read_series(paths).hu, ordinary.hu)
    reading = served(paths, tmp_path)
    assert (reading.ignored, reading.instances) == ({"no_image": 1}, 6)
    with pytest.raises(DecodeError, match="none of its 1 files holds an image"):
        read_series(paths[-1:])


def test_a_file_cut_inside_its_header_is_no_object(slices: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cut.dcm").write_bytes(slices[0].read_bytes()[:600])
    with pytest.raises(DecodeError, match=r"^cut\.dcm: "):
        read_series([*slices, tmp_path / "cut.dcm"])


def test_the_service_drops_copies_as_training_does(slices: list[Path], ordinary: Volume, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    twice = [Path(shutil.copy(path, tmp_path / "copy")) for path in slices]
    reading = served([*slices, *twice], tmp_path)
    assert (reading.ignored, reading.instances) == ({"duplicate": 6}, 6)
    np.testing.assert_array_equal(reading.volume.hu, ordinary.hu)
    np.testing.assert_allclose(reading.volume.affine, ordinary.affine)


def test_twins_that_contradict_each_other_stay(slices: list[Path], tmp_path: Path) -> None:
    """One SOPInstanceUID, other pixels: nobody knows which is right, so the warning must come."""
    twin = pydicom.dcmread(slices[0])
    twin.PixelData = twin.PixelData[2:] + twin.PixelData[:2]
    (tmp_path / "a").write_bytes(encoded(pydicom.dcmread(slices[0])))
    (tmp_path / "b").write_bytes(encoded(twin))
    shutil.copy(tmp_path / "a", tmp_path / "c")
    files = {path.name: path for path in tmp_path.iterdir()}
    instances = [read_instance(io.BytesIO(p.read_bytes()), name, p.stat().st_size) for name, p in files.items()]
    assert len({instance.bytes for instance in instances}) == 1
    assert copies(instances, files) == {"c"}


def test_a_dose_page_is_named_for_what_it_is(slices: list[Path], tmp_path: Path) -> None:
    page = pydicom.dcmread(slices[0])
    page.SOPClassUID, page.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3.4.6"
    (tmp_path / "page.dcm").write_bytes(encoded(page))
    with pytest.raises(InputError, match=r"1 of the 7 images of its CT series are no CT"):
        served([*slices, tmp_path / "page.dcm"], tmp_path)
    with pytest.raises(InputError, match=r"no CT series in it \(1 not_ct\)"):
        served([tmp_path / "page.dcm"], tmp_path)


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_full_disk_of_the_services_is_no_fault_of_the_file(slices: list[Path], tmp_path: Path, packing: int) -> None:
    """Its sender would be told to send it again, and the service's owner nothing."""
    with zipfile.ZipFile(tmp_path / "upload.zip", "w", packing) as archive:
        for path in slices:
            archive.write(path, path.name)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # as a disk without room, for this process alone
    try:
        with pytest.raises(OSError) as told:
            read_upload(tmp_path / "upload.zip", "zip", Limits())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert told.value.errno in NO_ROOM


def test_a_disk_that_is_full_while_pixels_are_decoded_is_no_fault_of_the_file(
    slices: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, kept in ((errno.ENOSPC, True), (errno.EIO, False)):
        error = OSError(number, os.strerror(number))
        monkeypatch.setattr(reading, "read_series", Mock(side_effect=error))
        with pytest.raises(OSError if kept else InputError):
            served(slices, tmp_path)
