"""Round everything that the service answers, BentoML's own routes too: who may ask, what is counted, which headers.

BentoML wraps its routes and ours in this ASGI middleware. What it does not know is answered here, so that neither
BentoML's index, which sends a visitor's browser elsewhere, nor any other page of its shows up.
"""

from __future__ import annotations

import logging
import time
import traceback
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.account import KEY, Account, audit
from serving.answers import Refusal
from serving.draining import Drain
from serving.limits import Limits
from serving.routes import BY_PATH, UNKNOWN, Told
from serving.tokens import Tokens

log = logging.getLogger("bentoml.service.ctfoundry")

# The page's scripts and style are files of ours. NiiVue has its fonts and small images within itself (data:), and reads
# volumes that the page hands it (blob:). Nothing may frame the page, and it sends nobody anywhere.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), geolocation=(), microphone=()",
    b"cache-control": b"no-store",  # answers are about patients
}
KEPT = {b"cache-control": b"no-cache"}  # a file of the page: a browser may keep it, and asks whether it is still so
SECURE = {b"strict-transport-security": b"max-age=31536000"}  # over TLS only, where it means something
REALM = 'Bearer realm="ctfoundry"'


class Counts(Protocol):
    """What counts requests."""

    def count(self, route: str, outcome: str) -> None: ...


class Guarded(Protocol):
    """The application as the guard sees it."""

    limits: Limits
    drain: Drain
    model: dict[str, Any]
    tokens: Tokens | None

    @property
    def metrics(self) -> Counts | None: ...


class Guard:
    """The middleware."""

    def __init__(self, app: ASGIApp, application: Guarded) -> None:
        """
        Args:
            app: what it wraps.
            application: the service's own.
        """
        self._app, self._application = app, application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = BY_PATH.get(scope["path"])
        one = _Request(self._application, route, scope)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                one.settle(message["status"])
                message = {**message, "headers": one.headers(message.get("headers", ()))}
            await send(message)

        try:
            answer = self._refusal(route, scope, one.account) or self._app
            await answer(scope, receive, guarded)
        except Exception as error:
            if one.settled:
                raise
            # Not what it said, which may quote a header, nor a path that a client has made up.
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("%s failed with %s\n%s", one.name, type(error).__name__, where)
            one.account.outcome = "failed"
            await Refusal("the service failed; the failure is in its log", 500)(scope, receive, guarded)
        finally:
            one.settle(0)

    def _refusal(self, route: Told | None, scope: Scope, account: Account) -> Refusal | None:
        """The answer to what goes no further; None lets it through."""
        account.who = scope.get("extensions", {}).get("tls", {}).get("client_cert_name")
        tokens = self._application.tokens
        if tokens is not None and not (route and (route.probe or route.public)):
            given = dict(scope["headers"]).get(b"authorization")
            name = tokens.who(given)
            account.who = name or account.who
            if name is None:
                challenge = REALM if given is None else f'{REALM}, error="invalid_token"'
                message = "a token is needed: send the header Authorization: Bearer <token>"
                return Refusal(message, 401, www_authenticate=challenge)
        if route is None:
            return Refusal("there is no such path: / names those that there are", 404)
        if scope["method"] not in route.methods:
            allowed = ", ".join(route.methods)
            return Refusal(f"method {scope['method'][:20]} is not allowed: {allowed}", 405, allow=allowed)
        if route.name == "readyz" and self._application.drain.begun:
            again = str(self._application.limits.drain_seconds)
            account.outcome = "draining"
            return Refusal("the service is ending", 503, retry_after=again)
        return None


class _Request:
    """One request: its account is settled once, when its answer begins or it ends without one."""

    def __init__(self, application: Guarded, route: Told | None, scope: Scope) -> None:
        self.account = scope[KEY] = Account()
        self.name, self.settled = route.name if route else UNKNOWN, False
        self._application, self._route = application, route
        self._secure = scope.get("scheme") == "https"
        self._begin = time.perf_counter()

    def settle(self, status: int) -> None:
        """Count it, and audit it where it is about a scan; ``status`` is 0 where there was no answer."""
        if self.settled:
            return
        self.settled = True
        self.account.outcome = self.account.outcome or _outcome(status)
        if self._application.metrics is not None:
            self._application.metrics.count(self.name, self.account.outcome)
        if self._route is not None and self._route.takes_scan:
            seconds = time.perf_counter() - self._begin
            audit(self.account, self.name, self._application.model.get("digest", ""), seconds)

    def headers(self, present: Any) -> list[tuple[bytes, bytes]]:
        """Those of an answer with ours in place of any of the same name."""
        public = self._route is not None and self._route.public
        ours = HEADERS | (KEPT if public else {}) | (SECURE if self._secure else {})
        kept = [(name, value) for name, value in present if name.lower() not in ours]
        if self._application.drain.begun and not any(name.lower() == b"connection" for name, _ in kept):
            kept.append((b"connection", b"close"))  # the next request goes to another, through a new connection
        return kept + list(ours.items())


def _outcome(status: int) -> str:
    """Of a route that says none itself."""
    if status == 0:
        return "cancelled"
    if status < 400:
        return "answered"
    return f"refused_{status}" if status < 500 else "failed"
