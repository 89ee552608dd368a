"""The plan of the phantom: who is scanned, evenly dealt, reproducible, and serialised without loss."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from components.sources.config import PhantomConfig
from components.sources.phantom import __main__ as command
from components.sources.phantom.dealing import plan_scans
from components.sources.phantom.faults import FAULTS, fault_named, faults_of
from components.sources.phantom.plan import FINDINGS, ICH_KINDS, ScanPlan

ANATOMIES = ("trunk", "head")


def config(**changes: object) -> PhantomConfig:
    values = {"pretrain_patients": 12, "evaluation_patients": 24, "retest_patients": 4, "fault_share": 0.3, "seed": 5}
    return PhantomConfig.model_validate(values | changes)


@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_equal_config_gives_equal_plan_and_another_seed_other_patients(anatomy: str) -> None:
    assert plan_scans(config(anatomy=anatomy)) == plan_scans(config(anatomy=anatomy))
    first, other = plan_scans(config(anatomy=anatomy)), plan_scans(config(anatomy=anatomy, seed=6))
    assert {p.series_uid for p in first}.isdisjoint(p.series_uid for p in other)


@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_json_round_trip_is_exact(anatomy: str) -> None:
    for plan in plan_scans(config(anatomy=anatomy)):
        assert ScanPlan.from_json(plan.to_json()) == plan


def test_json_with_a_missing_field_is_refused() -> None:
    with pytest.raises(ValueError, match="missing or unknown"):
        ScanPlan.from_json('{"anatomy": "head"}')


@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_no_patient_is_in_two_splits_and_names_are_unique(anatomy: str) -> None:
    plans = plan_scans(config(anatomy=anatomy))
    splits: dict[str, set[tuple[str, str]]] = {}
    for plan in plans:
        splits.setdefault(plan.patient_id, set()).add((plan.role, plan.split))
    assert all(len(found) == 1 for found in splits.values())
    assert len({p.series_uid for p in plans}) == len({p.name for p in plans}) == len(plans)
    assert all(len(p.series_uid) <= 64 and p.series_uid.startswith("2.25.") for p in plans)


@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_retest_scans_share_the_patient_but_nothing_of_the_scan(anatomy: str) -> None:
    plans = {p.series_uid: p for p in plan_scans(config(anatomy=anatomy))}
    second = [p for p in plans.values() if p.retest_of]
    assert len(second) == 4
    for plan in second:
        first = plans[plan.retest_of]
        assert (first.patient_id, first.anatomy_seed, first.findings) == (
            plan.patient_id,
            plan.anatomy_seed,
            plan.findings,
        )
        assert first.scan_seed != plan.scan_seed
        assert first.shift_mm != plan.shift_mm
        assert plan.split == first.split == "test"


@pytest.mark.parametrize("anatomy", ANATOMIES)
@pytest.mark.parametrize("share", [0.0, 0.2, 0.3, 0.5])
def test_at_least_the_share_is_faulty_evenly_and_never_in_evaluation(anatomy: str, share: float) -> None:
    plans = plan_scans(config(anatomy=anatomy, fault_share=share))
    faulty = [p for p in plans if p.fault]
    assert share <= len(faulty) / len(plans) <= share + 1 / len(plans)
    assert all(p.role == "pretrain" for p in faulty)
    counts = Counter(p.fault for p in faulty)
    if faulty:
        assert max(counts.values()) - min(counts.get(f.name, 0) for f in faults_of(anatomy)) <= 1


def test_the_command_scans_what_is_asked_and_says_where_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Faulty ones are a share of what is written, not of patients that are not scanned here."""

    def scan(plan: ScanPlan, folder: Path) -> pd.DataFrame:
        folder.mkdir(parents=True)
        return pd.DataFrame({"present": [True]})

    monkeypatch.setattr(command, "scan", scan)
    monkeypatch.setattr(
        sys, "argv", ["phantom", "--out", str(tmp_path / "out"), "--patients", "3", "--fault-share", "0.5"]
    )
    command.main()
    told = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert len(told) == 6
    assert told.count("clean") == 3
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["phantom", "--out", str(tmp_path / "file" / "out"), "--patients", "1"])
    with pytest.raises(SystemExit):
        command.main()
    assert capsys.readouterr().err == f"phantom: --out {tmp_path}/file/out: cannot be written: Not a directory\n"


@pytest.mark.parametrize("split", ["pretrain", "train", "test"])
def test_findings_are_dealt_evenly_in_every_split(split: str) -> None:
    plans = [
        p for p in plan_scans(config(anatomy="head", evaluation_patients=80, pretrain_patients=40)) if p.split == split
    ]
    plans = [p for p in plans if not p.retest_of and not p.fault]
    for finding in FINDINGS[1:]:
        assert 0.2 <= sum(finding in p.findings for p in plans) / len(plans) <= 0.42, finding
    assert 0.4 <= sum(any(kind in p.findings for kind in ICH_KINDS) for p in plans) / len(plans) <= 0.6


def test_more_retests_than_test_patients_is_a_readable_error() -> None:
    with pytest.raises(ValueError, match="at most 12"):
        plan_scans(config(anatomy="head", retest_patients=13))


def test_every_reason_code_of_the_fault_list_has_a_fault_and_each_fault_does_something() -> None:
    assert len({f.name for f in FAULTS}) == len(FAULTS) >= 17
    assert {f.suite for f in FAULTS} == {"headers", "volumes"}
    for fault in FAULTS:
        assert fault.replan or fault.corrupt_hu or fault.corrupt_slices or fault.corrupt_files
    with pytest.raises(ValueError, match="not known"):
        fault_named("nosuch")
