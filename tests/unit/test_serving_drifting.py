"""A scan beside the training set's data profile: its bins are those that training was counted in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.quality.drift import FEATURES, OTHER, profile
from serving.drifting import bins_of, far_from, profile_of, training_bins
from serving.limits import Limits
from serving.load import Load
from serving.metrics import Metrics

NUMBERS = {feature.column: name for name, feature in FEATURES.items() if feature.edges}


def table(rows: int = 40) -> pd.DataFrame:
    random = np.random.default_rng(3)
    values: dict[str, Any] = {column: random.uniform(0.5, 300, rows) for column in NUMBERS}
    values |= {"body_part": "CHEST", "manufacturer": ["GE MEDICAL SYSTEMS", "SIEMENS"] * (rows // 2)}
    values |= {"kernel": "B30f", "kvp": "120"}
    return pd.DataFrame({"series": [f"s{n}" for n in range(rows)], **values})


@pytest.fixture
def training() -> pd.DataFrame:
    return table()


@pytest.fixture
def told(training: pd.DataFrame) -> dict[str, Any]:
    curated = pd.DataFrame({"series": training["series"], "patient": training["series"], "role": "pretrain"})
    made = profile(curated.assign(accepted=True), training, training[["series"]])
    return dict(profile_of(made))


def test_the_bins_of_training_scans_add_up_to_the_profile(training: pd.DataFrame, told: dict[str, Any]) -> None:
    counted: dict[str, dict[str, int]] = {name: dict.fromkeys(bins, 0) for name, bins in training_bins(told).items()}
    for row in training.to_dict("records"):
        for name, label in bins_of(row, told).items():
            counted[name][label] += 1
        assert far_from(row, told) == []
    assert counted == training_bins(told)
    assert set(counted) == set(FEATURES)


def test_a_scan_beyond_all_of_training_is_told(training: pd.DataFrame, told: dict[str, Any]) -> None:
    row = {**training.iloc[0], "gap_median_mm": 0.1, "manufacturer": "SECRET^PATIENT", "kvp": "80"}
    told["slice_spacing"] = {**told["slice_spacing"], "counts": [0, 0, 5, 0, 7, *[0] * 8]}
    assert far_from(row, told) == [
        "unlike_training: Slice spacing: 0.1 mm; training series have 0.7 to 0.9 ... 1.1 to 1.4 mm",
        "unlike_training: Vendor: another; training series have GE, SIEMENS",
        "unlike_training: Tube voltage: another; training series have 120 kVp",
    ]
    (above,) = (line for line in far_from({**row, "gap_median_mm": 9.0}, told) if "spacing" in line)
    assert "9 mm" in above
    assert bins_of(row, told)["vendor"] == OTHER
    for near in (0.6, 0.95, 1.5):  # the bins beside, too
        assert far_from({**row, "gap_median_mm": near, "manufacturer": "GE", "kvp": "120"}, told) == []


def test_what_a_scan_does_not_tell_is_in_no_bin(told: dict[str, Any]) -> None:
    for nothing in (None, "", float("nan")):
        assert bins_of({feature.column: nothing for feature in FEATURES.values()}, told) == {}
    assert bins_of({}, told) == {}
    assert bins_of({"hu_p50": float("inf")}, told) == {}


def test_a_profile_of_another_form_is_left_alone() -> None:
    assert profile_of({"format": 99, "features": {"vendor": {}}}) == {}


def test_the_figures_have_a_fixed_number_of_bins(told: dict[str, Any]) -> None:
    metrics = Metrics("m", "d", training_bins(told))
    before = metrics.text(Load(Limits()), True).splitlines()
    metrics.saw({"vendor": "GE", "kernel": "made up", "no such": "thing"})
    metrics.saw({"vendor": OTHER})
    after = metrics.text(Load(Limits()), True).decode().splitlines()
    assert len(after) == len(before)
    assert 'ctfoundry_scans_total{bin="GE",feature="vendor"} 1.0' in after
    assert 'ctfoundry_scans_total{bin="OTHER",feature="vendor"} 1.0' in after
    assert 'ctfoundry_training_series{bin="GE",feature="vendor"} 20.0' in after
    assert "made up" not in "".join(after)
