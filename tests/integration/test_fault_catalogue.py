"""The fault catalogue: whatever is planted is caught, with its reason; clean series, phantom or real, are accepted."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from components.curate.config import CurateConfig
from components.params import UserError, load_stage
from components.phantom.config import PhantomConfig
from components.phantom.plan import plan_scans
from components.phantom.scanner import scan
from components.preprocess.config import PreprocessConfig
from components.quality import judge, suites
from components.screen.config import ScreenConfig
from tests.fault_catalogue import PARAMS, Catalogue, markdown, measured_headers, measured_voxels

SARCOMAS = [f"sts_{n:03d}" for n in range(1, 13)]
UNSTATED = ["abdomen_3slices", "abdomen_jpeg2000"]  # identifiers, and no statement that they were removed


def test_every_planted_fault_is_caught_with_its_reason(tmp_path: Path) -> None:
    outcomes = Catalogue(tmp_path).outcomes()
    print(markdown(outcomes))
    assert len({(o.suite, o.fault) for o in outcomes}) == len(outcomes) >= 100
    assert [(o.fault, o.reason, o.found) for o in outcomes if not o.caught] == []
    assert all(o.expectation for o in outcomes), "the table names the expectation"
    assert set(Counter(o.suite for o in outcomes)) == {"cohort", "headers", "volumes"}
    assert {o.severity for o in outcomes} == {"reject", "critical", "warning"}


@pytest.mark.parametrize("line", ["wholebody", "head"])
def test_clean_phantom_series_are_accepted(line: str, tmp_path: Path) -> None:
    config = PhantomConfig(pretrain_patients=4, evaluation_patients=4, retest_patients=1, fault_share=0.0, seed=601)
    folders = {}
    for plan in plan_scans(line, config):
        folders[plan.name] = tmp_path / plan.name
        scan(plan, folders[plan.name])
    headers, volumes = judged_as(line, folders, "critical")
    assert (headers, volumes) == ({}, {})


def judged_as(line: str, folders: dict[str, Path], privacy: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reasons of the suites *headers* and *volumes*, the latter of the series that the former accepts."""
    screen = load_stage(ScreenConfig, line, "screen", PARAMS).model_copy(update={"privacy": privacy})
    table = pd.DataFrame([{"series": name, **measured_headers(folder)} for name, folder in folders.items()])
    headers = judge.judge(table, suites.headers(screen, len(table))).reasons
    grid = load_stage(PreprocessConfig, line, "preprocess", PARAMS)
    rows = [{"series": n, **measured_voxels(folder, grid)} for n, folder in folders.items() if n not in headers]
    suite = suites.volumes(load_stage(CurateConfig, line, "curate", PARAMS), len(rows))
    return headers, judge.judge(pd.DataFrame(rows), suite).reasons


def test_real_series_keep_their_fates(ct_root: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(ct_root / "dicom" / "lidc_idri_0314.zip") as archive:
        archive.extractall(tmp_path)
    lidc = next(tmp_path.rglob("*.dcm")).parent
    folders = {name: ct_root / "dicom" / name for name in (*SARCOMAS, *UNSTATED, "ge_head_tilted")}
    headers, volumes = judged_as("wholebody", {"lidc": lidc, **folders}, "warning")
    assert headers == {
        "abdomen_3slices": ["too_few_slices"],
        "ge_head_tilted": ["slice_thickness", "uneven_spacing", "gantry_tilt"],
    }
    assert volumes == {"abdomen_jpeg2000": ["scan_too_short"]}


def test_a_real_export_that_states_nothing_stops_the_run(ct_root: Path) -> None:
    folders = {name: ct_root / "dicom" / name for name in (*UNSTATED, "sts_001")}
    with pytest.raises(
        UserError, match=r"direct_identifiers: .*2 series: abdomen_3slices, abdomen_jpeg2000"
    ) as stopped:
        judged_as("wholebody", folders, "critical")
    assert "JANCT000" not in str(stopped.value), "no value of an identifier is shown"
