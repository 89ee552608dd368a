"""The service's application in this process, with the program of :mod:`apart` behind it."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import httpx
from released import ROOT

from components.confined import Bounds
from components.isolation import GIB
from serving.app import EmbedApp
from serving.forks import Forks
from serving.guard import Guard
from serving.limits import Limits

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

    def __init__(self, folder: Path, seconds: int) -> None:
        self.marks, self.scratch = folder / "marks", folder / "tmp"
        self.begun, self.go_on = folder / "begun", folder / "go_on"
        self.marks.mkdir()
        self.scratch.mkdir()
        command = [sys.executable, str(APART), str(self.marks), str(seconds)]
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

    def turns(self) -> anyio.CapacityLimiterStatistics:
        """Who works, and who waits for a turn."""
        return self.app.load.turns.statistics()

    def working(self) -> list[str]:
        """Process ids of children that are at work."""
        return [mark.name for mark in self.marks.iterdir() if Path("/proc", mark.name).exists()]


def run(work: Callable[[], Awaitable[None]]) -> None:
    anyio.run(work)


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not holds():
            await anyio.sleep(0.02)
