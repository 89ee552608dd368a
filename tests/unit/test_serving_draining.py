"""The order in which a service ends."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from types import FrameType

import pytest

from serving.draining import ENDING, Drain
from serving.limits import Limits


class Work:
    """What is open, and what was done about it."""

    def __init__(self, pieces: int) -> None:
        self.pieces, self.cuts = pieces, 0

    def cut(self) -> None:
        self.cuts += 1
        self.pieces = 0

    def drain(self) -> Drain:
        return Drain(lambda: self.pieces == 0, self.cut)


def test_an_idle_service_is_not_ready_for_its_drain_and_then_ends() -> None:
    work, handed = Work(0), list[float]()
    drain, begin = work.drain(), time.monotonic()
    asyncio.run(drain.end(Limits(drain_seconds=1), lambda: handed.append(time.monotonic() - begin)))
    assert (drain.begun, drain.over, work.cuts) == (True, False, 0)
    assert 1 <= handed[0] < 1.5


def test_work_is_waited_for_and_cut_when_the_grace_is_over() -> None:
    for grace, cuts in ((10, 0), (1, 1)):
        work, handed = Work(1), list[float]()
        drain = work.drain()

        async def end(
            work: Work = work, drain: Drain = drain, grace: int = grace, handed: list[float] = handed
        ) -> None:
            begin = time.monotonic()
            asyncio.get_running_loop().call_later(1.5, setattr, work, "pieces", 0)
            limits = Limits(drain_seconds=1, grace_seconds=grace)
            await drain.end(limits, lambda: handed.append(time.monotonic() - begin))

        asyncio.run(end())
        assert (work.cuts, drain.over) == (cuts, bool(cuts))
        assert handed[0] == pytest.approx(1.6 if grace == 10 else 1.05, abs=0.3)


def test_the_server_gets_its_signal_last_and_one_signal_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    got, ends, work = list[int](), list[object](), Work(1)
    monkeypatch.setattr(os, "_exit", ends.append)

    def server(number: int, frame: FrameType | None) -> None:
        got.append(number)

    async def serve() -> None:
        drain = work.drain()
        drain.watch(Limits(drain_seconds=1, grace_seconds=60))
        assert not drain.begun
        for _ in range(2):  # of the supervisor, and of whoever signals every process
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.1)
        assert drain.begun
        await asyncio.sleep(1.3)
        assert got == []
        work.pieces = 0
        await asyncio.sleep(0.3)
        assert got == [signal.SIGTERM]

    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        signal.signal(signal.SIGTERM, server)
        asyncio.run(serve())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (got, ends) == ([signal.SIGTERM], [])
