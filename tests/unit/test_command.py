"""How a stage ends, as those see it who may start it again."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from components.command import EXIT_PASSING, run_stage
from components.errors import PassingError, UserError
from components.tables import read_table


def run_in(folder: Path, monkeypatch: pytest.MonkeyPatch, shard: str, sharded: Callable[[str, int], None]) -> None:
    (folder / "params.yaml").write_text("lines: [head]\nshards: [0, 1]\nhead: {reproducible: machine}\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["python", "--line", "head", "--shard", shard])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            run_stage("screen", "Judge.", None, sharded=sharded)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 1


@pytest.mark.parametrize("shard", ["7", "-1"])
def test_a_shard_that_is_not_there_is_one_line(
    shard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_in(tmp_path, monkeypatch, shard, lambda line, number: pytest.fail("not to be run"))
    assert capsys.readouterr().err == f"screen: --shard {shard} is not allowed: one of 0, 1\n"


def test_an_input_that_was_not_made_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_in(tmp_path, monkeypatch, "1", lambda line, number: print(read_table(Path(f"data/{line}/a.parquet"))))
    told = "screen: data/head/a.parquet: missing; run `dvc repro` so that the earlier stages make it\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(("error", "code"), [(UserError("the value 3"), 1), (PassingError("no answer"), EXIT_PASSING)])
def test_a_mistake_is_one_line_and_what_may_pass_has_a_code_of_its_own(
    error: UserError, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(line: str) -> None:
        raise error

    (tmp_path / "params.yaml").write_text("lines: [head]\nhead: {reproducible: machine}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["python", "--line", "head"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            run_stage("cohort", "List the series.", fails)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == code
    assert capsys.readouterr().err == f"cohort: {error}\n"
