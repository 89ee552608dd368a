"""NIfTI voxels: nibabel's values, in a fraction of its memory; a header that makes no sense is one line."""

from __future__ import annotations

import gzip
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.ct import nifti
from components.ct.nifti import measure_nifti, read_nifti
from components.errors import UserError

KINDS: dict[int, Any] = {1: nib.Nifti1Image, 2: nib.Nifti2Image}
FIELDS = {
    number: {name: kind.header_class.template_dtype[name] for name in kind.header_class.template_dtype.names}
    for number, kind in KINDS.items()
}
BYTES = st.sampled_from([b"\0", b"\x01", b"\x7f", b"\x80", b"\xff"]) | st.binary(min_size=1, max_size=1)


def content_of(data: np.ndarray[Any, Any], slope: float = 0.0, intercept: float = 0.0, kind: int = 1) -> bytes:
    """A NIfTI of these very stored values, whatever its scaling says."""
    image = KINDS[kind](data, np.diag([1.0, 1.0, 3.0, 1.0]))
    header = image.header.copy()
    whole = bytearray(image.to_bytes())
    start = len(whole) - data.nbytes
    if slope:
        header["scl_slope"], header["scl_inter"] = slope, intercept
        header["magic"], header["vox_offset"] = ("n+1", start) if kind == 1 else ("n+2", start)
        whole[: len(header.binaryblock)] = header.binaryblock
    whole[start:] = data.tobytes(order="F")
    return bytes(whole)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("slope", "intercept"), [(0.0, 0.0), (0.5, -1024.3), (1.0, -1024.0)])
@pytest.mark.parametrize("kind", ["<i2", ">i2", "<u2", "<i4", "<f4", "<f8", "u1"])
def test_slabs_are_nibabels_values(
    kind: str, slope: float, intercept: float, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti, "SLAB_VOXELS", 7 * 9 * 4)  # 11 slices: slabs of four, and one of three
    rng = np.random.default_rng(3)
    stored = np.clip(rng.normal(100, 2e4, (7, 9, 11)), 0 if "u" in kind else -32768, 255 if kind == "u1" else 32767)
    content = content_of(stored.astype(kind), slope, intercept)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    image: Any = nib.load(path)
    expected = np.clip(np.rint(np.asanyarray(image.dataobj)), -32768, 32767).astype(np.int16)
    np.testing.assert_array_equal(read_nifti(path).hu, expected.transpose(2, 1, 0))


def test_floats_take_no_more_memory_than_their_hu_and_a_slab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As float64, 24 bytes a voxel, the default limits of the service would need more than an 8 GB machine has."""
    monkeypatch.setattr(nifti, "SLAB_VOXELS", 2**16)
    path = tmp_path / "a.nii"
    path.write_bytes(content_of(np.ones((128, 128, 128))))
    tracemalloc.start()
    volume = read_nifti(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * volume.hu.nbytes


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4, 2), (4, 4, 4, 1, 3)])
def test_other_than_one_volume_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(content_of(np.zeros(shape, np.int16)))
    with pytest.raises(UserError, match=r"a\.nii: NIfTI of shape .* is not allowed: one volume with three axes"):
        read_nifti(path)


def test_a_trailing_axis_of_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(content_of(np.arange(24, dtype=np.int16).reshape(2, 3, 4, 1)))
    assert read_nifti(path).hu[3, 2, 1] == 23


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    data = np.zeros((3, 3, 5), np.float32)
    data[1, 1, 4] = value
    path = tmp_path / "a.nii"
    path.write_bytes(content_of(data))
    with pytest.raises(UserError, match="voxels that are NaN or infinite are not allowed"):
        read_nifti(path)


def test_a_header_that_promises_more_than_the_file_holds_takes_no_memory(tmp_path: Path) -> None:
    content = bytearray(content_of(np.zeros((4, 4, 4), np.int16)))
    content[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    path = tmp_path / "a.nii"
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"a\.nii: a NIfTI of 480 bytes is not allowed: its header needs 54000000000352"
    ):
        read_nifti(path)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_any_header_is_a_volume_or_one_line(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([1, 2]))
    content = bytearray(content_of(np.zeros((5, 6, 7), np.int16), kind=kind))
    for name in data.draw(st.lists(st.sampled_from(sorted(FIELDS[kind])), min_size=1, max_size=3)):
        start = KINDS[kind].header_class.template_dtype.fields[name][1]
        for at in range(start, start + FIELDS[kind][name].itemsize):
            if data.draw(st.booleans()):
                content[at : at + 1] = data.draw(BYTES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.nii"
        path.write_bytes(content)
        for said in (said_by(read, path) for read in (read_nifti, measure_nifti)):
            assert len(said.splitlines()) <= 1, content.hex()
            assert folder not in said, content.hex()


def said_by(read: Callable[[Path], object], path: Path) -> str:
    """The words of its UserError; no other error may come."""
    try:
        read(path)
    except UserError as error:
        return str(error)
    return ""
