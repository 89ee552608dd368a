"""One scan beside the training set's data profile: in which of its bins it falls, and what lies outside of all.

The bins are those of ``components.quality.drift``, by which a release's training set is held beside the champion's. No
text of a header leaves here: a category that the training set has not is ``OTHER``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from components.quality.drift import FEATURES, FORMAT, OTHER, Feature, bin_labels, term

Profile = Mapping[str, Mapping[str, Any]]  # feature to its counts, as profile.json has them


def profile_of(content: Mapping[str, Any]) -> Profile:
    """The features of a ``profile.json`` that this code knows; none of a form that it does not."""
    features: Profile = content["features"] if content.get("format") == FORMAT else {}
    return {name: told for name, told in features.items() if name in FEATURES}


def training_bins(profile: Profile) -> dict[str, dict[str, int]]:
    """Feature to the training series in each bin, in the order of the bins; categories with ``OTHER`` among them."""
    return {name: _counts(told) for name, told in profile.items()}


def bins_of(measurements: Mapping[str, Any], profile: Profile) -> dict[str, str]:
    """Feature to the bin that a scan falls into; without those that it does not tell, such as the vendor of a NIfTI.

    Args:
        measurements: of its headers and voxels, by column.
        profile: of the training set.
    """
    found = {}
    for name, told in profile.items():
        feature = FEATURES[name]
        value = measurements.get(feature.column)
        if value is None or pd.isna(value) or value == "":
            continue
        label = _bin(value, feature) if feature.edges else term(name, str(value))
        if label:
            found[name] = label if label in _counts(told) else OTHER
    return found


def far_from(measurements: Mapping[str, Any], profile: Profile) -> list[str]:
    """One line per feature in which a scan lies far beyond every training series, or is of a kind that none of them
    is."""
    lines = []
    for name, label in bins_of(measurements, profile).items():
        counts, feature = _counts(profile[name]), FEATURES[name]
        held = [place for place, count in enumerate(counts.values()) if count]
        if not held:
            continue
        labels = list(counts)
        place = labels.index(label)
        if feature.edges:
            outside = not held[0] - 1 <= place <= held[-1] + 1  # a bin beside those of training is not far
            range_ = labels[held[0]] if held[0] == held[-1] else f"{labels[held[0]]} ... {labels[held[-1]]}"
            value = f"{float(measurements[feature.column]):g}"
            told = f"{value} {feature.unit}".strip()
        else:
            outside, told = not counts[label], "another"
            range_ = ", ".join(labels[each] for each in held[:5])
        if outside:
            lines.append(
                f"unlike_training: {feature.title}: {told}; training series have {range_} {feature.unit}".strip()
            )
    return lines


def _counts(told: Mapping[str, Any]) -> dict[str, int]:
    if "edges" in told:
        return dict(zip(bin_labels(told["edges"]), told["counts"], strict=True))
    return {**told["counts"], OTHER: told["counts"].get(OTHER, 0)}


def _bin(value: Any, feature: Feature) -> str:
    number = float(value)
    if not np.isfinite(number):
        return ""
    return bin_labels(feature.edges)[int(np.searchsorted(np.asarray(feature.edges), number, side="right"))]
