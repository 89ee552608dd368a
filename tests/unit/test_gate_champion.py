"""Beside the champion: the verdict goes on alone, whoever the champion is; worse, and nothing goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.files import read_json, sha256_file, write_json
from tests.unit.gate_blocks import params

ROOT = Path(__file__).resolve().parents[2]
CHAMPION = Path("infra/champions/wholebody.json")


def metrics(value: float) -> dict[str, Any]:
    return {"evaluation_data": "d1", "tasks": {"organs": {"linear_auc": {"value": value}}}, "not_evaluated": {}}


def champion(value: float) -> dict[str, Any]:
    return {"champion": {"bundle": "ab" * 32, "evaluation_data": "d1", "metrics": metrics(value), "profile": None}}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project's folder with just what the stage reads: a line of AUC .90."""
    write_json(tmp_path / "data" / "wholebody" / "evaluate" / "metrics.json", metrics(0.9))
    write_json(tmp_path / "data" / "wholebody" / "rival" / "rival.json", {"champion": None, "tasks": {}})
    write_json(tmp_path / CHAMPION, {"champion": None})
    bound = {"task": "organs", "figure": "linear_auc", "tolerance": 0.02}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params(champion=[bound])))
    return tmp_path


def judge(project: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "components.gate.champion", "--line", "wholebody"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def test_the_verdict_that_the_bundle_waits_for_has_the_same_bytes_with_every_champion_it_passes(project: Path) -> None:
    verdict = project / "data" / "wholebody" / "champion" / "verdict.json"
    assert judge(project).returncode == 0
    first = sha256_file(verdict)
    write_json(project / CHAMPION, champion(0.91))
    assert judge(project).returncode == 0
    assert sha256_file(verdict) == first
    compared = read_json(verdict.with_name("comparison.json"))
    assert compared["champion"] == "ab" * 32
    assert [gate["bound"] for gate in compared["gates"]] == [0.89]


def test_worse_than_the_champion_is_one_line_and_a_verdict(project: Path) -> None:
    write_json(project / CHAMPION, champion(0.93))
    done = judge(project)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("gate failed: champion organs linear_auc: figure 0.9, bound 0.91: ")
    assert read_json(project / "data" / "wholebody" / "champion" / "verdict.json") == {"verdict": "fail"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "infra/champions/wholebody.json: not found"),
        ({}, 'no key "champion"'),
        ({"champion": {}}, "champion lacks"),
    ],
)
def test_a_missing_or_broken_champion_file_is_one_line(project: Path, content: Any, said: str) -> None:
    path = project / CHAMPION
    path.unlink() if content is None else path.write_text(json.dumps(content))
    done = judge(project)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert said in line
