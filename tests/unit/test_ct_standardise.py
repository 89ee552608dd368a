"""A point keeps its millimetres through orientation, resampling and crop; the store gives back what it took."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from components.ct.standardise import (
    PIECE_SHARE,
    _opened,
    _weights,
    crop_to_body,
    find_body,
    resample_only,
    standardise,
    straighten,
    tilt_degrees,
)
from components.ct.store import StoredVolume, Volume, voxel_of, write_volume
from components.preprocess.config import PreprocessConfig


def grid(orientation: str, spacing: tuple[float, float, float]) -> PreprocessConfig:
    return PreprocessConfig(
        orientation=orientation,
        spacing_mm=spacing,
        enlarging="linear",
        foreground_hu=-500,
        foreground_margin_mm=5.0,
        max_memory_gib=4.0,
        clip_hu=(-1024, 3071),
    )


def ball(
    axes: str, spacing: tuple[float, float, float], radius_mm: float = 6.0, body_mm: float = 55.0
) -> tuple[Volume, np.ndarray]:
    """A patient of 120 mm with a bright ball off-centre, in any orientation; and the ball's centre in RAS mm."""
    shape = tuple(round(120 / s) for s in spacing)
    ornt = nib.orientations.axcodes2ornt(tuple(axes))
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (world, sign) in enumerate(ornt):
        affine[int(world), axis] = sign * spacing[axis]
    affine[:3, 3] = [3.7, -8.2, 41.3]
    index = np.stack(np.indices(shape), -1)
    mm = index @ affine[:3, :3].T + affine[:3, 3]
    middle = mm.reshape(-1, 3).mean(0)
    centre = middle + np.array([11.0, -7.5, 16.25])
    hu = np.full(shape, -1000, np.int16)
    hu[np.linalg.norm(mm - middle, axis=-1) < body_mm] = 40
    hu[np.linalg.norm(mm - centre, axis=-1) < radius_mm] = 1000
    return Volume(hu, affine), centre


@pytest.mark.parametrize("axes", ["SPL", "LPS", "RAS", "IAR", "PSL"])
@pytest.mark.parametrize("target", ["SPL", "RAS"])
@pytest.mark.parametrize(("body_mm", "cropped"), [(55.0, False), (35.0, True)])
def test_a_landmark_keeps_its_place(axes: str, target: str, body_mm: float, cropped: bool) -> None:
    volume, centre = ball(axes, (1.5, 1.0, 0.8), body_mm=body_mm)
    standard = standardise(volume, grid(target, (3.0, 1.0, 1.0)))
    assert "".join(nib.aff2axcodes(standard.affine)) == target
    np.testing.assert_allclose(standard.spacing, (3.0, 1.0, 1.0), atol=1e-9)
    found = np.argwhere(standard.hu > 600).mean(0)
    np.testing.assert_allclose(found, voxel_of(standard.affine, centre), atol=0.2)  # half a voxel is .25 along z
    assert (standard.hu.shape[1] < 120) is cropped


def test_an_equal_grid_is_left_alone() -> None:
    volume, _ = ball("SPL", (3.0, 1.0, 1.0))
    np.testing.assert_array_equal(resample_only(volume, grid("SPL", (3.0, 1.0, 1.0))).hu, volume.hu)


def test_no_slice_is_skipped_where_the_step_grows() -> None:
    hu = np.full((60, 8, 8), -1000, np.int16)
    hu[31] = 2000  # one thin bright slice between the output's sampling points
    standard = resample_only(Volume(hu, np.diag([1.0, 1.0, 1.0, 1.0])), grid("RAS", (5.0, 1.0, 1.0)))
    assert standard.hu.max() > -700
    np.testing.assert_allclose(standard.hu.mean(), hu.mean(), atol=15)


@pytest.mark.parametrize("degrees", [18.5, -12.0, 0.7])
def test_a_tilted_gantry_is_straightened(degrees: float) -> None:
    """Values that are a known function of the place in millimetres stay so; nothing is lost at the edges."""
    tilt = np.radians(degrees)
    affine = np.eye(4)  # slices first; the table moves along z, the planes lean
    affine[:3, :3] = np.array([[0.0, 0.0, 4.0], [0.0, np.cos(tilt), np.sin(tilt)], [0.9, 0.0, 0.0]]).T
    affine[:3, 3] = [-40.0, 12.0, 5.0]
    index = np.stack(np.indices((20, 60, 50)), -1)
    ramp = np.array([6.0, -5.0, 7.0])
    sheared = Volume(np.rint((index @ affine[:3, :3].T + affine[:3, 3]) @ ramp).astype(np.int16), affine)
    straight = straighten(sheared)
    axes = straight.affine[:3, :3]
    np.testing.assert_allclose(axes.T @ axes, np.diag(np.square(straight.spacing)), atol=1e-9)
    assert straight.spacing[0] == pytest.approx(4.0 * np.cos(tilt))
    places = np.stack(np.indices(straight.hu.shape), -1) @ axes.T + straight.affine[:3, 3]
    seen = np.rint(voxel_of(affine, places) * 1e6) / 1e6
    inside = ((seen >= 0) & (seen <= np.array(sheared.hu.shape) - 1)).all(-1)
    assert np.abs(straight.hu - places @ ramp)[inside].max() <= 1.0, "two roundings"
    assert inside.sum() >= 0.94 * sheared.hu.size, "nothing is lost"
    outside = ((seen <= -1) | (seen >= np.array(sheared.hu.shape))).any(-1)
    assert outside.any()
    assert (straight.hu[outside] == -1024).all()


