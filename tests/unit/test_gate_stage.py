"""The gate as it is run: always a decision, exit code 0 or 3, one line per failed gate."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from components.files import read_json, write_json
from components.tables import write_table
from flows.run import GateFailed, Run
from tests.unit.gate_blocks import params

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = {
    "value": 0.9, "low": 0.8, "high": 0.95, "random": 0.7,
    "difference": 0.2, "difference_low": 0.1, "difference_high": 0.3,
}  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project's folder with just what the gate reads; every gate passes."""
    data = tmp_path / "data" / "wholebody"
    metrics = {"evaluation_data": "d1", "tasks": {"organs": {"linear_auc": NUMBERS}}, "not_evaluated": {},
               "primary": {"organs": "linear_auc"}, "worse": {"organs": 1.0}, "lower_is_better": [], "too_few": [],
               "subgroups": {}, "falls": {}}  # fmt: skip
    write_json(data / "evaluate" / "metrics.json", metrics)
    write_table(data / "evaluate" / "tasks.parquet", pd.DataFrame({"patient": ["p2"]}))
    write_json(data / "curate" / "funnel.json", {"in": 3, "accepted": 3, "not_ct": 0, "rejected": {}})
    curated = pd.DataFrame({"patient": ["p1", "p2"], "role": ["pretrain", "evaluation"], "status": "accepted"})
    curated = curated.assign(series=["s1", "s2"], same_scan="")
    write_table(data / "curate" / "curated.parquet", curated)
    set_floor(tmp_path, 0.85)
    return tmp_path


def set_floor(project: Path, minimum: float) -> None:
    floor = {"task": "organs", "figure": "linear_auc", "minimum": minimum}
    (project / "params.yaml").write_text(yaml.safe_dump(params(floors=[floor])))


def gate(project: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "components.gate", "--line", "wholebody"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def test_pass_then_a_bound_out_of_reach(project: Path) -> None:
    done = gate(project)
    decision = project / "data" / "wholebody" / "gate" / "decision.json"
    assert (done.returncode, read_json(decision)["verdict"]) == (0, "pass")

    set_floor(project, 0.99)
    done = gate(project)
    assert (done.returncode, read_json(decision)["verdict"]) == (3, "fail")
    (line,) = done.stderr.splitlines()
    assert line.startswith("gate failed: floor organs linear_auc: figure 0.9, bound 0.99: ")
    verdicts = {gate["gate"]: gate["verdict"] for gate in read_json(decision)["gates"]}
    asked = {name: verdict for name, verdict in verdicts.items() if verdict != "not judged"}
    always = dict.fromkeys(("leakage", "same_scan", "reject_rate", "no_worse"), "pass")
    assert asked == always | {"floor organs linear_auc": "fail"}, "none is skipped because another failed"


def test_a_gate_of_each_kind_that_is_not_met_is_named_by_the_flow_and_nothing_is_built(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = project / "data" / "wholebody"
    group = {"figure": "linear_auc", "patients": {"A": 9, "B": 9}, "needed": 3, "of_classes": True, "groups": 2,
             "gaps": {"A": [-0.3, -0.4, -0.2], "B": [0.3, 0.2, 0.4]}}  # fmt: skip
    fall = {"internal": 0.9, "external": 0.6, "fall": 0.3, "fall_low": 0.2, "fall_high": 0.4, "internal_patients": 9,
            "external_patients": 9}  # fmt: skip
    numbers = NUMBERS | {"least_gain": 0.05, "spread": 0.1}
    metrics = read_json(data / "evaluate" / "metrics.json") | {
        "tasks": {"organs": {"linear_auc": numbers}, "organs/site": {"linear_auc": numbers}},
        "worse": {"organs": 0.01}, "subgroups": {"organs": {"sex": group}},
        "falls": {"organs": {"site": {"linear_auc": fall}}},
    }  # fmt: skip
    write_json(data / "evaluate" / "metrics.json", metrics)
    write_json(data / "curate" / "funnel.json", {"in": 3, "accepted": 1, "not_ct": 0, "rejected": {}})
    curated = pd.DataFrame({"patient": ["p1", "p2", "p2"], "role": ["pretrain", "evaluation", "pretrain"]})
    curated = curated.assign(status="accepted", series=["s1", "s2", "s3"], same_scan=["", "", "s2"])
    write_table(data / "curate" / "curated.parquet", curated)
    of_organs = {"task": "organs", "figure": "linear_auc"}
    asked = params(
        max_reject_rate=0.1, better_than_random=[of_organs | {"minimum_gain": 0.1}],
        floors=[of_organs | {"minimum": 0.95}], subgroup_gaps=[{"task": "organs", "attribute": "sex", "maximum": 0.1}],
        external_falls=[of_organs | {"set": "site", "maximum": 0.1}],
    )  # fmt: skip
    (project / "params.yaml").write_text(yaml.safe_dump(asked))
    (project / "bin").mkdir()
    dvc = project / "bin" / "dvc"
    dvc.write_text(f"#!/bin/sh\n{sys.executable} -m components.gate --line wholebody\necho exited with $?; exit 255\n")
    dvc.chmod(0o755)
    monkeypatch.chdir(project)
    monkeypatch.setenv("PATH", f"{dvc.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with pytest.raises(GateFailed) as caught:
        Run("wholebody").run_stage("gate@wholebody", print)
    assert [named.partition(" (")[0] for named in str(caught.value).removeprefix("gate not met: ").split("; ")] == [
        "leakage", "same_scan", "reject_rate", "no_worse", "better_than_random organs linear_auc",
        "floor organs linear_auc", "subgroup_gap organs sex", "external_fall organs site linear_auc",
    ]  # fmt: skip
    assert not (project / "releases").exists()
