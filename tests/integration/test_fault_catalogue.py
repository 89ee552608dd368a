"""The fault catalogue: whatever is planted is caught, with its reason; clean series, phantom or real, are accepted."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pydicom
import pytest

from components.ct.dicom import read_series
from components.ct.measure import measure_volume
from components.ct.nifti import read_nifti
from components.ct.standardise import find_body, resample_only
from components.ct.store import Volume
from components.curate.config import CurateConfig
from components.curate.suite import volumes_suite
from components.errors import UserError
from components.preprocess.config import PreprocessConfig
from components.quality import judge
from components.screen.config import ScreenConfig
from components.screen.suite import headers_suite
from components.settings import load_stage
from components.sources.config import PhantomConfig
from components.sources.phantom.dealing import plan_scans
from components.sources.phantom.scanner import scan
from serving.judging import warnings_of
from tests.fault_catalogue import PARAMS, Catalogue, markdown, measured_headers, measured_voxels

SARCOMAS = [f"sts_{n:03d}" for n in range(1, 13)]
CONTENT = {"body_size", "little_bone", "much_lung"}  # what tells a head from a trunk
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
    config = PhantomConfig.model_validate(
        {"anatomy": "head" if line == "head" else "trunk"}
        | {"pretrain_patients": 4, "evaluation_patients": 4, "retest_patients": 1, "fault_share": 0.0, "seed": 601}
    )
    folders = {}
    for plan in plan_scans(config):
        folders[plan.name] = tmp_path / plan.name
        scan(plan, folders[plan.name])
    headers, volumes = judged_as(line, folders, "critical")
    assert (headers, volumes) == ({}, {})


def judged_as(line: str, folders: dict[str, Path], privacy: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reasons of the suites *headers* and *volumes*, the latter of the series that the former accepts."""
    screen = load_stage(ScreenConfig, line, "screen", PARAMS).model_copy(update={"privacy": privacy})
    table = pd.DataFrame([{"series": name, **measured_headers(folder)} for name, folder in folders.items()])
    headers = judge.judge(table, headers_suite(screen, len(table))).reasons
    grid = load_stage(PreprocessConfig, line, "preprocess", PARAMS)
    rows = [{"series": n, **measured_voxels(folder, grid)} for n, folder in folders.items() if n not in headers]
    suite = volumes_suite(load_stage(CurateConfig, line, "curate", PARAMS), len(rows))
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


def in_line(line: str, volume: Volume) -> list[str]:
    """What the suite *volumes* of a line says of what a volume shows."""
    grid = load_stage(PreprocessConfig, line, "preprocess", PARAMS)
    standard = resample_only(volume, grid)
    measured = measure_volume(volume, standard, find_body(standard, grid.foreground_hu))
    suite = volumes_suite(load_stage(CurateConfig, line, "curate", PARAMS), 1)
    warnings = warnings_of({"decoded": True, **measured}, suite)
    return [w.partition(":")[0] for w in warnings if w.partition(":")[0] in CONTENT]


def test_a_real_head_is_a_head(ct_root: Path) -> None:
    """Two protocols in one series, of 4 and of 7 mm: each for itself is one stack."""
    slices = sorted(
        (ct_root / "dicom" / "ge_head_tilted").iterdir(),
        key=lambda path: float(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2]),
    )
    for part in (slices[:14], slices[14:]):
        assert in_line("head", read_series(part)) == []


@pytest.mark.parametrize("name", ["abdomen_pelvis", "aorta_cta", "pulmonary_cta"])
def test_a_real_trunk_is_no_head(ct_root: Path, name: str) -> None:
    (path,) = [p for p in (ct_root / "nifti" / name).glob("*.nii.gz") if p.name.startswith(("ct", "image", "volume"))]
    volume = read_nifti(path)
    assert in_line("head", volume) != []
    assert in_line("wholebody", volume) == []


@pytest.mark.parametrize("name", ["sts_001", "sts_002", "sts_008", "abdomen_jpeg2000", "lidc_idri_0314"])
def test_a_real_chest_abdomen_or_limb_is_no_head(ct_root: Path, tmp_path: Path, name: str) -> None:
    folder = ct_root / "dicom" / name
    if not folder.is_dir():
        with zipfile.ZipFile(folder.with_suffix(".zip")) as archive:
            archive.extractall(tmp_path)
        folder = next(tmp_path.rglob("*.dcm")).parent
    volume = read_series(sorted(p for p in folder.iterdir() if p.suffix in ("", ".dcm") or name.startswith("abdomen")))
    assert in_line("head", volume) != []
    assert in_line("wholebody", volume) == []
