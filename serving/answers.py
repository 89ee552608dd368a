"""Refusals, as the service sends them: one clear line of JSON; and answers that are files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import anyio
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

# A client that is still sending sees the answer only if the connection stays open for a moment (RFC 9112, 9.6).
LINGER_SECONDS = 0.5
CHUNK = 256 * 1024


class Attachment(StreamingResponse):
    """A file as an answer, from an open handle: it may be gone from the disk already."""

    def __init__(self, file: BinaryIO, size: int, media_type: str, name: str) -> None:
        def chunks() -> Iterator[bytes]:
            with file:
                while part := file.read(CHUNK):
                    yield part

        headers = {"content-length": str(size), "content-disposition": f'attachment; filename="{name}"'}
        super().__init__(chunks(), media_type=media_type, headers=headers)


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
