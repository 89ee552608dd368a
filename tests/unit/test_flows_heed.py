"""A deployed run looks for its own cancellation, and ends itself where its worker does not."""

from __future__ import annotations

import threading
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import StateType

from flows import heed

RUNNING, CANCELLING, CANCELLED = StateType.RUNNING, StateType.CANCELLING, StateType.CANCELLED


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which goes on with each look."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


class Left(threading.Event):
    """The end of the run's own work: after so many looks. ``clock`` goes on meanwhile."""

    def __init__(self, clock: list[float], looks: int) -> None:
        super().__init__()
        self.clock, self.looks = clock, looks

    def wait(self, timeout: float | None = None) -> bool:
        self.clock[0] += timeout or 0
        self.looks -= 1
        return self.looks < 0


def heeded(clock: list[float], states: list[StateType | None]) -> float | None:
    """When the run ended itself, in seconds; None where it did not."""
    told, ended = iter(states), list[float]()
    heed._heed(Left(clock, len(states)), lambda: next(told), lambda: ended.append(clock[0]))
    return ended[0] if ended else None


@pytest.mark.parametrize("state", [CANCELLING, CANCELLED])
def test_a_cancelled_run_leaves_it_to_its_worker_and_then_ends_itself(clock: list[float], state: StateType) -> None:
    ended = heeded(clock, [RUNNING, *[state] * 20])
    assert ended is not None
    first = 2 * heed.LOOK_SECONDS
    assert first + heed.WORKERS_SECONDS <= ended <= first + heed.WORKERS_SECONDS + heed.LOOK_SECONDS


def test_a_run_that_goes_on_and_a_server_that_is_away_end_nothing(clock: list[float]) -> None:
    assert heeded(clock, [RUNNING, None, None, None, None, RUNNING, None, None, None, None]) is None
    assert heeded(clock, [CANCELLING]) is None, "its worker was faster"


@pytest.mark.parametrize(
    ("raised", "state", "said"),
    [
        (KeyboardInterrupt, CANCELLING, True),  # as Prefect's of a signal, no Exception
        (KeyboardInterrupt, RUNNING, False),  # its machine is shut down: it is tried again
        (ValueError, CANCELLING, False),
    ],
)
def test_a_run_whose_worker_ends_it_says_that_it_was_cancelled(
    raised: type[BaseException], state: StateType, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    run = uuid4()
    monkeypatch.setattr(heed, "_state", lambda number: state)
    monkeypatch.setattr(heed, "_say", told.append)
    with pytest.raises(raised), heed.heeding_cancellation(run):
        raise raised
    assert told == ([run] if said else [])


def test_whoever_cancels_waits_less_than_half_a_minute() -> None:
    from flows.processes import GRACE_SECONDS

    assert 2 * heed.LOOK_SECONDS + heed.WORKERS_SECONDS + GRACE_SECONDS <= 25
