"""Overlap and surfaces equal DeepMind's surface-distance and MONAI's on anisotropic grids; empty masks are defined."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_surface_dice
from scipy import ndimage
from surface_distance import (
    compute_dice_coefficient,
    compute_robust_hausdorff,
    compute_surface_dice_at_tolerance,
    compute_surface_distances,
)

from components.figures import segmentation
from components.figures.arrays import Bools
from components.figures.averages import mean_of_cases, median_of_cases
from components.figures.segmentation import Overlap, overlap, overlaps, tally

SPACINGS = [(1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (0.8, 1.3, 3.1)]
SHAPE = (14, 24, 20)
TREE, TRANSFORM = 0, 10**9


def blob(seed: int, threshold: float = 0.5) -> Bools:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 2)
    return field / field.std() > threshold


def box(*slices: slice) -> Bools:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[slices] = True
    return mask


def masks(kind: str) -> tuple[Bools, Bools]:
    """Prediction and truth, neither empty."""
    inside = box(slice(3, 9), slice(5, 15), slice(4, 16))
    pairs = {
        "random": (blob(1), blob(2)),
        "alike": (blob(3, 0.5), blob(3, 0.7)),
        "identical": (blob(4), blob(4)),
        "apart": (box(slice(0, 2), slice(0, 3), slice(0, 3)), box(slice(12, 14), slice(20, 24), slice(18, 20))),
        "one voxel each": (box(slice(1, 2), slice(1, 2), slice(1, 2)), box(slice(3, 4), slice(2, 3), slice(1, 2))),
        "one voxel in a large structure": (box(slice(5, 6), slice(9, 10), slice(9, 10)), inside),
        "one slice": (box(slice(5, 6), slice(5, 15), slice(4, 16)), box(slice(6, 7), slice(5, 15), slice(4, 16))),
        "everywhere": (np.ones(SHAPE, dtype=bool), inside),
        "noise": (np.random.default_rng(5).random(SHAPE) < 0.4, inside),
        "diagonal neighbours": (np.indices(SHAPE).sum(axis=0) % 2 == 0, inside),
        "a hole": (inside & ~box(slice(5, 7), slice(8, 11), slice(8, 12)), inside),
        "specks far off": (inside | (np.random.default_rng(6).random(SHAPE) < 0.01), inside),
    }
    return pairs[kind]


KINDS = ["random", "alike", "identical", "apart", "one voxel each", "one voxel in a large structure", "one slice",
         "everywhere", "noise", "diagonal neighbours", "a hole", "specks far off"]  # fmt: skip


@pytest.mark.parametrize("search", [TREE, segmentation.VOXELS_AN_ELEMENT, TRANSFORM])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_surface_distance_agrees(
    kind: str, spacing: tuple[float, float, float], search: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation, "VOXELS_AN_ELEMENT", search)
    predicted, truth = masks(kind)
    peer = compute_surface_distances(truth, predicted, spacing)
    for tolerance in (0.0, 1.05, 2.45, 6.0):
        found = overlap(predicted, truth, spacing, tolerance)
        assert found.surface_dice == pytest.approx(compute_surface_dice_at_tolerance(peer, tolerance), abs=1e-6)
    assert found.hd95_mm == pytest.approx(compute_robust_hausdorff(peer, 95), abs=1e-6)
    assert found.dice == pytest.approx(compute_dice_coefficient(truth, predicted), abs=1e-12)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_monai_agrees(kind: str, spacing: tuple[float, float, float]) -> None:
    predicted, truth = masks(kind)
    found = overlap(predicted, truth, spacing, 2.45)
    ours, theirs = torch.as_tensor(predicted)[None, None], torch.as_tensor(truth)[None, None]
    peer = compute_surface_dice(
        ours, theirs, [2.45], include_background=True, spacing=list(spacing), use_subvoxels=True
    )
    assert found.surface_dice == pytest.approx(float(peer), abs=1e-6)
    assert found.dice == pytest.approx(float(compute_dice(ours, theirs, include_background=True)), abs=1e-6)


def test_volumes() -> None:
    found = overlap(*masks("one voxel in a large structure"), (5.0, 0.7, 0.7), 1.0)
    assert found.true_ml == pytest.approx(6 * 10 * 12 * 5 * 0.49 / 1000)
    assert found.predicted_ml == pytest.approx(5 * 0.49 / 1000)
    assert found.volume_error_ml == pytest.approx(found.predicted_ml - found.true_ml)
    assert found.volume_error_relative == pytest.approx(1 / 720 - 1)


@pytest.mark.parametrize("search", [TREE, TRANSFORM])
@pytest.mark.parametrize(("step", "voxels"), [(0.1, 3), (0.7, 3), (1.1, 3), (0.6, 7)])
def test_a_distance_that_is_the_tolerance_is_within_it(
    step: float, voxels: int, search: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 steps of .1 mm are .30000000000000004 mm."""
    monkeypatch.setattr(segmentation, "VOXELS_AN_ELEMENT", search)
    one = box(slice(2, 3), slice(1, 23), slice(1, 19))
    other = np.roll(one, voxels, axis=0)
    assert overlap(one, other, (step, 1.0, 1.0), round(step * voxels, 6)).surface_dice == 1
    less = overlap(one, other, (step, 1.0, 1.0), step * voxels - 1e-3)
    assert less.surface_dice == pytest.approx(0.5), "the faces that look at each other are nearer by a voxel"


