"""Limits come from the environment, and a wrong one is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.errors import UserError
from serving.limits import VARIABLES, Limits

README = Path(__file__).resolve().parents[2] / "serving" / "README.md"


def test_each_limit_has_a_variable_that_changes_it_and_a_line_for_users(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(VARIABLES) == set(Limits.__dataclass_fields__)
    told = README.read_text()
    for field, name in VARIABLES.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, "7")
            patch.setenv("CTFOUNDRY_DRAIN_SECONDS", "7")
            assert getattr(Limits.from_environment(), field) == 7
            patch.setenv(name, "-1")
            with pytest.raises(UserError, match=f"^{name}: '-1' is not allowed: a positive whole number"):
                Limits.from_environment()
        assert f"| `{name}` |" in told


def test_a_drain_is_not_longer_than_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTFOUNDRY_GRACE_SECONDS", "3")
    with pytest.raises(
        UserError, match="CTFOUNDRY_DRAIN_SECONDS: 5 is not allowed: at most CTFOUNDRY_GRACE_SECONDS, 3"
    ):
        Limits.from_environment()


def test_no_more_files_are_worked_on_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTFOUNDRY_CONCURRENCY", "17")
    with pytest.raises(UserError, match="CTFOUNDRY_CONCURRENCY: 17 is not allowed: at most CTFOUNDRY_MAX_QUEUE, 16"):
        Limits.from_environment()
