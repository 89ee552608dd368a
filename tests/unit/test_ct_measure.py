"""Measurements of voxels are what NumPy would say, only sooner."""

from __future__ import annotations

import numpy as np
import pytest

from components.ct.measure import measure_volume
from components.ct.store import Volume


def volume(hu: np.ndarray) -> Volume:
    return Volume(hu.astype(np.int16), np.diag([2.0, 1.0, 1.0, 1.0]))


@pytest.mark.parametrize("shape", [(1, 3, 5), (7, 8, 9), (20, 31, 17)])
def test_percentiles_are_numpys(shape: tuple[int, int, int]) -> None:
    native = volume(np.random.default_rng(sum(shape)).integers(-1024, 3000, shape))
    measured = measure_volume(native, native, None)
    expected = np.percentile(native.hu, [1, 50, 99])
    assert [measured[f"hu_p{name}"] for name in ("01", "50", "99")] == pytest.approx(expected, abs=0.05)
    assert (measured["hu_min"], measured["hu_max"]) == (native.hu.min(), native.hu.max())
    assert measured["hu_levels"] == len(np.unique(native.hu))


def test_bone_and_lung_are_shares_of_tissue() -> None:
    hu = np.full((4, 10, 10), -1000)
    hu[0], hu[1, :5], hu[1, 5:], hu[2, :2], hu[2, 2:4], hu[2, 4] = 40, 900, 300, -800, -930, -590
    measured = measure_volume(volume(hu), volume(hu), None)
    assert measured["bone_fraction"] == pytest.approx(50 / 200), "from 301 HU on"
    assert measured["lung_fraction"] == pytest.approx(20 / 200), "neither air nor fat"
    assert (measured["body_area_cm2"], measured["body_pieces"]) == (0.0, 0)


def test_slices_of_one_value_and_slices_seen_before_are_counted() -> None:
    hu = np.random.default_rng(0).integers(-1000, 1000, (10, 16, 16))
    hu[3], hu[4] = -1000, 7
    hu[7] = hu[8] = hu[1]
    hu[9] = hu[2]
    hu[9, 0, 0] += 1  # the same but for one corner
    measured = measure_volume(volume(hu), volume(hu), None)
    assert measured["constant_slices"] == 2
    assert measured["duplicate_slices"] == 2
