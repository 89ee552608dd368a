"""HTTP round :func:`serving.embedding.embed_file`: take the body, run in a thread, answer in JSON, never leak."""

from __future__ import annotations

import logging
import tempfile
import time
import traceback
from functools import partial
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

from components.params import UserError
from serving.body import receive_file
from serving.embedding import Answer, ServedBundle, embed_file
from serving.limits import Limits
from serving.metrics import Metrics
from serving.sniff import InputError

log = logging.getLogger("bentoml.service.ctfoundry")

# A client that is still sending sees the answer only if the connection stays open for a moment (RFC 9112, 9.6).
LINGER_SECONDS = 0.5


class EmbedApp:
    """The ASGI application of the service; ``start`` gives it a model before the first request."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._bundle: ServedBundle | None = None
        self._metrics: Metrics | None = None
        self._turn: anyio.CapacityLimiter | None = None
        self.starlette = Starlette(
            routes=[
                Route("/embed", self.embed, methods=["POST"]),
                Route("/model", self.model, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _http_error},
        )

    def start(self, bundle: ServedBundle) -> None:
        """Serve this bundle from now on."""
        self._metrics = Metrics(bundle.manifest.name, bundle.manifest.digest)
        self._bundle = bundle

    async def model(self, request: Request) -> Response:
        """GET /model: name, line, digest and the hashes of what the model was made from."""
        manifest = self._loaded()[0].manifest
        content = {"name": manifest.name, "line": manifest.line, "digest": manifest.digest, "inputs": manifest.inputs}
        return JSONResponse(content)

    async def embed(self, request: Request) -> Response:
        """POST /embed: one CT series as zip, or NIfTI, to its vector and what was found."""
        bundle, metrics = self._loaded()
        begin = time.perf_counter()
        try:
            answer = await self._answer(request, bundle)
        except ClientDisconnect:
            metrics.count("disconnected", time.perf_counter() - begin)
            return Response(status_code=400)  # nobody is left to read it
        except UserError as error:
            status = error.status if isinstance(error, InputError) else 422
            metrics.count(f"refused_{status}", time.perf_counter() - begin)
            return _Refusal(" ".join(str(error).split()), status)
        except Exception as error:
            # Where it failed, not what it said: messages of DICOM readers may quote a patient's header.
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("embed failed with %s\n%s", type(error).__name__, where)
            metrics.count("failed", time.perf_counter() - begin)
            return _Refusal("the service failed on this file; the failure is in its log", 500)
        metrics.count("embedded", time.perf_counter() - begin)
        return JSONResponse(answer.to_json())

    async def _answer(self, request: Request, bundle: ServedBundle) -> Answer:
        if self._turn is None:
            self._turn = anyio.CapacityLimiter(self.limits.at_once)
        with tempfile.TemporaryDirectory(prefix="ctfoundry-") as folder:
            path = Path(folder) / "upload"
            await receive_file(request, path, self.limits.body_bytes)
            work = partial(embed_file, path, bundle, self.limits)
            return await anyio.to_thread.run_sync(work, limiter=self._turn)

    def _loaded(self) -> tuple[ServedBundle, Metrics]:
        if self._bundle is None or self._metrics is None:
            raise HTTPException(503, "the model is not loaded yet")
        return self._bundle, self._metrics


class _Refusal(JSONResponse):
    """``{"error": "one clear line"}``. Where the body was not read to its end, the connection closes afterwards."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__({"error": message}, status_code=status)

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
