"""How a stage ends, as those see it who may start it again."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from components.command import EXIT_PASSING, run_stage
from components.errors import PassingError, UserError


@pytest.mark.parametrize(("error", "code"), [(UserError("the value 3"), 1), (PassingError("no answer"), EXIT_PASSING)])
def test_a_mistake_is_one_line_and_what_may_pass_has_a_code_of_its_own(
    error: UserError, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(line: str) -> None:
        raise error

    (tmp_path / "params.yaml").write_text("head: {reproducible: machine}\n")
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
