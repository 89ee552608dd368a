"""The service's application in this process, with the program of :mod:`apart` behind it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import httpx
import psutil
from released import ROOT

from components.confined import Bounds
from components.isolation import GIB
from serving.app import EmbedApp
from serving.forks import Forks
from serving.guard import Guard
from serving.limits import Limits
from serving.program import AGAIN_SECONDS, COLD, Warm

APART = Path(__file__).with_name("apart.py")


class Counts:
    """In place of Prometheus's, which one process can make only once."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.steps: list[str] = []

    def count(self, route: str, outcome: str) -> None:
        self.outcomes.append(outcome)

    def saw(self, profile: dict[str, str]) -> None:
        pass

    def took(self, step: str, seconds: float) -> None:
        self.steps.append(step)


class Service:
    """The service's application in this process, with the program of :mod:`apart` behind it."""

    def __init__(self, folder: Path, seconds: int, warm: Warm = COLD, again: float = AGAIN_SECONDS) -> None:
        """``seconds``: of a child; ``again``: until a twin is made anew."""
        self.marks, self.scratch = folder / "marks", folder / "tmp"
        self.begun, self.go_on, self.shut = folder / "begun", folder / "go_on", folder / "shut"
        self.prepared_file = folder / "prepared"
        self.marks.mkdir()
        self.scratch.mkdir()
        command = [sys.executable, str(APART), str(self.marks)]
        command += [str(number) for number in (seconds, warm.number, warm.seconds, again)]
        self.forks = Forks(command, {**os.environ, "PYTHONPATH": str(ROOT)}, Bounds(GIB, seconds))
        self.model = self.forks.start()
        self.renew(at_once=1)

    def renew(self, **limits: int) -> None:
        """An application of its own for each test; the program goes on."""
        self.go_on.unlink(missing_ok=True)
        self.app, self.counts = EmbedApp(), Counts()
        self.app.serve(self.forks, self.model, Limits(**limits))
        self.app.metrics = self.counts  # type: ignore[assignment]
        self.guarded = Guard(self.app.starlette, self.app)

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.guarded)  # type: ignore[arg-type]
        return httpx.AsyncClient(transport=transport, base_url="http://service", timeout=60)

    def prepared(self) -> set[int]:
        """Processes that have prepared to answer, or tried to."""
        return {int(line) for line in self.prepared_file.read_text().split()} if self.prepared_file.exists() else set()

    def group(self) -> list[psutil.Process]:
        """The program, its children and its twin, those that live."""
        assert self.forks._process is not None
        return alive(self.forks._process.pid)

    def program(self) -> psutil.Process:
        """The one that forks: the one that was started, or whoever has followed it."""
        while len(found := self._first()) > 1:  # a child whose program was killed is to end, and has not yet
            time.sleep(0.01)
        return found[0]

    def _first(self) -> list[psutil.Process]:
        """Of the group, those whose parent is none of it."""
        parents = {}
        for one in self.group():
            with contextlib.suppress(psutil.NoSuchProcess):
                parents[one] = one.ppid()
        return [one for one, parent in parents.items() if parent not in {other.pid for other in parents}]

    def twin(self) -> psutil.Process | None:
        """The one that would follow it, where there is one."""
        program, prepared = self.program().pid, self.prepared()
        return next((one for one in self.group() if one.ppid() == program and one.pid not in prepared), None)

    def kill(self) -> None:
        """End the program, its twin and their children, as something from outside may; the service is not told."""
        assert self.forks._process is not None
        group = self.group()
        os.killpg(self.forks._process.pid, signal.SIGKILL)
        while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in group):
            time.sleep(0.01)

    def close(self) -> None:
        """End it all; raises TimeoutError where something of it lives on."""
        group = self.group()
        self.forks.close()
        deadline = time.monotonic() + 60
        while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in group):
            if time.monotonic() > deadline:
                raise TimeoutError("processes live on after the service's end")
            time.sleep(0.01)

    def waiting(self) -> set[int]:
        """Children that wait, and have no request."""
        return {one.pid for one in self.group()} & self.prepared() - {int(name) for name in self.working()}

    def turns(self) -> anyio.CapacityLimiterStatistics:
        """Who works, and who waits for a turn."""
        return self.app.load.turns.statistics()

    def working(self) -> list[str]:
        """Process ids of children that are at work."""
        return [mark.name for mark in self.marks.iterdir() if _lives(int(mark.name))]


def _lives(process: int) -> bool:
    """Whether it does; one whose program was killed may be waited for by nobody for a moment."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def alive(group: int) -> list[psutil.Process]:
    """The processes of a group that live."""
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(one.pid) == group and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def run(work: Callable[[], Awaitable[None]]) -> None:
    anyio.run(work)


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not holds():
            await anyio.sleep(0.02)
