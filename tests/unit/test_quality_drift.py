"""Drift from the champion's training set: the index, its noise, the profile, and the verdict of the suite *release*."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest

from components.curate import drift as stage
from components.curate.config import CurateConfig
from components.errors import UserError
from components.files import read_json, write_json
from components.quality import drift
from components.quality.drift import DriftConfig, FeatureName
from components.settings import ParamsError, parse

CONFIG = DriftConfig(warn_psi=0.1, critical_psi=0.25, confidence=0.99, critical_features=())


def training_set(series: int, *, thickness: float = 3.0, vendor: str = "SIEMENS", seed: int = 1) -> dict[str, Any]:
    """The profile of so many series, one per patient."""
    rng = np.random.default_rng(seed)
    keys = [f"s{i:04d}" for i in range(series)]
    curated = pd.DataFrame({"series": keys, "patient": keys, "accepted": True, "role": "pretrain"})
    screened = pd.DataFrame({
        "series": keys, "gap_median_mm": 3.0, "thickness_max_mm": thickness,
        "spacing_row_mm": rng.normal(0.8, 0.1, series), "instances": rng.integers(40, 200, series),
        "body_part": "CHEST", "manufacturer": vendor, "kernel": "B30f",
        "kvp": rng.choice(["100", "120"], series),
    })  # fmt: skip
    hu = {name: rng.normal(0, 30, series) for name in ("body_median_hu", "hu_p01", "hu_p50", "hu_p99")}
    catalogue = pd.DataFrame({
        "series": keys, "extent_mm": rng.normal(300, 50, series), "body_fraction": rng.uniform(0.1, 0.5, series), **hu,
        "noise_hu": rng.uniform(5, 50, series),
    })  # fmt: skip
    return drift.profile(curated, screened, catalogue)


def champion(profile: dict[str, Any] | None) -> dict[str, Any]:
    return {"bundle": "ab" * 32, "evaluation_data": "d", "metrics": {"tasks": {}}, "profile": profile}


def test_known_value() -> None:
    """(60, 40) beside (50, 50), half a series added to each bin."""
    p, q = (60.5 / 101, 40.5 / 101), (50.5 / 101, 50.5 / 101)
    expected = sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert drift.psi([60, 40], [50, 50]) == pytest.approx(expected, abs=1e-6)
    assert expected == pytest.approx(0.0397, abs=1e-4)


def test_zero_for_equal_and_symmetric() -> None:
    now, before = [12, 40, 8, 0, 30], [30, 20, 9, 0, 10]
    assert drift.psi(now, now) == 0.0
    assert drift.psi(now, before) == drift.psi(before, now) > 0


def test_an_unseen_category_is_finite_and_large() -> None:
    figure = drift.psi([50, 50, 0], [50, 0, 50])
    assert math.isfinite(figure)
    assert figure > 2


def test_small_counts_weigh_little() -> None:
    """Bins with fewer than five series in both together are one bin; empty ones do not count; nothing is no drift."""
    assert drift.psi([50, 1, 1, 0, 0, 0], [50, 0, 0, 1, 1, 0]) == 0.0
    assert drift.psi([50, 50, 0], [40, 60, 0]) == drift.psi([50, 50], [40, 60])
    assert drift.psi([0, 0], [3, 4]) == 0.0
    assert drift.psi([], []) == 0.0


def test_the_noise_level_is_the_quantile_of_two_samples_of_one_population() -> None:
    assert drift.noise_level([50, 50], [50, 50], (100, 100), 0.95) == pytest.approx(3.841 * 2 / 100, abs=1e-4)
    assert drift.noise_level([50, 0], [50, 0], (100, 100), 0.99) == 0.0


@pytest.mark.parametrize(("n", "m"), [(30, 30), (30, 3000), (400, 400)])
@pytest.mark.parametrize("shares", [np.full(10, 0.1), 1 / np.arange(1, 60)], ids=["even", "long tail"])
def test_chance_alone_seldom_exceeds_the_noise_level(n: int, m: int, shares: np.ndarray[Any, Any]) -> None:
    rng = np.random.default_rng(5)
    exceeded = 0
    for _ in range(500):
        now, before = (rng.multinomial(size, shares / shares.sum()).tolist() for size in (n, m))
        exceeded += drift.psi(now, before) > drift.noise_level(now, before, (n, m), 0.99)
    assert exceeded / 500 <= 0.025


def test_the_noise_level_leaves_a_real_shift_visible() -> None:
    now, before = [2, 28, 10], [26, 4, 10]
    assert drift.psi(now, before) > drift.noise_level(now, before, (40, 40), 0.99)


def test_every_series_is_in_every_histogram() -> None:
    profile = training_set(40)
    assert (profile["series"], profile["patients"]) == (40, 40)
    for name, feature in profile["features"].items():
        counts = feature["counts"] if "edges" in feature else feature["counts"].values()
        assert sum(counts) + feature["missing"] == 40, name


def test_the_profile_holds_accepted_pretraining_series_only_and_no_key() -> None:
    curated = pd.DataFrame({
        "series": ["s1", "s2", "s3"], "patient": ["p1", "p2", "p3"], "accepted": [True, False, True],
        "role": ["pretrain", "pretrain", "evaluation"],
    })  # fmt: skip
    screened = pd.DataFrame(
        {"series": ["s1", "s2", "s3"], "manufacturer": ["GE MEDICAL SYSTEMS", "SIEMENS", "Philips"]}
    )
    profile = drift.profile(curated, screened, pd.DataFrame({"series": ["s1"], "extent_mm": [250.0]}))
    assert profile["features"]["vendor"]["counts"] == {"GE": 1}
    assert profile["features"]["extent"]["counts"][4] == 1  # 250 mm belongs to the bin that it begins
    assert profile["features"]["kernel"] == {"counts": {}, "missing": 1}
    assert not any(key in str(profile) for key in ("s1", "p1"))


@pytest.mark.parametrize(
    ("feature", "text", "expected"),
    [
        ("vendor", "Philips Medical Systems", "PHILIPS"), ("vendor", "", ""), ("kernel", "Br40d\\3", "BR40D"),
        ("kvp", "120.0", "120"), ("kvp", "none", ""), ("body_region", "Head-Neck", "HEADNECK"),
        ("body_region", "DOE JANE", "OTHER"), ("body_region", " ", ""),
    ],
)  # fmt: skip
def test_categories(feature: str, text: str, expected: str) -> None:
    assert drift.term(feature, text) == expected


def test_the_first_release_is_not_judged_and_says_so() -> None:
    for of, why in ((None, "no champion"), (champion(None), "no data profile")):
        found = drift.judge_release(training_set(30), of, CONFIG)
        assert (found["judged"], found["rules"]) == (False, [])
        assert why in found["why"]


def test_the_same_population_is_stable_and_a_shifted_feature_is_named() -> None:
    now = training_set(200, thickness=1.0, vendor="Canon", seed=2)
    same = drift.judge_release(now, champion(training_set(200, thickness=1.0, vendor="Canon", seed=3)), CONFIG)
    assert same["warnings"] == []
    assert all(rule["success"] for rule in same["rules"])
    found = drift.judge_release(now, champion(training_set(200)), CONFIG)
    shifted = [row["feature"] for row in found["features"] if row["verdict"] != "stable"]
    assert shifted == ["slice_thickness", "vendor"]
    assert {text.partition(":")[0] for text in found["warnings"]} == {"Slice thickness", "Vendor"}
    assert found["champion"] == "ab" * 32


def test_a_critical_feature_stops_the_run() -> None:
    config = CONFIG.model_copy(update={"critical_features": ("vendor",)})
    with pytest.raises(UserError, match=r"suite release: critical expectation failed: .*Vendor: PSI at most"):
        drift.judge_release(training_set(200), champion(training_set(200, vendor="Canon")), config)


def test_other_bins_are_not_compared_and_reported() -> None:
    before = training_set(50)
    before["features"]["extent"]["edges"] = [1.0, 2.0]
    found = drift.judge_release(training_set(50), champion(before), CONFIG)
    (row,) = [row for row in found["features"] if row["verdict"] == "not compared"]
    assert (row["feature"], row["psi"]) == ("extent", None)
    assert found["warnings"] == ["Scan length: bins as in the champion's profile"]
    with pytest.raises(UserError, match="format 99 is not known"):
        drift.judge_release(before, champion({**before, "format": 99}), CONFIG)


def test_the_champion_is_read_from_the_tracked_file(tmp_path: Path) -> None:
    data = tmp_path / "data" / "wholebody"
    assert drift.champion_of(data) is None
    write_json(tmp_path / "infra" / "champions" / "wholebody.json", {"champion": None})
    assert drift.champion_of(data) is None
    write_json(tmp_path / "infra" / "champions" / "wholebody.json", {"champion": champion(None)})
    assert drift.champion_of(data) == champion(None)


def test_the_stage_writes_what_it_found_apart_from_what_a_release_is_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(Path(__file__).resolve().parents[2] / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "data" / "head" / "curate" / "profile.json", training_set(200))
    tracked = tmp_path / "infra" / "champions" / "head.json"
    write_json(tracked, {"champion": None})
    stage.main("head")
    written = tmp_path / "data" / "head" / "drift" / "drift.json"
    assert read_json(written)["judged"] is False
    write_json(tracked, {"champion": champion(training_set(200, vendor="Canon"))})
    stage.main("head")
    found = {feature["feature"]: feature["verdict"] for feature in read_json(written)["features"]}
    assert (found["vendor"], found["slices"]) == ("strongly shifted", "stable")


def test_parameters_name_known_features_in_order() -> None:
    assert get_args(FeatureName) == tuple(drift.FEATURES)
    block = {"warn_psi": 0.1, "critical_psi": 0.25, "confidence": 0.99, "critical_features": ["vendors"]}
    with pytest.raises(ParamsError, match=r"drift.critical_features.0: 'vendors' is not allowed: .*'vendor'"):
        parse(DriftConfig, block, "wholebody.curate.drift")
    with pytest.raises(ParamsError, match="warn_psi at most critical_psi"):
        parse(DriftConfig, {**block, "critical_psi": 0.05, "critical_features": []}, "wholebody.curate.drift")
    assert CurateConfig.model_fields["drift"].annotation is DriftConfig