def test_an_upright_scan_is_not_touched() -> None:
    volume, _ = ball("SPL", (3.0, 1.0, 1.0))
    nearly = volume.affine.copy()
    nearly[:3, 0] += [1e-4, 0.0, 0.0]  # as rounded positions are
    assert straighten(Volume(volume.hu, nearly)).hu is volume.hu


@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 20, 30), (20, 40, 40), (2, 3, 3)])
def test_the_opening_is_scipys(shape: tuple[int, int, int]) -> None:
    offsets = np.indices((3, 5, 5)) - np.array([1, 2, 2])[:, None, None, None]
    ball = (offsets[0] * 2) ** 2 + offsets[1] ** 2 + offsets[2] ** 2 <= 5
    random = np.random.default_rng(0)
    for share in (0.3, 0.6, 0.8, 0.95):
        mask = ndimage.uniform_filter(random.random(shape), 2) > 1 - share
        np.testing.assert_array_equal(_opened(mask), ndimage.binary_opening(mask, structure=ball))


def test_weights_are_shares_of_the_voxels_that_are_there() -> None:
    for step in (0.3, 0.999, 1.0, 1.28, 3.0, 7.7):
        for enlarging in ("linear", "cubic"):
            weights = _weights(40, step, enlarging).toarray()
            assert weights.shape == (round(40 / step), 40)
            np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-6)
            centres = (np.arange(len(weights)) + 0.5) * step - 0.5
            inner = (centres > 2 + step) & (centres < 37 - step)
            off = 0.13 if step > 1 else 1e-4  # voxels cut by an output voxel's edge count as of one value
            np.testing.assert_allclose((weights @ np.arange(40.0))[inner], centres[inner], atol=off)


def test_cubic_interpolation_does_not_run_over() -> None:
    hu = np.full((2, 12, 12), -32768, np.int16)
    hu[:, 4:8, 4:8] = 32767
    config = grid("SPL", (1.0, 0.4, 0.4)).model_copy(update={"enlarging": "cubic", "clip_hu": (-32768, 32767)})
    affine = np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]]
    fine = resample_only(Volume(hu, affine), config).hu
    middle = fine[0, 12:18, 12:18]
    assert middle.min() > 20000, "what overshoots stays at the highest value"


def test_the_body_is_found_and_the_table_is_not() -> None:
    volume, _ = ball("SPL", (3.0, 1.0, 1.0), body_mm=40.0)
    volume.hu[:, 110:112, 10:110] = 200  # a table's board of two millimetres, 10 mm below the patient
    body = find_body(volume, -500)
    assert body is not None
    assert body.high[1] <= 110
    volume.hu[:, :110] = -1000
    assert find_body(volume, -500) is None


def test_what_lies_beside_the_trunk_is_kept() -> None:
    """Two legs far apart, an arm: the box of all, wherever the largest lies."""
    hu = np.full((40, 60, 400), -1000, np.int16)
    place = np.indices(hu.shape[1:])
    for centre, radius in ((90, 28), (310, 28), (200, 12)):
        hu[:, np.hypot(place[0] - 30, place[1] - centre) < radius] = 40
    hu[:20, :, 200:400] = np.where(hu[:20, :, 200:400] > 0, -1000, hu[:20, :, 200:400])  # the second is the smaller
    volume = Volume(hu, np.diag([2.0, 1.0, 1.0, 1.0]))
    config = grid("RAS", (2.0, 1.0, 1.0))
    standard = standardise(volume, config)
    assert (standard.hu > 0).sum() == (hu > 0).sum(), "no voxel of the patient is lost"
    body = find_body(volume, -500)
    assert body is not None
    assert (body.pieces, body.cut_fraction) == (3, 0.0)
    assert body.low[2] <= 62
    assert body.high[2] >= 338


