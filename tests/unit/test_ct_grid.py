"""Slices become a volume only where they are one grid; each then lies within the stated bound of its true place."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from components.ct.dicom import DecodeError, read_series
from components.ct.headers import measure_series, read_instance
from components.ct.store import AIR_HU
from components.screen.config import ScreenConfig
from components.screen.suite import headers_suite
from components.settings import load_stage
from serving.judging import warnings_of

SCREEN = load_stage(ScreenConfig, "wholebody", "screen", Path(__file__).resolve().parents[2] / "params.yaml")
STACK = {"uneven_spacing", "repeated_positions", "gantry_tilt", "mixed_geometry", "missing_tags"}
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
STEP = 4.0


def one(number: int, position: Any, pixels: np.ndarray | None = None, **values: Any) -> Dataset:
    """A slice whose pixels are its number, unless they are given."""
    stored = np.full((64, 64), number, np.int16) if pixels is None else pixels.astype(np.int16)
    item = Dataset()
    item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, f"1.2.3.{number}"
    item.SeriesInstanceUID, item.StudyInstanceUID, item.FrameOfReferenceUID = "1.2.4", "1.2.5", "1.2.6"
    item.Modality, item.ImageType, item.PatientID = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], "P"
    item.ImagePositionPatient = [round(float(v), 4) for v in position]
    item.ImageOrientationPatient, item.PixelSpacing, item.SliceThickness = list(AXIAL), [3.0, 3.0], STEP
    item.Rows, item.Columns = stored.shape
    item.SamplesPerPixel, item.PhotometricInterpretation, item.PixelRepresentation = 1, "MONOCHROME2", 1
    item.BitsAllocated, item.BitsStored, item.HighBit = 16, 16, 15
    item.RescaleSlope, item.RescaleIntercept = 1, 0
    item.PixelData = stored.tobytes()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    item.file_meta = FileMetaDataset()
    item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    item.file_meta.MediaStorageSOPClassUID, item.file_meta.MediaStorageSOPInstanceUID = (
        CTImageStorage,
        f"1.2.3.{number}",
    )
    return item


def even(count: int = 16, **values: Any) -> list[Dataset]:
    return [one(n, (-20.0, 30.0, -100.0 + STEP * n), **values) for n in range(count)]


def written(items: list[Dataset], folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    paths = [folder / f"{number:03d}.dcm" for number in range(len(items))]
    for path, item in zip(paths, items, strict=True):
        dcmwrite(path, item, enforce_file_format=True)
    return paths


def reasons(paths: list[Path]) -> set[str]:
    """What screening holds against the stack; the service's verdicts are Great Expectations'."""
    read = [read_instance(io.BytesIO(path.read_bytes()), path.name, path.stat().st_size) for path in paths]
    measured = {"status": "acquired", **measure_series(read)}
    return {w.partition(":")[0] for w in warnings_of(measured, headers_suite(SCREEN, 1))} & STACK


def places(items: list[Dataset]) -> dict[int, np.ndarray]:
    """Slice number to its true place, RAS mm."""
    return {int(item.SOPInstanceUID.rpartition(".")[2]): np.array(item.ImagePositionPatient) * [-1, -1, 1]
            for item in items}  # fmt: skip


def farthest(paths: list[Path], items: list[Dataset]) -> float:
    """Of the slices of the volume that is read, the largest distance from the true place, mm."""
    volume = read_series(paths)
    put = {int(plane[0, 0]): volume.affine[:3, 0] * k + volume.affine[:3, 3] for k, plane in enumerate(volume.hu)}
    return max(float(np.linalg.norm(put[number] - place)) for number, place in places(items).items())


def test_an_even_stack_is_read_to_its_place(tmp_path: Path) -> None:
    items = even()
    paths = written(items[::-1], tmp_path / "s")
    assert reasons(paths) == set()
    assert farthest(paths, items) < 1e-6


def test_rows_and_columns_keep_their_own_spacing(tmp_path: Path) -> None:
    """The first value is between rows (PS3.3 10.7.1.1)."""
    assert read_series(written(even(PixelSpacing=[3.0, 2.9]), tmp_path / "s")).spacing == pytest.approx((4.0, 3.0, 2.9))


def test_two_protocols_of_nearly_one_step_are_rejected(tmp_path: Path) -> None:
    """Every gap is within 1.2 times the median, yet slices would lie up to 12 mm from where the affine says."""
    z = np.concatenate([2.5 * np.arange(51), 2.5 * 50 + 3.0 * np.arange(1, 50)])
    items = [one(n, (0.0, 0.0, place)) for n, place in enumerate(z)]
    paths = written(items, tmp_path / "s")
    assert reasons(paths) == {"uneven_spacing"}
    read = [read_instance(io.BytesIO(p.read_bytes()), p.name, p.stat().st_size) for p in paths]
    measured = measure_series(read)
    assert measured["gap_ratio"] <= SCREEN.max_gap_ratio
    assert measured["gap_min_ratio"] >= 1 / SCREEN.max_gap_ratio
    assert measured["off_grid_mm"] == pytest.approx(farthest(paths, items), abs=2e-3)
    assert measured["off_grid_mm"] > 12


@given(
    gaps=st.lists(st.floats(0.0, 9.0), min_size=12, max_size=20),
    spread=st.sampled_from([0.0, 0.01, 0.05, 0.3, 1.0]),
    aside=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=25, deadline=None)
def test_any_positions_are_read_within_the_bound_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[float], spread: float, aside: tuple[float, float], order: Any
) -> None:
    """Gaps from all alike (``spread`` 0) to at random, slices moved aside by as much."""
    steps = STEP + spread * (np.array(gaps) - STEP)
    z = np.concatenate([[0.0], np.cumsum(steps)])
    lean = np.outer(np.sin(np.arange(len(z))), aside) * spread
    items = [one(n, (lean[n, 0], lean[n, 1], place)) for n, place in enumerate(z)]
    shuffled = list(items)
    order.shuffle(shuffled)
    paths = written(shuffled, tmp_path_factory.getbasetemp() / "positions")
    try:
        off = farthest(paths, items)
    except DecodeError:
        off = np.inf
    assert reasons(paths) or off <= SCREEN.max_off_grid_mm + 1e-3
    if spread == 0.0:
        assert not reasons(paths)


def _without(*numbers: int) -> Callable[[list[Dataset]], list[Dataset]]:
    return lambda items: [item for n, item in enumerate(items) if n not in numbers]


def _between(items: list[Dataset]) -> list[Dataset]:
    """Another series of the same planes, half a step on: the positions alone are those of one even grid."""
    others = [one(100 + n, (-20.0, 30.0, -98.0 + STEP * n), SeriesInstanceUID="1.2.9") for n in range(len(items))]
    return [*items, *others]


def _offset(items: list[Dataset]) -> list[Dataset]:
    return [*items, *(one(100 + n, (-20.0, 30.0, -99.0 + STEP * n)) for n in range(len(items)))]


def _twice(items: list[Dataset]) -> list[Dataset]:
    return [*items, one(100, items[5].ImagePositionPatient)]


def _set(**values: Any) -> Callable[[list[Dataset]], list[Dataset]]:
    def change(items: list[Dataset]) -> list[Dataset]:
        for item in items[8:]:
            for keyword, value in values.items():
                setattr(item, keyword, value)
        return items

    return change


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (_without(7), r"a gap of 8 mm between slices 4 mm apart"),
        (_without(3, 4, 5), r"a gap of 16 mm between slices 4 mm apart"),
        (_without(1), r"a gap of 8 mm"),
        (_between, r"instances of 2 series"),
        (_offset, r"others lie between them"),
        (_twice, r"1 of 17 slices lie at the position of another"),
        (_set(ImagePositionPatient=[-20.0, 30.0, -100.0]), r"lie at the position of another"),
        (_set(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), r"008\.dcm: another orientation than in 000\.dcm"),
        (_set(ImageOrientationPatient=[1, 0, 0, 0, -1, 0]), r"another orientation"),
        (_set(PixelSpacing=[3.0, 3.1]), r"another pixel spacing"),
        (_set(ImageOrientationPatient=[1, 0, 0, float("nan"), 1, 0]), r"ImageOrientationPatient is not 6 numbers"),
    ],
)
def test_what_is_no_grid_is_named(tmp_path: Path, plant: Callable[..., list[Dataset]], said: str) -> None:
    with pytest.raises(DecodeError, match=said):
        read_series(written(plant(even()), tmp_path / "s"))


def test_rounding_from_slice_to_slice_is_no_other_grid(tmp_path: Path) -> None:
    turned = _set(ImageOrientationPatient=[1, 0.0001, 0, -0.0001, 1, 0], PixelSpacing=[3.0002, 3.0])(even())
    assert read_series(written(turned, tmp_path / "s")).hu.shape == (16, 64, 64)


def padded(stored: np.ndarray, folder: Path, **values: Any) -> np.ndarray:
    paths = written([one(n, (0.0, 0.0, STEP * n), stored, **values) for n in range(2)], folder)
    return read_series(paths).hu[0]


def test_padding_that_is_a_value_of_tissue_punches_no_holes(tmp_path: Path) -> None:
    """Water is 0 HU, and so is what the writer put outside of the scanner's circle."""
    rows, columns = np.indices((64, 64)) - 31.5
    body, circle = np.hypot(rows, columns) < 20, np.hypot(rows, columns) < 30
    stored = np.where(body, np.random.default_rng(0).integers(-3, 4, (64, 64)), -990) * circle
    hu = padded(stored, tmp_path / "s", PixelPaddingValue=0)
    np.testing.assert_array_equal(hu[circle], stored[circle])
    assert (stored[body] == 0).sum() > 100, "the test has what would be holes"
    assert (hu[~circle] == AIR_HU).all()


