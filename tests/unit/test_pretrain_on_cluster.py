"""A training's end in time; Ray's own part is in tests/integration/test_cluster_apart.py."""

from __future__ import annotations

import threading

import pytest

from components.errors import PassingError, UserError
from components.pretrain.on_cluster import DEADLINE_S, within_deadline


def broken() -> int:
    raise TimeoutError("its own")


@pytest.mark.parametrize("seconds", ["", "0", "60"])
def test_work_in_time_is_as_without_a_deadline(seconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEADLINE_S, seconds)
    assert within_deadline(lambda: 3) == 3
    with pytest.raises(TimeoutError, match=r"^its own$"):
        within_deadline(broken)


def test_work_that_is_late_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEADLINE_S, "0.2")
    end = threading.Event()
    try:
        with pytest.raises(PassingError, match=rf"^training did not end within 0.2 s \({DEADLINE_S}\); started again"):
            within_deadline(end.wait)
    finally:
        end.set()


@pytest.mark.parametrize("wrong", ["soon", "-1", "inf", "nan"])
def test_another_setting_is_one_line(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEADLINE_S, wrong)
    with pytest.raises(UserError, match=rf"^{DEADLINE_S} '{wrong}' is not allowed: seconds, 0 or more$"):
        within_deadline(broken)
