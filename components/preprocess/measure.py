"""Measurements of voxels, judged by the suite *volumes*; the service reports the same ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from components.preprocess.standardise import Body
from components.preprocess.store import AIR_HU, Volume

TISSUE_HU = -500  # above it lies tissue; below it lungs, fat-free air and bowel gas
SAMPLE = 2_000_000  # voxels that statistics are taken from: enough for a median to a fraction of a HU


def measure_volume(native: Volume, standard: Volume, body: Body | None) -> dict[str, Any]:
    """Measure a series' voxels.

    Args:
        native: as decoded, slices first.
        standard: on the line's grid, before the crop to the body.
        body: where the patient is in ``standard``.

    Returns:
        ``extent_mm`` (first to last slice), ``body_fraction``,
        ``body_median_hu``, ``constant_slices``, ``hu_p01``, ``hu_p50``, ``hu_p99`` and ``noise_hu`` (robust standard
        deviation of differences between neighbours in tissue, over the square root of two).
    """
    sample = native.hu.reshape(-1)[:: max(1, native.hu.size // SAMPLE)]
    inside = sample[sample > TISSUE_HU]
    low, middle, high = np.percentile(sample, [1, 50, 99])
    return {
        "extent_mm": round((native.hu.shape[0] - 1) * native.spacing[0], 3),
        "body_fraction": round(body.fraction, 4) if body else 0.0,
        "body_median_hu": float(np.median(inside)) if len(inside) else float(AIR_HU),
        "constant_slices": int(sum(plane.min() == plane.max() for plane in native.hu)),
        "hu_p01": round(float(low), 1),
        "hu_p50": round(float(middle), 1),
        "hu_p99": round(float(high), 1),
        "noise_hu": _noise(native),
    }


def _noise(volume: Volume) -> float:
    middle = volume.hu[volume.hu.shape[0] // 2].astype(np.float32)
    difference = np.diff(middle, axis=1)[(middle[:, 1:] > TISSUE_HU) & (middle[:, :-1] > TISSUE_HU)]
    if not len(difference):
        return 0.0
    return round(float(np.median(np.abs(difference - np.median(difference))) * 1.4826 / np.sqrt(2)), 2)
