"""How the service ends: a balancer sees it first, what is in work is answered, then it ends by itself.

BentoML's supervisor answers SIGTERM by sending one to the process that serves, and waits for its end. uvicorn's own
handler there closes the listening socket at once, while the supervisor holds it open: who connects is neither refused
nor answered, and no probe can see why. So uvicorn gets the signal from here, when all else is done.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from types import FrameType

from serving.limits import Limits

log = logging.getLogger("bentoml.service.ctfoundry")

ENDING = (signal.SIGTERM, signal.SIGINT)
TICK_SECONDS = 0.1
# For answers to what was cut short, and for uvicorn's own end, which waits for clients that do not read.
LAST_SECONDS = 5.0
Handler = Callable[[int, FrameType | None], object]


class Drain:
    """The state of an ending service.

    Attributes:
        begun: it takes no more work.
        over: its grace is over: what is in work is cut short.
    """

    def __init__(self, idle: Callable[[], bool], cut: Callable[[], None]) -> None:
        """
        Args:
            idle: whether nothing is in work.
            cut: ends what is in work; its clients are told.
        """
        self._idle, self._cut = idle, cut
        self.begun = self.over = False
        self._task: asyncio.Task[None] | None = None

    def watch(self, limits: Limits) -> None:
        """Take over the signals that end this process, whose loop runs in this thread, the main one."""
        loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)

        def handle(number: int, _: FrameType | None) -> None:
            # A second one changes nothing: a service manager signals every process, and the supervisor this one again.
            if not self.begun:
                self.begun = True
                loop.call_soon_threadsafe(begin, number)

        def begin(number: int) -> None:
            self._task = loop.create_task(self.end(limits, lambda: _hand_on(before, number)))

        for number in ENDING:
            signal.signal(number, handle)

    async def end(self, limits: Limits, hand_on: Callable[[], None]) -> None:
        """Wait as ``limits`` say, then ``hand_on`` the signal: the server's own end follows."""
        self.begun = True
        log.info("ending: not ready from now on; what is in work has %d s", limits.grace_seconds)
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await asyncio.sleep(limits.drain_seconds)
        while not self._idle() and loop.time() < begin + limits.grace_seconds:
            await asyncio.sleep(TICK_SECONDS)
        if not self._idle():
            log.warning("ending: %d s are over (CTFOUNDRY_GRACE_SECONDS): work is cut short", limits.grace_seconds)
            self.over = True
            self._cut()
            last = loop.time() + LAST_SECONDS
            while not self._idle() and loop.time() < last:
                await asyncio.sleep(TICK_SECONDS)
        hand_on()


def _hand_on(before: object, number: int) -> None:
    """Let the server end as it would have ended at the signal, and certainly end it."""
    asyncio.get_running_loop().call_later(2 * LAST_SECONDS, os._exit, 0)
    if callable(before):
        before(number, None)
    else:  # nobody handled it: as the system would have
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
