"""Refusals, as the service sends them: one clear line of JSON."""

from __future__ import annotations

from typing import Any

import anyio
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

# A client that is still sending sees the answer only if the connection stays open for a moment (RFC 9112, 9.6).
LINGER_SECONDS = 0.5


class Refusal(JSONResponse):
    """``{"error": "one clear line"}``. Where the body was not read to its end, the connection closes afterwards."""

    def __init__(self, message: str, status: int, **headers: str) -> None:
        """
        Args:
            message: brought into one line.
            status: of HTTP.
            headers: such as ``retry_after``, with an underscore for a hyphen.
        """
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        super().__init__({"error": " ".join(message.split())}, status_code=status, headers=named)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with anyio.move_on_after(LINGER_SECONDS):
            message: dict[str, Any] = {"more_body": True}
            while message.get("more_body", False) and message.get("type") != "http.disconnect":
                message = dict(await receive())
        await send({"type": "http.response.body", "body": b"", "more_body": False})