@pytest.mark.parametrize(
    ("value", "limit", "intercept"), [(-2000, None, 0), (0, None, -1024), (-2000, -1500, 0), (32767, None, 0)]
)
def test_padding_beyond_tissue_is_air_wherever_it_lies(
    tmp_path: Path, value: int, limit: int | None, intercept: int
) -> None:
    stored = np.full((64, 64), 40 - intercept)
    stored[30:34, 30:34] = value if limit is None else (value + limit) // 2
    range_limit = {} if limit is None else {"PixelPaddingRangeLimit": limit}
    hu = padded(stored, tmp_path / "s", PixelPaddingValue=value, RescaleIntercept=intercept, **range_limit)
    assert (hu[30:34, 30:34] == AIR_HU).all()
    assert (np.delete(hu, range(30, 34), 0) == 40).all()


def test_padding_whose_sign_the_writer_got_wrong(tmp_path: Path) -> None:
    stored = np.full((64, 64), 40)
    stored[30:34, 30:34] = -2000
    items = [one(n, (0.0, 0.0, STEP * n), stored) for n in range(2)]
    for item in items:
        item.add_new("PixelPaddingValue", "US", 63536)
    hu = read_series(written(items, tmp_path / "s")).hu[0]
    assert (hu[30:34, 30:34] == AIR_HU).all()


def test_a_range_of_padding_that_reaches_into_tissue_is_split(tmp_path: Path) -> None:
    stored = np.full((64, 64), 40)
    stored[:8], stored[20:24, 20:24], stored[40:44, 40:44] = -5, -5, -1800
    hu = padded(stored, tmp_path / "s", PixelPaddingValue=-2000, PixelPaddingRangeLimit=0)
    assert (hu[:8] == AIR_HU).all()
    assert (hu[20:24, 20:24] == -5).all()
    assert (hu[40:44, 40:44] == AIR_HU).all()
