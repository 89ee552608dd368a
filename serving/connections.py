"""What uvicorn, which BentoML starts, does not do for a connection: end one whose header never comes, and say whose
certificate its client has.

uvicorn makes an object of its protocol class for each connection. Here that class gets a child, with the parts of it
that uvicorn's own protocols share: ``app``, ``cycle``, ``loop`` and ``transport``.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger("bentoml.service.ctfoundry")

HEADER_SECONDS = 10.0
SHARED = ("connection_made", "connection_lost", "data_received")
SHORT = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C",
         "localityName": "L", "stateOrProvinceName": "ST"}  # fmt: skip


def watch_connections(server: Any, header_seconds: float = HEADER_SECONDS) -> bool:
    """Have connections that ``server``, a uvicorn.Server, takes from now on watched.

    Returns:
        Whether it could be done: it is no promise of uvicorn's that its parts are called so.
    """
    config = getattr(server, "config", None)
    protocol = getattr(config, "http_protocol_class", None)
    if not (isinstance(protocol, type) and all(hasattr(protocol, name) for name in SHARED)):
        log.warning("this server's connections cannot be watched: clients that never finish a header stay")
        return False
    config.http_protocol_class = watched(protocol, header_seconds)  # type: ignore[union-attr]
    return True


def watched(protocol: type[Any], header_seconds: float) -> type[Any]:
    """A child of a protocol class of uvicorn's whose connections end where no header is complete in time.

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
