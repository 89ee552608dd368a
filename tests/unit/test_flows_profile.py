"""``ctfoundry profile`` trains a few steps of the line's own parameters and says where the time went."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pretrain_project import HEAD, write_project

from components.errors import UserError
from components.files import sha256_tree
from flows.cli import _parser
from flows.profile import Speed, rows


def run(*words: str) -> int:
    arguments = _parser().parse_args(["profile", *words])
    code: int = arguments.run(arguments)
    return code


@pytest.mark.parametrize(("line", "changes"), [("wholebody", {"workers": [1, 2], "unreadable": "skip"}), ("head", {})])
def test_the_table_shows_what_a_step_costs_and_nothing_is_left(
    line: str, changes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = write_project(tmp_path, line, **changes)
    monkeypatch.chdir(project)
    before = sha256_tree(project)
    assert run("--line", line, "--steps", "1", "--peak-tflops", "1") == 0
    shown = capsys.readouterr().out
    for label in ("a step", "without data loading", "waiting for data", "% of peak", "peak memory"):
        assert label in shown
    assert sha256_tree(project) == before


def test_a_timeline_holds_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_project(tmp_path, "wholebody"))
    run("--line", "wholebody", "--steps", "1", "--trace", "trace.json")
    names = {event.get("name") for event in json.loads(Path("trace.json").read_text())["traceEvents"]}
    assert any("convolution" in str(name) for name in names)


def test_the_share_of_the_peak_is_that_of_the_arithmetic() -> None:
    shown = rows(Speed(0.5, 0.4, 0.1, flops=2 * 10**12, memory=3 * 10**9), volumes=4, peak_tflops=50.0)
    assert shown["a step"] == "0.500 s, 8.0 volumes/s"
    assert shown["arithmetic"] == "2000.0 GFLOP a step, 5.000 TFLOP/s without data loading, 10.0 % of peak"


def test_what_is_missing_or_not_allowed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_project(tmp_path, "head"))
    for option, value in (("--steps", "0"), ("--volumes-per-step", "0"), ("--loaders", "-1"), ("--peak-tflops", "0")):
        with pytest.raises(UserError, match=f"{option} {value} is not allowed: "):
            run("--line", "head", option, value)
    objective = HEAD["objective"] | {"dino": HEAD["objective"]["dino"] | {"standardise": False}}
    monkeypatch.chdir(write_project(tmp_path / "parts", "head", accumulate=2, objective=objective))
    with pytest.raises(UserError, match="volumes_per_step 3 must be a multiple of workers x accumulate, 1 x 2"):
        run("--line", "head", "--volumes-per-step", "3")
    Path("data/head/curate/training.parquet").unlink()
    with pytest.raises(UserError, match="make the line's data first, `dvc repro curate@head`"):
        run("--line", "head")


def test_the_command_line_does_not_import_torch() -> None:
    """Help and quick commands must not wait for it."""
    code = "import sys; from flows.cli import _parser; _parser(); sys.exit(bool({'torch', 'pandas'} & {*sys.modules}))"
    subprocess.run([sys.executable, "-c", code], check=True)
