"""The service's verdicts are Great Expectations' verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from components.ct.headers import measure_series
from components.curate.config import CurateConfig
from components.curate.suite import volumes_suite
from components.quality import judge
from components.quality.rules import Suite
from components.screen.config import ScreenConfig
from components.screen.suite import headers_suite
from components.settings import load_stage
from serving.judging import warnings_of

PARAMS = Path(__file__).parents[2] / "params.yaml"
HEADERS: dict[str, Any] = {
    **measure_series([]), "orientation": r"1\0\0\0\1\0", "gap_min_ratio": 1.0, "off_line_mm": 0.0,
    "identity_removed": True,
    "status": "acquired", "instances": 60, "unreadable_files": 0, "is_ct_image": True, "is_localizer": False,
    "missing_tags": "", "lossy": False, "burned_in": False, "matrices": 1, "pixel_spacings": 1, "orientations": 1,
    "positions": 60, "gap_ratio": 1.0, "tilt_degrees": 0.0, "thickness_min_mm": 3.0, "thickness_max_mm": 3.0,
}  # fmt: skip
HEADER_FAULTS: list[dict[str, Any]] = [
    {}, {"is_ct_image": False}, {"is_localizer": True}, {"unreadable_files": 2}, {"instances": 3, "positions": 3},
    {"thickness_max_mm": 8.0}, {"thickness_min_mm": 0.1}, {"positions": 59}, {"gap_ratio": 2.0}, {"tilt_degrees": 18.5},
    {"matrices": 2}, {"lossy": True}, {"burned_in": True}, {"missing_tags": "PixelSpacing"},
    {"gap_min_ratio": 0.5}, {"off_line_mm": 20.0}, {"orientation": r"1\0\0\0\2\0"}, {"rescale_slopes": 2},
    {"off_grid_mm": 1.2},
    {"tilt_degrees": 18.5, "gap_ratio": 6.4}, {"gap_ratio": None, "tilt_degrees": None},
]  # fmt: skip
VOXELS: dict[str, Any] = {
    "decoded": True,
    "extent_mm": 300.0,
    "body_fraction": 0.4,
    "body_median_hu": 30.0,
    "constant_slices": 0, "hu_p01": -1000.0, "hu_p99": 400.0, "air_fraction": 0.6, "saturated_fraction": 0.0,
    "hu_levels": 2000, "noise_hu": 12.0, "duplicate_slices": 0, "slice_jump": 2.0, "border_fraction": 0.0,
    "grid": "SPL 3 1 1", "body_area_cm2": 180.0, "bone_fraction": 0.15, "lung_fraction": 0.1, "cut_fraction": 0.03,
}  # fmt: skip
VOXEL_FAULTS: list[dict[str, Any]] = [
    {}, {"decoded": False}, {"extent_mm": 20.0}, {"body_fraction": 0.0}, {"body_median_hu": 1064.0},
    {"constant_slices": 1}, {"hu_levels": 256}, {"noise_hu": 0.0}, {"saturated_fraction": 0.2},
    {"body_area_cm2": 5.0},
]  # fmt: skip


def _table(base: dict[str, Any], faults: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([{"series": f"s{i:02d}", **base, **fault} for i, fault in enumerate(faults)])


def _compare(table: pd.DataFrame, suite: Suite) -> int:
    expected = judge.judge(table, suite).reasons
    for row in table.to_dict("records"):
        reasons = [warning.partition(":")[0] for warning in warnings_of(row, suite)]
        assert list(dict.fromkeys(reasons)) == expected.get(row["series"], []), row
    return len(expected)


def test_headers_are_judged_as_great_expectations_judges_them() -> None:
    config = load_stage(ScreenConfig, "wholebody", "screen", PARAMS)
    assert _compare(_table(HEADERS, HEADER_FAULTS), headers_suite(config, len(HEADER_FAULTS))) == len(HEADER_FAULTS) - 2


def test_voxels_are_judged_as_great_expectations_judges_them() -> None:
    config = load_stage(CurateConfig, "wholebody", "curate", PARAMS)
    assert _compare(_table(VOXELS, VOXEL_FAULTS), volumes_suite(config, len(VOXEL_FAULTS))) == len(VOXEL_FAULTS) - 1


def test_what_a_line_is_for_is_judged_as_great_expectations_judges_it() -> None:
    screen = load_stage(ScreenConfig, "head", "screen", PARAMS)
    stated = [
        {"body_part": text} for text in ("", "HEAD", "Brain ", "CHEST", "chest", r"HEAD\NECK", "special protocol")
    ]
    assert _compare(_table(HEADERS, stated), headers_suite(screen, len(stated))) == 2
    curate = load_stage(CurateConfig, "head", "curate", PARAMS)
    faults = [{}, {"body_area_cm2": 620.0}, {"bone_fraction": 0.04}, {"lung_fraction": 0.46}, {"body_area_cm2": 0.0}]
    assert _compare(_table(VOXELS, faults), volumes_suite(curate, len(faults))) == 3


def test_what_the_crop_leaves_out_is_told() -> None:
    """Parts of the patient, or a large table: a warning, for a person to look."""
    suite = volumes_suite(load_stage(CurateConfig, "wholebody", "curate", PARAMS), 2)
    judgement = judge.judge(_table(VOXELS, [{}, {"cut_fraction": 0.4}]), suite)
    assert judgement.reasons == {}
    assert judgement.warnings == ["at most 25% of what is denser than air lies outside of the crop"]


def test_a_warning_says_what_is_expected_and_what_was_found() -> None:
    suite = headers_suite(load_stage(ScreenConfig, "wholebody", "screen", PARAMS), rows=1)
    assert warnings_of({**HEADERS, "tilt_degrees": 18.5}, suite) == [
        "gantry_tilt: gantry tilt at most 1.0 degrees; found 18.5"
    ]
