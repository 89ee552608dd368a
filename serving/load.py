"""Who is sending, who waits and who is worked on; how many of each are let in, and when to come again."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio

from serving.limits import VARIABLES, Limits

RECENT = 16  # pieces of work that an estimate goes by
UNKNOWN_SECONDS = 5.0  # for a piece of work, while none has ended yet
LONGEST = 600  # seconds; nobody is sent away for longer


class BusyError(Exception):
    """The service cannot take a request now.

    Attributes:
        status: 429, or 503 where it will not take one later either.
        outcome: as it is counted.
        retry_after: seconds after which another try is sensible, for a header of that name.
    """

    def __init__(self, message: str, outcome: str, retry_after: int, status: int = 429) -> None:
        super().__init__(message)
        self.outcome, self.retry_after, self.status = outcome, retry_after, status


class Load:
    """Counts uploads and the queue apart: whoever sends slowly takes no place from those who wait.

    Attributes:
        uploads: files that are being sent.
        queued: files that wait or are worked on.
        turns: so many are worked on at a time, first come first served.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.uploads = self.queued = 0
        self.turns = anyio.CapacityLimiter(limits.at_once)
        self._uploaded: deque[float] = deque(maxlen=RECENT)
        self._worked: deque[float] = deque(maxlen=RECENT)

    @property
    def working(self) -> int:
        """Files that are worked on."""
        return self.turns.borrowed_tokens

    @property
    def waiting(self) -> int:
        """Files that wait for their turn."""
        return self.queued - self.working

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """A place to send a file. Raises BusyError where there is none, or no place in the queue behind it."""
        self._require_place()
        if self.uploads >= self._limits.uploads:
            what = f"files being sent: {self.uploads}, at most {self._limits.uploads} ({VARIABLES['uploads']})"
            raise BusyError(f"{what}; send it again later", "busy_uploads", _whole(_mean(self._uploaded) / 2))
        self.uploads += 1
        begin = time.monotonic()
        try:
            yield
            self._uploaded.append(time.monotonic() - begin)
        finally:
            self.uploads -= 1

    @contextmanager
    def queueing(self) -> Iterator[None]:
        """A place in the queue. Raises BusyError where there is none."""
        self._require_place()
        self.queued += 1
        try:
            yield
        finally:
            self.queued -= 1

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits until it is one's turn, and keeps it."""
        async with self.turns:
            begin = time.monotonic()
            try:
                yield
            finally:
                self._worked.append(time.monotonic() - begin)

    def retry_after(self) -> int:
        """Whole seconds until about half of the queue is done, at the recent pace.

        Half, since clients who are sent away together come back together: were they to come when one place is free,
        all but one would be sent away again; when all are, the service would have stood idle.
        """
        return _whole(_mean(self._worked) * max(1.0, self.queued / 2) / self._limits.at_once)

    def _require_place(self) -> None:
        if self.queued >= self._limits.queue:
            what = f"files that wait or are worked on: {self.queued}, at most {self._limits.queue}"
            raise BusyError(f"{what} ({VARIABLES['queue']}); send it again later", "busy_queue", self.retry_after())


def _mean(seconds: deque[float]) -> float:
    return sum(seconds) / len(seconds) if seconds else UNKNOWN_SECONDS


def _whole(seconds: float) -> int:
    return min(LONGEST, max(1, math.ceil(seconds)))
