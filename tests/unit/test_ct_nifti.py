"""NIfTI says where it lies, in whatever order of axes and unit of length, or it is refused; nothing is made up."""

from __future__ import annotations

import gzip
import itertools
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from components.ct import nifti
from components.ct.headers import measure_series
from components.ct.nifti import measure_nifti, read_nifti
from components.ct.standardise import resample_only
from components.ct.store import voxel_of
from components.errors import UserError
from components.preprocess.config import PreprocessConfig
from components.screen.config import ScreenConfig
from components.screen.suite import headers_suite
from components.settings import load_stage
from serving.judging import warnings_of

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
SHAPE, SPACING = (80, 72, 24), (1.5, 1.5, 4.0)  # columns, rows, slices
AFFINE = np.array([[-1.5, 0, 0, 60.0], [0, -1.5, 0, 55.0], [0, 0, 4.0, -300.0], [0, 0, 0, 1]])
PIXDIM, DIM, DATATYPE, VOX_OFFSET, UNITS = 80, 42, 70, 108, 123  # bytes of the NIfTI-1 header
METRE, MM, MICRON = 1, 2, 3


def scan() -> np.ndarray:
    """A body with a bright spot off its middle, of (columns, rows, slices)."""
    index = np.stack(np.indices(SHAPE), -1) * SPACING
    hu = np.full(SHAPE, -1000, np.int16)
    hu[np.linalg.norm(index - [60.0, 54.0, 48.0], axis=-1) < 45] = 40
    hu[np.linalg.norm(index - [70.0, 40.0, 60.0], axis=-1) < 8] = 900
    return hu


def written(
    path: Path, hu: np.ndarray, affine: np.ndarray, sform: int = 1, qform: int = 0, edit: dict[int, bytes] | None = None
) -> Path:
    """``edit``: bytes put over the header, which libraries would not write."""
    image = nib.Nifti1Image(hu, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine if qform else None, qform)
    image.header.set_xyzt_units("mm")
    content = bytearray(image.to_bytes())
    for at, value in (edit or {}).items():
        content[at : at + len(value)] = value
    path.write_bytes(gzip.compress(bytes(content), 1) if path.name.endswith(".gz") else bytes(content))
    return path


def reasons(path: Path, **changes: Any) -> list[str]:
    """Of the suite *headers*, as the source ``nifti`` is judged; the service's verdicts are Great Expectations'."""
    config = load_stage(ScreenConfig, "wholebody", "screen", PARAMS).model_copy(
        update={"privacy": "warning", **changes}
    )
    measured = {"status": "acquired", **measure_series([]), **measure_nifti(path)}
    return list(dict.fromkeys(w.partition(":")[0] for w in warnings_of(measured, headers_suite(config, 1))))


def test_an_ordinary_volume_is_accepted_and_lies_where_it_says(tmp_path: Path) -> None:
    path = written(tmp_path / "ct.nii.gz", scan(), AFFINE)
    assert reasons(path) == []
    volume = read_nifti(path)
    assert volume.spacing == (4.0, 1.5, 1.5)
    bright = np.argwhere(volume.hu == 900).mean(0) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    np.testing.assert_allclose(bright, [60 - 70, 55 - 40, -300 + 60], atol=0.5)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_slab_by_slab_is_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...]) -> None:
    monkeypatch.setattr(nifti, "SLAB_VOXELS", 5 * SHAPE[order[0]] * SHAPE[order[1]])
    hu = np.random.default_rng(0).integers(-1024, 3000, SHAPE).astype(np.int16)
    path = written(tmp_path / "ct.nii.gz", hu.transpose(order), AFFINE[:, [*order, 3]])
    np.testing.assert_array_equal(read_nifti(path).hu, hu.transpose(2, 1, 0))
    values, affine = nifti.read_values(path)
    np.testing.assert_array_equal(values, hu.transpose(2, 1, 0))
    np.testing.assert_array_equal(affine, read_nifti(path).affine)


