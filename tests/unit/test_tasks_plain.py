"""Plain features against other implementations and by hand, on random and on degenerate voxels."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from scipy import stats
from test_tasks_scores import config

from components.ct.store import Int16Array, Volume, crops_at
from components.figures.arrays import Array
from components.models.config import InputConfig
from components.settings import parse
from components.tasks.config import HistogramConfig
from components.tasks.features import Crops
from components.tasks.plain import (
    BIN_HU,
    LOW_HU,
    PLAIN,
    baselines,
    first_order,
    histogram,
    hu_statistics,
    middle,
    radiomics,
    window_statistics,
)

SEEN = parse(
    InputConfig,
    {"sees": "crop", "orientation": "SPL", "spacing_mm": [3.0, 2.0, 2.0], "size_vox": [8, 16, 16],
     "windows": [[40, 80], [512, 3072]]},
    "t",
)  # fmt: skip
DIRECTIONS = [move for move in itertools.product((-1, 0, 1), repeat=3) if move > (0, 0, 0)]


def noise(shape: tuple[int, int, int] = (6, 7, 8), spread: int = 120) -> Int16Array:
    return np.random.default_rng(3).normal(20, spread, shape).astype(np.int16)


def co_occurrence(level: Array, inside: Array, move: tuple[int, int, int]) -> Array:
    """Symmetric, normed, voxel by voxel."""
    found = np.zeros((81, 81))
    for at in np.ndindex(*level.shape):
        other = tuple(a + b for a, b in zip(at, move, strict=True))
        if all(0 <= a < side for a, side in zip(other, level.shape, strict=True)) and inside[at] and inside[other]:
            found[int(level[at]), int(level[other])] += 1
            found[int(level[other]), int(level[at])] += 1
    return found / found.sum()


def textures(hu: Int16Array, inside: Array) -> Array:
    """Energy, contrast and inverse difference moment of each direction, by their definitions."""
    level = np.clip(np.floor((hu.astype(float) - LOW_HU) / BIN_HU), 0, 79) + 1
    i, j = np.mgrid[0:81, 0:81]
    of = [co_occurrence(level, inside, move) for move in DIRECTIONS]
    return np.array([[(p**2).sum(), ((i - j) ** 2 * p).sum(), (p / (1 + (i - j) ** 2)).sum()] for p in of])


@pytest.mark.parametrize("masked", [False, True])
def test_textures_are_haralicks_over_the_thirteen_directions(masked: bool) -> None:
    hu = noise()
    inside = np.ones(hu.shape, dtype=bool)
    if masked:
        inside[:, :, :3] = False
    found, expected = radiomics(hu, inside if masked else None)[16:], textures(hu, inside)
    for column, at in enumerate((0, 1, 4)):
        assert found[at] == pytest.approx(expected[:, column].mean(), rel=1e-6)
        assert found[13 + at] == pytest.approx(np.ptp(expected[:, column]), rel=1e-6)


def test_first_order_by_another_library_and_by_hand() -> None:
    hu = noise(spread=400)
    values = hu.astype(float).ravel()
    found = first_order(hu)
    low, high = np.percentile(values, (10, 90))
    between = values[(values >= low) & (values <= high)]
    counts = np.histogram(np.clip(values, -1000, 999), bins=np.arange(-1000, 1001, 25))[0] / values.size
    expected = [
        values.mean(), np.median(values), values.min(), values.max(), np.ptp(values), values.var(),
        stats.skew(values), stats.kurtosis(values) + 3, np.sqrt((values**2).mean()), low, high, stats.iqr(values),
        np.abs(values - values.mean()).mean(), np.abs(between - between.mean()).mean(),
        stats.entropy(counts, base=2), (counts**2).sum(),
    ]  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("value", [-32768, -1024, 0, 32767])
def test_equal_voxels_have_finite_features(value: int) -> None:
    hu = np.full((2, 2, 2), value, dtype=np.int16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for inside in (None, hu > 0, np.zeros(hu.shape, dtype=bool)):
            found = radiomics(hu, inside)
            assert len(found) == 42
            assert np.isfinite(found).all()
    assert found[[5, 6, 7, 14, 15]].tolist() == [0, 0, 0, 0, 1]


def test_windows_are_seen_as_an_encoder_sees_them() -> None:
    hu = noise((4, 8, 8))
    found = window_statistics(hu, SEEN.windows)
    grey = np.clip(hu / 80.0, 0, 1)
    inner = grey[1:3, 2:6, 2:6]
    assert found[:4] == pytest.approx([grey.mean(), grey.std(), inner.mean(), inner.std()])
    assert len(found) == 8
    assert np.isfinite(window_statistics(hu[:1, :1, :1], SEEN.windows)).all()


def test_every_method_of_points_and_of_whole_scans() -> None:
    methods = baselines(config(), SEEN)
    assert tuple(methods) == PLAIN
    hu = noise((8, 16, 16))
    volume = Volume(hu, np.diag([3.0, 2.0, 2.0, 1.0]))
    crops = Crops(hu[None], volume.affine[:3, :3])
    for name, method in methods.items():
        (of_crop,) = method.points(crops)
        assert of_crop.shape == method.whole(volume).shape, name
    centre = middle(hu, volume.affine[:3, :3], config().centre_mm, 2)
    assert np.array_equal(methods["radiomics"].points(crops)[0], radiomics(centre))
    half = hu.copy()
    half[:, :, :8] = -1000
    one = methods["radiomics"].whole(Volume(half, volume.affine))
    half[:, :, :8] = -900
    assert np.array_equal(one, methods["radiomics"].whole(Volume(half, volume.affine))), "of the body alone"


def test_histogram_hu_statistics_and_the_middle_by_hand() -> None:
    hu = np.array([[[-2000, -1000, -1, 0, 999, 3000]]], dtype=np.int16)
    bins = parse(HistogramConfig, {"bins": 2, "low_hu": -1000, "high_hu": 1000}, "t")
    assert histogram(hu, bins).tolist() == [0.5, 0.5]
    assert hu_statistics(hu)[[0, 2, 3]].tolist() == [hu.mean(), -2000.0, 3000.0]
    volume = Volume(np.arange(27, dtype=np.int16).reshape(3, 3, 3), np.eye(4))
    assert crops_at(volume, [[1.0, 1.0, 1.0]], (1, 1, 1)).item() == 13
    assert middle(volume.hu, np.diag([1.0, 0.5, 1.0]), 1.0).ravel().tolist() == [10, 13]
    assert middle(volume.hu, np.eye(3), 1.0, 2).shape == (2, 2, 2)
    assert (crops_at(volume, [[9.0, 9.0, 9.0]], (2, 2, 2)) == -1024).all()
