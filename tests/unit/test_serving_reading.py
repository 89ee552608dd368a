"""What is sent to the service is read as training reads it, and refused by its own limits before it is unpacked."""

from __future__ import annotations

import gzip
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from phantom_plans import small
from pydicom import Dataset

from components.ct.dicom import read_series
from components.ct.headers import measure_series, read_instance
from components.screen.config import ScreenConfig
from components.screen.suite import headers_suite
from components.settings import load_stage
from components.sources.phantom.scanner import scan
from serving.judging import warnings_of
from serving.limits import Limits
from serving.reading import Reading, read_upload
from serving.sniff import InputError, kind_of

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
SHAPE = (20, 16, 12)
OFFSET = 352  # of the voxels in a NIfTI-1 file
DEFLATE64 = 9


def nifti(path: Path, dtype: type = np.int16, codes: tuple[int, int] = (1, 0)) -> Path:
    """A volume of zeros at ``path``; ``codes``: of sform and qform."""
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    image = nib.Nifti1Image(np.zeros(SHAPE, dtype), affine)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    image.header.set_xyzt_units("mm")
    path.write_bytes(gzip.compress(image.to_bytes(), 9) if path.suffix == ".gz" else image.to_bytes())
    return path


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii"])
@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_a_nifti_of_too_many_bytes_is_refused_by_its_header(name: str, dtype: type, tmp_path: Path) -> None:
    """However little it is packed to: what counts is what it holds."""
    path = nifti(tmp_path / name, dtype)
    size = OFFSET + int(np.prod(SHAPE)) * np.dtype(dtype).itemsize
    assert path.stat().st_size < 1000 or not name.endswith(".gz")
    for allowed in (1000, size - 1):
        with pytest.raises(InputError) as refused:
            read_upload(path, kind_of(path), Limits(unpacked_bytes=allowed))
        assert str(refused.value) == f"NIfTI of {size} bytes unpacked is too large: at most {allowed}"
        assert refused.value.status == 413
    assert read_upload(path, kind_of(path), Limits(unpacked_bytes=size)).volume.hu.size == np.prod(SHAPE)


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii"])
def test_a_nifti_that_does_not_say_where_it_lies_is_refused(name: str, tmp_path: Path) -> None:
    path = nifti(tmp_path / name, codes=(0, 0))
    with pytest.raises(InputError, match=r"^NIfTI: .*states no orientation") as refused:
        read_upload(path, kind_of(path), Limits())
    assert refused.value.status == 422
    assert str(tmp_path) not in str(refused.value)
    assert read_upload(nifti(tmp_path / name, codes=(0, 1)), kind_of(path), Limits()).volume.hu.shape == SHAPE[::-1]


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slices")
    scan(replace(small("trunk"), slices=6, matrix=32, pixel_mm=12.0), folder)
    return sorted(folder.glob("*.dcm"))


def archive(paths: list[Path], target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as written:
        for path in paths:
            written.write(path, path.name)
    return target


def changed(paths: list[Path], folder: Path, change: Callable[[Dataset], None]) -> list[Path]:
    """Copies of slices under another header."""
    folder.mkdir()
    for path in paths:
        item = pydicom.dcmread(path)
        change(item)
        item.save_as(folder / path.name)
    return sorted(folder.iterdir())


def rescale(slope: str | None, intercept: str | None) -> Callable[[Dataset], None]:
    """Sets both; None leaves one out."""

    def change(item: Dataset) -> None:
        for keyword, value in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
            if value is None:
                delattr(item, keyword)
            else:
                setattr(item, keyword, value)

    return change


def told(reading: Reading) -> list[str]:
    suite = headers_suite(load_stage(ScreenConfig, "wholebody", "screen", PARAMS), rows=1)
    return [text.partition(":")[0] for text in warnings_of(reading.measurements, suite)]


@pytest.mark.parametrize(
    ("slope", "intercept", "read_as"),
    [(None, None, ("1", "0")), ("2", None, ("2", "0")), ("1", None, ("1", "0")), (None, "-1024", ("1", "-1024"))],
    ids=["without both", "slope only 2", "slope only 1", "intercept only"],
)
def test_what_is_missing_of_the_rescaling_is_its_neutral_value_and_told(
    slices: list[Path], slope: str | None, intercept: str | None, read_as: tuple[str, str], tmp_path: Path
) -> None:
    """As SimpleITK and dcm2niix read it. Training rejects the series by ``rescale``, the service warns of the same."""
    paths = changed(slices, tmp_path / "odd", rescale(slope, intercept))
    stated = changed(slices, tmp_path / "stated", rescale(*read_as))
    odd = read_upload(archive(paths, tmp_path / "odd.zip"), "zip", Limits())
    plain = read_upload(archive(stated, tmp_path / "stated.zip"), "zip", Limits())
    np.testing.assert_array_equal(odd.volume.hu, plain.volume.hu)
    np.testing.assert_array_equal(odd.volume.hu, read_series(paths).hu)
    stored = read_series(changed(slices, tmp_path / "stored", rescale("1", "0"))).hu
    np.testing.assert_array_equal(odd.volume.hu, stored * int(read_as[0]) + int(read_as[1]))
    assert (odd.measurements["rescale_missing"], plain.measurements["rescale_missing"]) == (6, 0)
    assert "rescale" in told(odd)
    assert "rescale" not in told(plain)
    instances = []
    for path in paths:
        with path.open("rb") as stream:
            instances.append(read_instance(stream, path.name, path.stat().st_size))
    assert measure_series(instances)["rescale_missing"] == 6, "training judges by the same figure"


def test_a_zip_packed_by_windows_is_named_and_not_called_damaged(slices: list[Path], tmp_path: Path) -> None:
    """Python cannot pack Deflate64; stored members whose headers say so are refused at the same place."""
    path = archive(slices, tmp_path / "study.zip")
    content = bytearray(path.read_bytes())
    for magic, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = content.find(magic)
        while at >= 0:
            content[at + place : at + place + 2] = struct.pack("<H", DEFLATE64)
            at = content.find(magic, at + 4)
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"Deflate64, as Windows does.*pack the archive again") as refused:
        read_upload(path, kind_of(path), Limits())
    assert refused.value.status == 422
    assert "damaged" not in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_voxels_that_are_no_numbers_are_told_of_what_was_sent(tmp_path: Path) -> None:
    """Not of a file's name: the sender's is not known here, and ours means nothing to them."""
    hu = np.zeros(SHAPE, np.float32)
    hu[3, 4, 5] = np.nan
    path = tmp_path / "000000-mine.bin"
    path.write_bytes(gzip.compress(nib.Nifti1Image(hu, np.diag([3.0, 3.0, 3.0, 1.0])).to_bytes()))
    with pytest.raises(InputError, match=r"^NIfTI: voxels that are NaN or infinite are not allowed"):
        read_upload(path, kind_of(path), Limits())


def test_several_scans_in_one_field_are_told_as_such(slices: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "several"
    folder.mkdir()
    for number in range(2):
        with zipfile.ZipFile(folder / f"{number:06d}-series.zip", "w") as archive:
            for path in slices:
                archive.write(path, path.name)
    nifti(folder / "000002-volume.nii")
    with pytest.raises(InputError, match=r"^files: 2 zip, 1 nii, each a scan of its own: send one of them, or the"):
        read_upload(folder, kind_of(folder), Limits())
    for path in slices:
        (folder / f"1-{path.name}").write_bytes(path.read_bytes())
    reading = read_upload(folder, kind_of(folder), Limits())
    assert (reading.instances, reading.ignored["archive_within_archive"]) == (len(slices), 2)