@pytest.mark.parametrize(
    ("codes", "edit", "said"),
    [
        ((0, 0), {}, "states no orientation"),
        ((0, 0), {PIXDIM: struct.pack("<fff", 0, 0, 0)}, "states no orientation"),
        ((0, 1), {PIXDIM: struct.pack("<fff", 1.5, 1.5, 0)}, "states a voxel size of 0"),
        ((1, 0), {UNITS: b"\5"}, "a unit of length that NIfTI does not know"),
        ((1, 0), {280: struct.pack("<12f", *np.zeros(12))}, "not invertible"),
        ((1, 0), {280: struct.pack("<f", float("nan"))}, "not invertible"),
    ],
)
def test_what_does_not_say_where_it_lies_is_refused(
    tmp_path: Path, codes: tuple[int, int], edit: dict[int, bytes], said: str
) -> None:
    path = written(tmp_path / "ct.nii", scan(), AFFINE, *codes, edit=edit)
    with pytest.raises(UserError, match=said) as refused:
        read_nifti(path)
    assert str(tmp_path) not in str(refused.value)
    assert reasons(path) == ["missing_tags"], "training refuses it for the same"


def test_an_sform_alone_is_enough(tmp_path: Path) -> None:
    """It holds the voxel size too, whatever pixdim says."""
    path = written(tmp_path / "ct.nii", scan(), AFFINE, 1, 0, {PIXDIM: struct.pack("<fff", 0, 0, 0)})
    assert read_nifti(path).spacing == (4.0, 1.5, 1.5)
    assert reasons(path) == []


@pytest.mark.parametrize(
    "edit",
    [
        {DATATYPE: struct.pack("<h", 999)},
        {VOX_OFFSET: struct.pack("<f", -5)},
        {VOX_OFFSET: struct.pack("<f", float("nan"))},
        {DIM: struct.pack("<h", -16)},
        {DIM - 2: struct.pack("<h", 9)},
        {344: b"no!\0"},
    ],
)
def test_a_damaged_header_costs_its_series_one_line(tmp_path: Path, edit: dict[int, bytes]) -> None:
    path = written(tmp_path / "ct.nii", scan(), AFFINE, edit=edit)
    with pytest.raises(UserError, match=r"^ct\.nii: (not readable as NIfTI|NIfTI of shape)"):
        read_nifti(path)
    assert set(reasons(path)) & {"unreadable_files", "missing_tags"}


@pytest.mark.parametrize(("unit", "factor"), [(METRE, 1e-3), (MICRON, 1e3), (MM, 1.0), (0, 1.0)])
def test_lengths_are_in_the_stated_unit(tmp_path: Path, unit: int, factor: float) -> None:
    affine = np.diag([factor] * 3 + [1]) @ AFFINE
    path = written(tmp_path / "ct.nii", scan(), affine, edit={UNITS: bytes([unit])})
    volume = read_nifti(path)
    np.testing.assert_allclose(volume.affine, AFFINE[:, [2, 1, 0, 3]], rtol=1e-5)
    assert measure_nifti(path)["extent_mm"] == pytest.approx(92.0, abs=0.01)
    assert reasons(path) == []


@pytest.mark.parametrize("degrees", [10.0, -4.0])
def test_rows_askew_to_columns_are_refused_whatever_tilt_is_allowed(tmp_path: Path, degrees: float) -> None:
    shear = np.eye(4)
    shear[0, 1] = np.tan(np.radians(degrees))
    path = written(tmp_path / "ct.nii", scan(), AFFINE @ shear)
    for tilt in (1.0, 30.0):
        assert "orientation" in reasons(path, max_tilt_degrees=tilt)
    with pytest.raises(UserError, match=rf"rows and columns stand at {90 - abs(degrees):.1f} degrees"):
        read_nifti(path)