def test_what_the_crop_leaves_out_is_recorded() -> None:
    hu = np.full((30, 100, 300), -1000, np.int16)
    hu[:, 20:80, 20:120] = 40
    hu[8:20, 40:64, 240:264] = 40  # more than a hundredth of the largest
    volume = Volume(hu, np.diag([4.0, 1.0, 1.0, 1.0]))
    body = find_body(volume, -500)
    assert body is not None
    assert (body.pieces, body.cut_fraction) == (2, 0.0)
    assert body.high[2] >= 264
    hu[8:20, 40:64, 240:264] = -1000
    hu[10:16, 40:60, 240:260] = 40  # less than that
    body = find_body(volume, -500)
    assert body is not None
    assert body.pieces == 1
    assert body.cut_fraction == pytest.approx(6 * 20 * 20 / (6 * 20 * 20 + 30 * 60 * 100), rel=0.1)


@given(
    boxes=st.lists(st.tuples(st.integers(0, 5), st.integers(6, 12), st.integers(6, 12)), min_size=1, max_size=5),
    axes=st.sampled_from(["SPL", "RAS", "LIP"]),
)
@settings(max_examples=30, deadline=None)
def test_no_piece_above_the_share_is_ever_cut(boxes: list[tuple[int, int, int]], axes: str) -> None:
    """Blocks side by side, each in a compartment of its own, of random sizes; on voxels of the search's own size."""
    hu = np.full((24, 24, 20 * len(boxes)), -1000, np.int16)
    for number, (start, long, wide) in enumerate(boxes):
        hu[start : start + long, 4 : 4 + wide, 20 * number + 3 : 20 * number + 3 + wide] = 40
    ornt = nib.orientations.axcodes2ornt(tuple(axes))
    affine = np.diag([0.0, 0, 0, 1])
    for axis, (world, sign) in enumerate(ornt):
        affine[int(world), axis] = 4.0 * sign
    volume = Volume(hu, affine)
    body = find_body(volume, -500)
    labels, count = ndimage.label(_opened(hu > -500))
    sizes = np.bincount(labels.ravel())[1:]
    assert body is not None
    assert body.pieces == (sizes >= PIECE_SHARE * sizes.max()).sum()
    cropped = crop_to_body(volume, body, 0.0)
    for number in range(count):
        if sizes[number] >= PIECE_SHARE * sizes.max():
            corner = np.argwhere(labels == number + 1).min(0)
            assert (voxel_of(cropped.affine, affine[:3, :3] @ corner) >= 0).all()
            far = np.argwhere(labels == number + 1).max(0)
            assert (voxel_of(cropped.affine, affine[:3, :3] @ far) < cropped.hu.shape).all()


@pytest.mark.parametrize("axes", ["SPL", "RAS", "ASR"])
def test_the_area_of_transverse_sections(axes: str) -> None:
    """A tube along the patient, air inside it, as lungs are: 8 x 8 cm whatever the array's axes."""
    hu = np.full((30, 40, 40), -1000, np.int16)
    hu[:, 10:30, 10:30] = 40
    hu[:, 16:24, 16:24] = -900
    affine = np.diag([4.0, 4.0, 4.0, 1.0])[[2, 1, 0, 3]]  # slices along the patient
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(axes))
    )
    turned = nib.orientations.apply_orientation(hu, turn)
    body = find_body(Volume(turned, affine @ nib.orientations.inv_ornt_aff(turn, hu.shape)), -500)
    assert body is not None
    assert body.area_cm2 == pytest.approx(64.0, rel=0.05)


@pytest.mark.parametrize("degrees", [0.0, 12.5, -18.5])
def test_tilt_is_measured(degrees: float) -> None:
    affine = np.eye(4)
    affine[:3, 0] = [0.0, 5 * np.tan(np.radians(degrees)), 5.0]
    affine[:3, 1], affine[:3, 2] = [0, 0.5, 0], [0.5, 0, 0]
    assert tilt_degrees(affine) == pytest.approx(abs(degrees))


def test_the_store_gives_back_what_it_took(tmp_path: Path) -> None:
    volume, _ = ball("SPL", (3.0, 1.0, 1.0))
    for name in ("a", "b"):
        write_volume(tmp_path / name, volume, {"series": "s1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    stored = StoredVolume(tmp_path / "a")
    np.testing.assert_array_equal(stored.read().hu, volume.hu)
    np.testing.assert_array_equal(stored.affine, volume.affine)
    assert stored.provenance == {"series": "s1"}
    crop = stored.crop((-2, 50, 110), (8, 20, 20))
    assert (crop[:2] == -1024).all()
    assert (crop[:, :, 10:] == -1024).all()
    np.testing.assert_array_equal(crop[2:, :, :10], volume.hu[:6, 50:70, 110:])


def test_damaged_volumes_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        StoredVolume(tmp_path / "gone.b2nd")
    (tmp_path / "bad.b2nd").write_bytes(b"nothing of ours")
    with pytest.raises(ValueError, match=r"bad\.b2nd"):
        StoredVolume(tmp_path / "bad.b2nd")
