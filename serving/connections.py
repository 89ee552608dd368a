"""What uvicorn, which BentoML starts, does not do for a connection: end one whose header never comes, say whose
certificate its client has, and refuse what is no HTTP as all else is refused.

uvicorn makes an object of its protocol class for each connection. Here that class gets a child, with the parts of it
that uvicorn's own protocols share: ``app``, ``cycle``, ``loop`` and ``transport``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger("bentoml.service.ctfoundry")

Headers = Mapping[bytes, bytes]
HEADER_SECONDS = 10.0
SHARED = ("connection_made", "connection_lost", "data_received", "send_400_response")
SHORT = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C",
         "localityName": "L", "stateOrProvinceName": "ST"}  # fmt: skip


def watch_connections(server: Any, headers: Headers, header_seconds: float = HEADER_SECONDS) -> bool:
    """Have connections that ``server``, a uvicorn.Server, takes from now on watched.

    Args:
        server: in whose process this is.
        headers: of a refusal of what is no HTTP, beside those of its content.
        header_seconds: in which a header must be complete.

    Returns:
        Whether it could be done: it is no promise of uvicorn's that its parts are called so.
    """
    config = getattr(server, "config", None)
    protocol = getattr(config, "http_protocol_class", None)
    if not (isinstance(protocol, type) and all(hasattr(protocol, name) for name in SHARED)):
        log.warning("this server's connections cannot be watched: clients that never finish a header stay")
        return False
    config.http_protocol_class = watched(protocol, headers, header_seconds)  # type: ignore[union-attr]
    return True


def watched(protocol: type[Any], headers: Headers, header_seconds: float) -> type[Any]:
    """A child of a protocol class of uvicorn's, see :func:`watch_connections`.

    Its requests have ``scope["extensions"]["tls"]["client_cert_name"]``, as the ASGI extension for TLS calls the
    certificate's subject.
    """

    class Watched(protocol):  # type: ignore[misc]
        app: ASGIApp
        timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            name = subject(transport.get_extra_info("peercert"))
            if name is not None:
                self.app = _named(self.app, name)
            self._expect()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._expect()

        def connection_lost(self, error: Exception | None) -> None:
            super().connection_lost(error)
            self._forget()

        def send_400_response(self, message: str) -> None:
            """To what is no HTTP. Within an answer nothing can be said: the connection ends."""
            if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
                self.transport.write(refusal(headers))
            self.transport.close()

        def _expect(self) -> None:
            """Between requests, the next one's header must be complete in time."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._forget()
            elif self.timer is None:
                self.timer = self.loop.call_later(header_seconds, self._give_up)

        def _forget(self) -> None:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None

        def _give_up(self) -> None:
            self.timer = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Watched


def refusal(headers: Headers) -> bytes:
    """The answer to what is no HTTP, as it goes over the wire, with ``headers``."""
    answer = JSONResponse({"error": "the request is not valid HTTP/1.1; see RFC 9112"})
    lines = [f"{name}: {value}" for name, value in (*answer.headers.items(), ("connection", "close"))]
    lines += [f"{name.decode()}: {value.decode()}" for name, value in headers.items()]
    return "\r\n".join(("HTTP/1.1 400 Bad Request", *lines, "", "")).encode("latin-1") + bytes(answer.body)


def subject(certificate: dict[str, Any] | None) -> str | None:
    """Whose certificate it is, as text (RFC 4514): ``CN=gateway,O=hospital``; None for none."""
    if not certificate:
        return None
    parts = [pair for part in certificate.get("subject", ()) for pair in part]
    return ",".join(f"{SHORT.get(name, name)}={_escaped(value)}" for name, value in reversed(parts))


def _escaped(value: str) -> str:
    return "".join(f"\\{letter}" if letter in ',+"\\<>;=' else letter for letter in value)


def _named(app: ASGIApp, name: str) -> ASGIApp:
    async def named(scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"] = {**scope.get("extensions", {}), "tls": {"client_cert_name": name}}
        await app(scope, receive, send)

    return named