def test_a_tilted_gantry_is_measured_and_straightened(tmp_path: Path) -> None:
    """A shift from slice to slice is no skew of the planes."""
    shear = np.eye(4)
    shear[1, 2] = np.tan(np.radians(15)) * 4.0 / 1.5
    path = written(tmp_path / "ct.nii", scan(), AFFINE @ shear)
    assert measure_nifti(path)["tilt_degrees"] == pytest.approx(15.0, abs=0.01)
    assert measure_nifti(path)["gap_median_mm"] == pytest.approx(4.0, abs=1e-3), "from plane to plane, not aslant"
    assert reasons(path) == ["gantry_tilt"]
    assert reasons(path, max_tilt_degrees=30.0) == []
    axes = resample_only(read_nifti(path), load_stage(PreprocessConfig, "head", "preprocess", PARAMS)).affine[:3, :3]
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)


@pytest.mark.parametrize("line", ["wholebody", "head"])
def test_the_order_of_axes_says_nothing_of_the_scan(tmp_path: Path, line: str) -> None:
    grid = load_stage(PreprocessConfig, line, "preprocess", PARAMS)
    axial = written(tmp_path / "axial.nii.gz", scan(), AFFINE)
    expected, measured = resample_only(read_nifti(axial), grid), measure_nifti(axial)
    for order in itertools.permutations(range(3)):
        path = written(tmp_path / "turned.nii.gz", scan().transpose(order), AFFINE[:, [*order, 3]])
        assert measure_nifti(path) == measured
        assert reasons(path) == []
        volume = resample_only(read_nifti(path), grid)
        np.testing.assert_array_equal(volume.hu, expected.hu)
        np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-5)


@given(
    order=st.permutations(range(3)),
    flips=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    unit=st.sampled_from([(0, 1.0), (METRE, 1e-3), (MM, 1.0), (MICRON, 1e3)]),
    turn=st.tuples(st.floats(-20, 20), st.floats(-20, 20), st.floats(-20, 20)),
    line=st.sampled_from(["wholebody", "head"]),
)
@settings(max_examples=12, deadline=None)
def test_any_proper_grid_gives_the_same_standard_volume(
    tmp_path_factory: pytest.TempPathFactory,
    order: list[int],
    flips: tuple[bool, bool, bool],
    unit: tuple[int, float],
    turn: tuple[float, float, float],
    line: str,
) -> None:
    """Axes in any order and direction, lengths in any unit, planes turned: what lies where does not change."""
    path = tmp_path_factory.getbasetemp() / "grid.nii"
    grid = load_stage(PreprocessConfig, line, "preprocess", PARAMS)
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    expected = resample_only(read_nifti(written(path, scan(), AFFINE)), grid)
    hu, affine = scan().transpose(order), turned @ AFFINE[:, [*order, 3]]
    for axis, flip in enumerate(flips):
        if flip:
            hu = np.flip(hu, axis)
            affine[:3, 3] += affine[:3, axis] * (hu.shape[axis] - 1)
            affine[:3, axis] *= -1
    code, factor = unit
    path = written(path, hu, np.diag([factor] * 3 + [1]) @ affine, edit={UNITS: bytes([code])})
    assert reasons(path) == []
    volume = resample_only(read_nifti(path), grid)
    assert np.abs(volume.hu.astype(int) - expected.hu).max() <= 1, "sums in another order may round otherwise"
    np.testing.assert_allclose(volume.affine, turned @ expected.affine, atol=1e-3)


def test_slices_of_cubes_run_along_the_patient(tmp_path: Path) -> None:
    affine = np.array([[0, 0, -1.0, 40], [1.0, 0, 0, -50], [0, 1.0, 0, 7], [0, 0, 0, 1]])  # A, S, L: sagittal first
    hu = np.zeros((20, 30, 40), np.int16)
    hu[5, 12, 33] = 1000
    volume = read_nifti(written(tmp_path / "cubes.nii", hu, affine))
    assert volume.hu.shape == (30, 20, 40)
    np.testing.assert_allclose(np.argwhere(volume.hu == 1000)[0], voxel_of(volume.affine, (40 - 33, -50 + 5, 7 + 12)))
