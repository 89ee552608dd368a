"""HTTP round ``serving.embedding`` and ``serving.classifying``: take the body, have it done apart, answer in JSON,
never leak.

What a request costs ends with it: its child process is killed and its files are gone when its client has left or its
time is over, and only then does the next one get its turn.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from components.confined import Reply
from components.errors import UserError
from components.files import NO_ROOM
from serving.asking import POINT, point_of, require_answer
from serving.body import receive_file
from serving.forks import Forks
from serving.limits import Limits
from serving.metrics import Metrics
from serving.sniff import InputError

log = logging.getLogger("bentoml.service.ctfoundry")

# A client that is still sending sees the answer only if the connection stays open for a moment (RFC 9112, 9.6).
LINGER_SECONDS = 0.5
DONE = {"embed": "embedded", "classify": "classified"}  # outcomes, as they are counted
KILLED = ("memory", "deadline", "crash")


class EmbedApp:
    """The ASGI application of the service; ``start`` gives it a model before the first request."""

    def __init__(self) -> None:
        self.limits = Limits()
        self._forks: Forks | None = None
        self._model: dict[str, Any] = {}
        self._metrics: Metrics | None = None
        self._turn: anyio.CapacityLimiter | None = None
        self.starlette = Starlette(
            routes=[
                Route("/embed", self.embed, methods=["POST"]),
                Route("/classify", self.classify, methods=["POST"]),
                Route("/model", self.model, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _http_error},
        )

    def start(self, forks: Forks, limits: Limits) -> None:
        """Serve this release from now on. Raises UserError where it does not load."""
        self.limits = limits
        self._model = forks.start()
        self._metrics = Metrics(self._model["name"], self._model["digest"])
        self._forks = forks

    async def model(self, request: Request) -> Response:
        """GET /model: name, line, digest and the hashes of what the model was made from."""
        self._loaded()
        return JSONResponse(self._model)

    async def embed(self, request: Request) -> Response:
        """POST /embed: one CT series as zip, or NIfTI, to its vector and what was found."""
        return await self._answered(request, "embed", lambda: {"ask": "embed"})

    async def classify(self, request: Request) -> Response:
        """POST /classify: the same file to what the release's heads answer; ``point_mm`` for those that see a point."""

        def work() -> dict[str, Any]:
            point = point_of(request.query_params.get(POINT))
            require_answer(self._model["heads"], point)
            return {"ask": "classify", POINT: point}

        return await self._answered(request, "classify", work)

    async def _answered(self, request: Request, route: str, work: Callable[[], dict[str, Any]]) -> Response:
        """The answer to a request, and its count; ``work`` says what is asked of the file, or refuses beforehand."""
        forks, metrics = self._loaded()
        begin, outcome = time.perf_counter(), "failed"
        try:
            reply = await self._reply(request, forks, work())
            if reply.result is not None:
                outcome = DONE[route]
                return JSONResponse(reply.result.content)
            outcome, status = _refused(reply)
            return _Refusal(reply.message, status)
        except ClientDisconnect:
            outcome = "disconnected"
            return Response(status_code=400)  # nobody is left to read it
        except UserError as error:
            status = error.status if isinstance(error, InputError) else 422
            outcome = f"refused_{status}"
            return _Refusal(str(error), status)
        except anyio.get_cancelled_exc_class():
            outcome = "timed_out"  # BentoML answers it, with 504
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                outcome = "no_room"
                return _Refusal("no room is left on the disk for the file; send it again later", 503)
            # Where it failed, not what it said: messages of readers may quote a patient's header.
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("%s failed with %s\n%s", route, type(error).__name__, where)
            return _Refusal("the service failed on this file; the failure is in its log", 500)
        finally:
            metrics.count(route, outcome, time.perf_counter() - begin)

    async def _reply(self, request: Request, forks: Forks, work: dict[str, Any]) -> Reply:
        """What became of the request's file, of which ``work`` says what is asked.

        Raises:
            ClientDisconnect: the client has left, before its turn or while its file was read.
        """
        self._turn = self._turn or anyio.CapacityLimiter(self.limits.at_once)
        async with _temporary_folder() as folder:
            path = folder / "upload"
            await receive_file(request, path, self.limits.body_bytes)
            async with self._turn:
                if await request.is_disconnected():
                    raise ClientDisconnect
                reply = await _while_connected(request, forks, work | {"path": str(path), "scratch": str(folder)})
                if reply is None:
                    raise ClientDisconnect
                return reply

    def _loaded(self) -> tuple[Forks, Metrics]:
        if self._forks is None or self._metrics is None:
            raise HTTPException(503, "the model is not loaded yet")
        return self._forks, self._metrics


async def _while_connected(request: Request, forks: Forks, work: dict[str, Any]) -> Reply | None:
    """Have ``work`` done; None, and its child is dead, where the client leaves before it ends."""
    reply: Reply | None = None
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        reply = await forks.run(work)
        group.cancel_scope.cancel()
    return reply


@asynccontextmanager
async def _temporary_folder() -> AsyncIterator[Path]:
    """A folder that is gone afterwards, however the request ends; removing thousands of files blocks nobody."""
    folder = Path(tempfile.mkdtemp(prefix="ctfoundry-"))
    try:
        yield folder
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))


def _refused(reply: Reply) -> tuple[str, int]:
    """Outcome, as it is counted, and HTTP status of a reply without a result."""
    if reply.outcome in KILLED:
        log.warning("a file's reader was ended: %s", reply.message)
        return f"killed_{reply.outcome}", 422
    if reply.outcome == "no_room":
        return "no_room", 503
    if reply.outcome == "failed":
        log.error("a file is not readable: %s\n%s", reply.message, reply.where)
        return "unreadable", 422
    status = reply.status or 422
    return f"refused_{status}", status


class _Refusal(JSONResponse):
    """``{"error": "one clear line"}``. Where the body was not read to its end, the connection closes afterwards."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__({"error": " ".join(message.split())}, status_code=status)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with anyio.move_on_after(LINGER_SECONDS):
            message: dict[str, Any] = {"more_body": True}
            while message.get("more_body", False) and message.get("type") != "http.disconnect":
                message = dict(await receive())
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)
