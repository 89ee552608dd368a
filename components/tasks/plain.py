"""What needs no encoder: the plain features that stand beside every encoder, of a crop or of a whole scan.

An encoder that is no better than these has learnt nothing that a table of grey values does not tell.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from mahotas.features import haralick
from scipy import stats

from components.ct.store import Int16Array, StoredVolume
from components.figures.arrays import Array
from components.models.config import InputConfig
from components.models.intensity import BODY_HU
from components.tasks.config import EvaluateConfig, HistogramConfig
from components.tasks.features import AnyVolume, Method

HISTOGRAM, HU_STATISTICS, RADIOMICS, WINDOWS = "histogram", "hu_statistics", "radiomics", "windows"
PLAIN = (HISTOGRAM, HU_STATISTICS, RADIOMICS, WINDOWS)
PERCENTILES = (5, 25, 50, 75, 95)
BIN_HU, LOW_HU, LEVELS = (
    25,
    -1000,
    80,
)  # pyradiomics' default width; -1000 to 1000 HU, what lies outside in the end bins
TEXTURE = {"return_mean_ptp": True, "use_x_minus_y_variance": True}  # the other reading depends on the highest level
LEAST = 2  # voxels of a side: a texture is of neighbours


def baselines(config: EvaluateConfig, seen: InputConfig) -> dict[str, Method]:
    """Plain features by name, :data:`PLAIN`.

    Histogram and windows are of all that the encoder sees; HU statistics and radiomics of the central ``centre_mm`` of
    a crop. Of a whole scan radiomics are of the body: texture of air says nothing.

    Args:
        config: of evaluation: bins of the histogram, side of the centre.
        seen: what the encoder sees: its windows.
    """

    def centre(hu: Int16Array, directions: Array) -> Int16Array:
        return middle(hu, directions, config.centre_mm)

    def method(of: Callable[[Int16Array, Array], Array], whole: Callable[[Int16Array, Array], Array]) -> Method:
        return Method(
            points=lambda crops: np.stack([of(hu, crops.directions) for hu in crops.hu]),
            whole=lambda volume: whole(_voxels(volume), volume.affine[:3, :3]),
        )

    def all_bins(hu: Int16Array, _: Array) -> Array:
        return histogram(hu, config.histogram)

    def of_centre(hu: Int16Array, directions: Array) -> Array:
        return hu_statistics(centre(hu, directions))

    def of_windows(hu: Int16Array, _: Array) -> Array:
        return window_statistics(hu, seen.windows)

    return {
        HISTOGRAM: method(all_bins, all_bins),
        HU_STATISTICS: method(of_centre, of_centre),
        RADIOMICS: method(
            lambda hu, directions: radiomics(middle(hu, directions, config.centre_mm, LEAST)),
            lambda hu, _: radiomics(hu, hu > BODY_HU),
        ),
        WINDOWS: method(of_windows, of_windows),
    }


def histogram(hu: Int16Array, config: HistogramConfig) -> Array:
    """Share of voxels in each of the equal bins (bins,); values outside the range count in the end bins."""
    of_value = np.bincount(hu.ravel().view(np.uint16), minlength=2**16)  # the bins of 65,536 values, not of all voxels
    values = np.arange(2**16).astype(np.uint16).view(np.int16).astype(np.int64)
    bins = (values - config.low_hu) * config.bins // (config.high_hu - config.low_hu)
    counts = np.bincount(np.clip(bins, 0, config.bins - 1), weights=of_value, minlength=config.bins)
    share: Array = counts / counts.sum()
    return share


def hu_statistics(hu: Int16Array) -> Array:
    """Mean, standard deviation, least, greatest, and the 5th, 25th, 50th, 75th, 95th percentile of HU; (9,)."""
    values = hu.astype(np.float64).ravel()
    return np.array([values.mean(), values.std(), values.min(), values.max(), *np.percentile(values, PERCENTILES)])


def window_statistics(hu: Int16Array, windows: tuple[tuple[float, float], ...]) -> Array:
    """Mean and standard deviation of each window's grey values, of all voxels and of the middle half of every side:
    (windows * 4,). What an encoder's first normalisation and last pooling could tell without anything between.

    Args:
        windows: (centre, width) in HU; values are clipped to the window and scaled to [0, 1].
    """
    inner = tuple(slice(side // 4, max(side // 4 + 1, side - side // 4)) for side in hu.shape)
    whole, found = hu.astype(np.float64), []
    for at, width in windows:
        grey = whole - (at - width / 2)
        grey /= width
        np.clip(grey, 0, 1, out=grey)
        for part in (grey, np.ascontiguousarray(grey[inner])):
            found += [part.mean(), part.std()]
    return np.array(found)


def radiomics(hu: Int16Array, inside: npt.NDArray[np.bool_] | None = None) -> Array:
    """First-order and texture features, (42,): IBSI's (arXiv 1612.07003) as pyradiomics names them, where size and
    shape have no part, for a place has no outline.

    16 of first order, see :func:`first_order`; and the mean over the 13 directions of 3D, and the range, of
    Haralick's 13 (IEEE Trans. SMC 3, 610, 1973) from grey-level co-occurrence of neighbours, by mahotas.

    Args:
        hu: (n0, n1, n2), at least two voxels a side.
        inside: of which voxels; None: all, as where too few are true for a texture.
    """
    level = np.clip((hu.astype(np.int64) - LOW_HU) // BIN_HU, 0, LEVELS - 1).astype(np.uint8) + np.uint8(1)
    if inside is not None:
        try:
            texture = haralick(np.where(inside, level, np.uint8(0)), ignore_zeros=True, **TEXTURE)
            return np.concatenate([first_order(hu[inside]), texture])
        except ValueError:  # in one of the directions no two voxels of the mask are neighbours
            pass
    return np.concatenate([first_order(hu), haralick(level, **TEXTURE)])


def first_order(hu: Int16Array) -> Array:
    """pyradiomics' features of first order that do not grow with the number of voxels, (16,).

    Mean, median, minimum, maximum, range, variance, skewness, kurtosis (3 for a Gaussian), root mean square, 10th and
    90th percentile, interquartile range, mean absolute deviation, the same between these percentiles; entropy in bits
    and uniformity, of bins of 25 HU. Skewness and kurtosis of equal values are 0.
    """
    values = hu.astype(np.float64).ravel()
    mean, variance = values.mean(), values.var()
    low, quarter, median, three, high = np.percentile(values, (10, 25, 50, 75, 90))
    between = values[(values >= low) & (values <= high)]
    varies = variance > 0
    skewness = stats.skew(values) if varies else 0.0
    kurtosis = stats.kurtosis(values, fisher=False) if varies else 0.0
    counts = np.bincount(np.clip((hu.ravel().astype(np.int64) - LOW_HU) // BIN_HU, 0, LEVELS - 1))
    share = counts[counts > 0] / values.size
    return np.array(
        [
            mean, median, values.min(), values.max(), np.ptp(values), variance, skewness, kurtosis,
            np.sqrt(np.mean(values**2)), low, high, three - quarter, np.abs(values - mean).mean(),
            np.abs(between - between.mean()).mean(), -np.sum(share * np.log2(share)), np.sum(share**2),
        ]
    )  # fmt: skip


def middle(hu: Int16Array, directions: Array, side_mm: float, least: int = 1) -> Int16Array:
    """The central box of ``side_mm``, at least ``least`` voxels a side, cut to the array where that is smaller."""
    sides = [max(least, round(side_mm / mm)) for mm in np.linalg.norm(directions, axis=0)]
    starts = [n // 2 - side // 2 for n, side in zip(hu.shape, sides, strict=True)]
    box = tuple(slice(max(0, start), start + side) for start, side in zip(starts, sides, strict=True))
    return hu[box]


def _voxels(volume: AnyVolume) -> Int16Array:
    return volume.read().hu if isinstance(volume, StoredVolume) else volume.hu