def test_the_box_and_the_position_in_it_do_not_matter() -> None:
    predicted, truth = masks("alike")
    found = overlap(predicted, truth, (5.0, 0.7, 0.7), 1.0)
    padded = [np.pad(mask, ((9, 4), (0, 30), (2, 0))) for mask in (predicted, truth)]
    assert overlap(*padded, (5.0, 0.7, 0.7), 1.0) == found
    turned = [mask.transpose(2, 0, 1) for mask in (predicted, truth)]
    again = overlap(*turned, (0.7, 5.0, 0.7), 1.0)
    assert dataclasses.astuple(again) == pytest.approx(dataclasses.astuple(found), abs=1e-6)


NAN, INF = np.nan, np.inf
EMPTY = np.zeros(SHAPE, dtype=bool)
EIGHT = box(slice(0, 2), slice(0, 2), slice(0, 2))


def test_both_empty_is_no_value_and_one_empty_is_a_miss() -> None:
    ml = 8 * 2 / 1000
    assert dataclasses.astuple(overlap(EMPTY, EMPTY, (2, 1, 1), 1)) == pytest.approx(
        (NAN, NAN, NAN, NAN, NAN, 0, 0), nan_ok=True
    )
    assert dataclasses.astuple(overlap(EMPTY, EIGHT, (2, 1, 1), 1)) == pytest.approx((0, 0, INF, -ml, -1, 0, ml))
    assert dataclasses.astuple(overlap(EIGHT, EMPTY, (2, 1, 1), 1)) == pytest.approx((0, 0, INF, ml, INF, ml, 0))


def test_monai_has_the_same_of_empty_masks() -> None:
    for predicted, truth in ((EMPTY, EIGHT), (EIGHT, EMPTY), (EMPTY, EMPTY)):
        found = overlap(predicted, truth, (2, 1, 1), 1)
        pair = torch.as_tensor(predicted)[None, None], torch.as_tensor(truth)[None, None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            surface = compute_surface_dice(*pair, [1.0], include_background=True, spacing=[2, 1, 1], use_subvoxels=True)
            dice = compute_dice(*pair, include_background=True, ignore_empty=False)
        assert found.surface_dice == pytest.approx(float(surface), nan_ok=True)
        # MONAI leaves out an empty truth, or calls the Dice of two empty masks 1; a structure made up is a 0 for us
        assert float(dice) == (1 if np.isnan(found.dice) else found.dice)


def test_means_leave_absent_structures_out_count_them_and_hide_no_miss() -> None:
    pairs = [(EMPTY, EMPTY), (EIGHT, EIGHT), (EMPTY, EIGHT), (EIGHT, EMPTY), (EIGHT, EIGHT), (EIGHT, EIGHT)]
    found = [overlap(predicted, truth, (2, 1, 1), 1) for predicted, truth in pairs]
    counts = tally(found)
    assert (counts.cases, counts.absent, counts.missed, counts.invented) == (6, 1, 1, 1)
    dice, hd95 = np.array([f.dice for f in found]), np.array([f.hd95_mm for f in found])
    ones = np.ones((1, 6))
    assert mean_of_cases(dice, ones)[0] == 3 / 5
    assert mean_of_cases(hd95, ones)[0] == INF
    assert median_of_cases(hd95, ones)[0] == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_label_maps_are_compared_structure_by_structure(dtype: type) -> None:
    rng = np.random.default_rng(0)
    fields = [ndimage.gaussian_filter(rng.normal(size=(4, *SHAPE)), (0, 2, 2, 2)) for _ in range(2)]
    predicted, truth = ((field.argmax(axis=0) * 3).astype(dtype) for field in fields)  # codes 0, 3, 6, 9
    truth[truth == 6] = 0
    found = overlaps(predicted, truth, [9, 3, 6, 5], (5.0, 0.7, 0.7), 1.0)
    assert list(found) == [9, 3, 6, 5]
    for code in (3, 6, 9):
        assert found[code] == overlap(predicted == code, truth == code, (5.0, 0.7, 0.7), 1.0)
    assert (found[6].true_ml, found[6].hd95_mm) == (0, INF)
    assert np.isnan(found[5].dice)
    assert isinstance(found[5], Overlap)


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(ValueError, match=r"masks of \(14, 24, 20\) and \(14, 24\); one grid of 3 axes"):
        overlap(EMPTY, EMPTY[..., 0], (1, 1, 1), 1)
    with pytest.raises(ValueError, match=r"spacing \[1, 0, 1\] mm; three finite numbers above 0"):
        overlap(EMPTY, EMPTY, (1, 0, 1), 1)
    with pytest.raises(ValueError, match=r"tolerance -1 mm; 0 or above"):
        overlap(EMPTY, EMPTY, (1, 1, 1), -1)
    with pytest.raises(ValueError, match=r"masks of uint8 and bool; bool is needed"):
        overlap(EMPTY.astype(np.uint8), EMPTY, (1, 1, 1), 1)
    with pytest.raises(ValueError, match=r"codes \[0, 1\]; at least one is needed, each above 0"):
        overlaps(EMPTY.astype(np.uint8), EMPTY.astype(np.uint8), [0, 1], (1, 1, 1), 1)
