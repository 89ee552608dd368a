"""Great Expectations judges: every rule can fail, the reason is the rule's, critical failures stop the run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from components.acquire.headers import measure_series
from components.params import UserError, load_stage
from components.quality.judge import judge, write_data_docs
from components.quality.suites import headers
from components.screen.config import ScreenConfig

ROOT = Path(__file__).resolve().parents[2]
CLEAN = {
    **measure_series([]), "status": "acquired", "is_ct_image": True, "instances": 60, "positions": 60,
    "orientations": 1, "matrices": 1, "pixel_spacings": 1, "thickness_min_mm": 3.0, "thickness_max_mm": 3.0,
    "gap_ratio": 1.0, "tilt_degrees": 0.0,
}  # fmt: skip
FAULTS: list[tuple[str, dict[str, object]]] = [
    ("acquire_failed", {"status": "failed"}),
    ("not_ct", {"is_ct_image": False}),
    ("localizer", {"is_localizer": True}),
    ("unreadable_files", {"unreadable_files": 1}),
    ("missing_tags", {"missing_tags": "PixelSpacing"}),
    ("too_few_slices", {"instances": 3, "positions": 3}),
    ("slice_thickness", {"thickness_min_mm": 0.1}),
    ("slice_thickness", {"thickness_max_mm": 9.0}),
    ("repeated_positions", {"positions": 58}),
    ("uneven_spacing", {"gap_ratio": 2.0}),
    ("gantry_tilt", {"tilt_degrees": 12.0}),
    ("mixed_geometry", {"orientations": 2}),
    ("mixed_geometry", {"matrices": 2}),
    ("lossy_compression", {"lossy": True}),
    ("burned_in_annotation", {"burned_in": True}),
]


@pytest.fixture(scope="module")
def config() -> ScreenConfig:
    return load_stage(ScreenConfig, "wholebody", "screen", ROOT / "params.yaml")


def test_every_header_fault_gives_its_reason_and_clean_series_none(config: ScreenConfig) -> None:
    rows = [{"series": "clean", **CLEAN}]
    rows += [{"series": f"{i:02d}-{reason}", **CLEAN, **fault} for i, (reason, fault) in enumerate(FAULTS)]
    judgement = judge(pd.DataFrame(rows), headers(config, len(rows)))
    assert judgement.reasons == {f"{i:02d}-{reason}": [reason] for i, (reason, _) in enumerate(FAULTS)}
    assert {rule["reason"] for rule in judgement.results if not rule["success"]} == {r for r, _ in FAULTS} | {
        "mostly_rejected"
    }
    assert judgement.warnings


def test_a_lost_or_doubled_series_stops_the_run(config: ScreenConfig) -> None:
    table = pd.DataFrame([{"series": "a", **CLEAN}, {"series": "a", **CLEAN}])
    with pytest.raises(UserError, match="every series once"):
        judge(table, headers(config, 2))
    with pytest.raises(UserError, match="all 3 series are there"):
        judge(table.drop_duplicates("series"), headers(config, 3))


def test_data_docs_are_built(config: ScreenConfig, tmp_path: Path) -> None:
    table = pd.DataFrame([{"series": "a", **CLEAN, "accepted": 1.0}])
    index = write_data_docs([("headers", table, headers(config, 1))], tmp_path / "docs")
    assert "headers" in index.read_text()
    for page in index.parent.rglob("*.html"):
        assert 'src="http' not in page.read_text(), f"{page.name} calls out"
        assert '<link rel="stylesheet" href="http' not in page.read_text()
