"""Reads a request's body as it comes, and refuses one that comes too slowly: whoever sends holds a place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import anyio
from starlette.requests import ClientDisconnect, Request

from serving.limits import VARIABLES, Limits
from serving.sniff import InputError


@dataclass(frozen=True)
class Pace:
    """How fast a body must come.

    Attributes:
        seconds: for all of it.
        bytes_per_second: in every window of its way, so that nobody sends half at once and the rest never.
        window_seconds: long enough for a link that stutters.
    """

    seconds: float
    bytes_per_second: int
    window_seconds: float = 10.0

    @classmethod
    def of(cls, limits: Limits) -> Pace:
        """The pace that the service asks for."""
        return cls(limits.upload_seconds, limits.upload_rate)


async def chunks(request: Request, pace: Pace) -> AsyncIterator[bytes]:
    """The body's bytes as they come.

    Raises:
        InputError: 408 where they come too slowly.
        ClientDisconnect: the client has left.
    """
    begin = window = anyio.current_time()
    total = within = 0
    while True:
        message = None
        with anyio.CancelScope(deadline=min(window + pace.window_seconds, begin + pace.seconds)):
            message = await request.receive()
        now = anyio.current_time()
        if message is not None:
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body = message.get("body", b"")
            total, within = total + len(body), within + len(body)
            if body:
                yield body
            if not message.get("more_body", False):
                return
        if now >= begin + pace.seconds:
            raise InputError(f"upload is not complete after {pace.seconds:g} s ({VARIABLES['upload_seconds']})", 408)
        if now >= window + pace.window_seconds:
            if within < pace.bytes_per_second * (now - window):
                least = f"at least {pace.bytes_per_second} bytes a second ({VARIABLES['upload_rate']})"
                raise InputError(f"upload of {within} bytes in {now - window:.0f} s is too slow: {least}", 408)
            window, within = now, 0
