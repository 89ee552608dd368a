"""HTTP round what answers a scan: take the body, have it done apart, answer, never leak.

What a request costs ends with it: its child process is killed and its files are gone when its client has left or its
time is over, and only then does the next one get its turn.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import anyio.lowlevel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from components.confined import Reply, Result
from components.errors import UserError
from components.files import NO_ROOM
from serving.account import Account, account_of
from serving.answers import Attachment, Refusal
from serving.asking import (
    ANSWER,
    FIELDS,
    FILES,
    FORM,
    FORMS,
    SCAN,
    classified,
    explained,
    located,
    require_once,
    retrieved,
    segmented,
)
from serving.body import receive_files, receive_nothing, scans_of
from serving.draining import Drain
from serving.forks import READ_AGAIN, Forks, ReaderGoneError
from serving.limits import VARIABLES, Limits
from serving.load import BusyError, Load
from serving.metrics import MEDIA_TYPE, REFUSED, Metrics
from serving.openapi import document
from serving.pace import Pace
from serving.pacs import FETCH, STORE, referred, to_store
from serving.page import page
from serving.routes import BY_NAME
from serving.scratch import scratch_folder
from serving.sniff import InputError
from serving.static_files import static_routes
from serving.tokens import Tokens

log = logging.getLogger("bentoml.service.ctfoundry")

KILLED = ("memory", "deadline", "crash")
GPU_FAILED = 503  # what a child says then
START_SECONDS = 10  # about as long as a model takes to load


class EmbedApp:
    """The ASGI application of the service; ``start`` gives it a model before the first request.

    Attributes:
        limits: of a request and of the service.
        load: who sends, waits and is worked on.
        drain: whether the service is ending.
        tokens: of those who may use it; None lets all in.
        model: name, line, digest, heads and inputs of the release; empty before ``start``.
        metrics: None before ``start``.
    """

    def __init__(self) -> None:
        self.limits, self.load = Limits(), Load(Limits())
        self.tokens: Tokens | None = None
        self.drain = Drain(idle=lambda: not self._open, cut=self._cut)
        self.model: dict[str, Any] = {}
        self.metrics: Metrics | None = None
        self._forks: Forks | None = None
        self._open: set[anyio.CancelScope] = set()  # one for each file that is sent, waits or is worked on
        self._page, self._document = "", dict[str, Any]()
        self.starlette = Starlette(
            routes=[
                Route("/embed", self.embed, methods=["POST"]),
                Route("/classify", self.classify, methods=["POST"]),
                Route("/segment", self.segment, methods=["POST"]),
                Route("/saliency", self.saliency, methods=["POST"]),
                Route("/locate", self.locate, methods=["POST"]),
                Route("/retrieve", self.retrieve, methods=["POST"]),
                Route("/preview", self.preview, methods=["POST"]),
                Route("/model", self.told, methods=["GET"]),
                Route("/metrics", self.figures, methods=["GET"]),
                Route("/docs.json", self.docs, methods=["GET"]),
                Route("/about", self.about, methods=["GET"]),
                *static_routes(),
            ],
            exception_handlers={HTTPException: _http_error},
        )

    def start(self, forks: Forks, limits: Limits, tokens: Tokens | None = None) -> None:
        """Serve this release from now on.

        Args:
            forks: that read its scans.
            limits: of a request and of the service.
            tokens: one of which clients must send, as the page and the OpenAPI document tell them; None lets all in.

        Raises:
            UserError: the release does not load.
        """
        model = forks.start()
        bins = model.pop("profile", {})
        self.serve(forks, model, limits, tokens)
        self.metrics = Metrics(self.model["name"], self.model["digest"], bins, self.model["device"])

    def serve(self, forks: Forks, model: dict[str, Any], limits: Limits, tokens: Tokens | None = None) -> None:
        """As :meth:`start`, where ``forks`` have started and said that they have this ``model``."""
        self.limits, self.load, self.tokens = limits, Load(limits), tokens
        self.model, self._forks = model, forks
        needed = tokens is not None
        self._page, self._document = page(model, needed), document(model, needed)

    async def about(self, request: Request) -> Response:
        """GET /about: what is served and how it is called, for people."""
        return HTMLResponse(self._page)

    async def docs(self, request: Request) -> Response:
        """GET /docs.json: the same for machines, as OpenAPI."""
        return JSONResponse(self._document)

    async def figures(self, request: Request) -> Response:
        """GET /metrics: figures for Prometheus."""
        _, metrics = self._loaded()
        return Response(metrics.text(self.load, not self.drain.begun), media_type=MEDIA_TYPE)

    async def told(self, request: Request) -> Response:
        """GET /model: name, line, digest and the hashes of what the model was made from."""
        self._loaded()
        return JSONResponse(self.model)

    async def embed(self, request: Request) -> Response:
        """POST /embed: one CT series as zip, or NIfTI, to its vector and what was found."""
        return await self._answered(request, "embed", dict)

    async def classify(self, request: Request) -> Response:
        """POST /classify: the same file to what the release's heads answer; ``point_mm`` for those that see a point."""

        return await self._answered(request, "classify", lambda: classified(request.query_params, self.model))

    async def segment(self, request: Request) -> Response:
        """POST /segment: the same file to its structures; ``form`` says as what, ``head`` by which decoder."""

        return await self._answered(request, "segment", lambda: segmented(request.query_params, self.model))

    async def saliency(self, request: Request) -> Response:
        """POST /saliency: the same file to what a head's answer for it rests on."""
        return await self._answered(request, "saliency", lambda: explained(request.query_params, self.model))

    async def locate(self, request: Request) -> Response:
        """POST /locate: two scans, in file fields, and a point of the first, to its place in the other."""
        return await self._answered(request, "locate", lambda: located(request.query_params, self.model))

    async def retrieve(self, request: Request) -> Response:
        """POST /retrieve: the same file to the cases of the index that are most like it."""
        return await self._answered(request, "retrieve", lambda: retrieved(request.query_params, self.model))

    async def preview(self, request: Request) -> Response:
        """POST /preview: the same file as a volume on the model's grid, for the page's viewer."""
        return await self._answered(request, "preview", lambda: {FORM: "nifti"})

    async def _answered(self, request: Request, route: str, work: Callable[[], dict[str, Any]]) -> Response:
        """The answer to a request; ``work`` says what is asked of the file, or refuses beforehand."""
        account = account_of(request.scope)
        scope = anyio.CancelScope(deadline=anyio.current_time() + self.limits.request_seconds)
        self._open.add(scope)
        try:
            with scope:
                return await self._tried(request, route, work, account)
        finally:
            self._open.discard(scope)
        if self.drain.over:
            account.outcome = "cut_short"
            return self._later("the service is ending before this file was done; send it again")
        account.outcome = "timed_out"
        what = f"took longer than {self.limits.request_seconds} s, its upload and its waiting included"
        return Refusal(f"{what} ({VARIABLES['request_seconds']})", 504)

    async def _tried(
        self, request: Request, route: str, work: Callable[[], dict[str, Any]], account: Account
    ) -> Response:
        account.outcome = "cancelled"  # where nobody says otherwise
        try:
            forks, metrics = self._loaded()
            require_once([name for name, _ in request.query_params.multi_items()])
            asked = {"ask": route} | work()
            of_pacs = referred(request.query_params, self.model, FIELDS.get(route, (SCAN,)))
            asked[STORE] = to_store(request.query_params, self.model, asked.get(FORM, "json"))
            reply, file = await self._reply(request, forks, metrics, asked, of_pacs)
            if reply.result is not None:
                account.outcome, account.series = BY_NAME[route].done, _series(reply.result.content)
                metrics.saw(reply.result.content.get("found", {}).get("profile", {}))
                if file is None:
                    return JSONResponse(reply.result.content)
                media_type, ending = FORMS[asked[FORM]]
                return Attachment(file, os.fstat(file.fileno()).st_size, media_type, FILES[route] + ending)
            account.outcome, status = _refused(reply)
            if status == 503 or reply.outcome in KILLED:  # with more memory to spare, it may go well
                return Refusal(reply.message, status, retry_after=str(self._come_again()))
            return Refusal(reply.message, status)
        except ClientDisconnect:
            account.outcome = "disconnected"
            return Response(status_code=400)  # nobody is left to read it
        except BusyError as error:
            account.outcome = error.outcome
            return Refusal(str(error), error.status, retry_after=str(error.retry_after))
        except ReaderGoneError as error:
            account.outcome = "reader_gone"
            return self._later(str(error))
        except HTTPException as error:
            account.outcome = "not_loaded"
            return self._later(error.detail)
        except UserError as error:
            status = error.status if isinstance(error, InputError) else 422
            account.outcome = f"refused_{status}"
            return Refusal(str(error), status)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                account.outcome = "no_room"
                return self._later("no room is left on the disk for the file; send it again later")
            account.outcome = "failed"
            # Where it failed, not what it said: messages of readers may quote a patient's header.
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("%s failed with %s\n%s", route, type(error).__name__, where)
            return Refusal("the service failed on this file; the failure is in its log", 500)

    async def _reply(
        self, request: Request, forks: Forks, metrics: Metrics, work: dict[str, Any], of_pacs: dict[str, list[str]]
    ) -> tuple[Reply, BinaryIO | None]:
        """What became of the request's scans, of which ``work`` says what is asked; and the file that answers it, open.

        Raises:
            ClientDisconnect: the client has left, before its turn or while its file was read.
            BusyError: the service is ending, or there is no place.
        """
        if self.drain.begun:
            raise BusyError("the service is ending and takes no more files", "draining", self._come_again(), 503)
        async with scratch_folder() as folder:

            async def apart(**what: Any) -> Reply:
                return await forks.run(what | {"scratch": str(folder)})

            with self.load.uploading(), _taking(metrics, "upload"):
                paths = await self._received(request, folder, FIELDS.get(work["ask"], (SCAN,)), of_pacs)
                for field, uids in of_pacs.items():
                    paths[field] = str(folder / f"pacs-{field}")
                    fetch = partial(apart, ask=FETCH, uids=uids, to=paths[field], paths={})
                    if (reply := await _while_connected(request, fetch)).result is None:
                        return reply, None

            async def turn() -> Reply:
                begin = time.perf_counter()
                async with self.load.turn():
                    await anyio.lowlevel.checkpoint()  # whoever has left by now gets no child
                    metrics.took("wait", time.perf_counter() - begin)
                    with _taking(metrics, "work"):
                        return await _run_again(partial(apart, **work, paths=paths))

            with self.load.queueing():
                reply = await _while_connected(request, turn)
            answer = folder / ANSWER
            if reply.result is None or not answer.is_file():
                return reply, None
            if not work[STORE]:
                return reply, answer.open("rb")
            stored = await _while_connected(request, partial(apart, ask=STORE, paths={SCAN: str(answer)}))
            if stored.result is None:
                return stored, None
            return replace(reply, result=Result(reply.result.content | {"stored": stored.result.content})), None

    async def _received(
        self, request: Request, folder: Path, fields: Sequence[str], of_pacs: Collection[str]
    ) -> dict[str, str]:
        """Field to where its scan lies, of those that the request does not name but holds."""
        held = [field for field in fields if field not in of_pacs]
        if not held:
            await receive_nothing(request)
            return {}
        (upload := folder / "upload").mkdir()
        sent = await receive_files(request, upload, self.limits, Pace.of(self.limits))
        return {field: str(path) for field, path in scans_of(sent, held).items()}

    def _come_again(self) -> int:
        """Seconds after which another try is sensible: here, or where the service goes on when this one ends."""
        return self.limits.drain_seconds if self.drain.begun else self.load.retry_after()

    def _later(self, message: str) -> Refusal:
        return Refusal(message, 503, retry_after=str(self._come_again()))

    def _cut(self) -> None:
        for scope in list(self._open):
            scope.cancel()

    def _loaded(self) -> tuple[Forks, Metrics]:
        if self._forks is None or self.metrics is None:
            raise HTTPException(503, "the model is not loaded yet", {"Retry-After": str(START_SECONDS)})
        return self._forks, self.metrics


async def _run_again(work: Callable[[], Awaitable[Reply]]) -> Reply:
    """Where something from outside has ended the program that reads, its clients need not know: their files are here.
    ``READ_AGAIN`` times at most, since what a file does to its reader could end the program, too. Raises
    ReaderGoneError."""
    for _ in range(READ_AGAIN):
        try:
            return await work()
        except ReaderGoneError:
            log.warning("a file is given to a reader again: the program that had it was ended")
    return await work()


async def _while_connected(request: Request, work: Callable[[], Awaitable[Reply]]) -> Reply:
    """What ``work`` gives. Raises ClientDisconnect, and the work has ended, where the client leaves before."""
    reply: Reply | None = None
    failure: Exception | None = None
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            reply = await work()
        except Exception as error:  # as it is, and not in a group of the tasks
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if reply is None:
        raise ClientDisconnect
    return reply


@contextmanager
def _taking(metrics: Metrics, step: str) -> Iterator[None]:
    """Measure a step that ends well."""
    begin = time.perf_counter()
    yield
    metrics.took(step, time.perf_counter() - begin)


def _refused(reply: Reply) -> tuple[str, int]:
    """Outcome, as it is counted, and HTTP status of a reply without a result."""
    if reply.outcome in KILLED:
        log.warning("a file's reader was ended: %s", reply.message)
        return f"killed_{reply.outcome}", 422
    if reply.outcome == "no_room":
        return "no_room", 503
    if reply.status == GPU_FAILED:
        log.warning("a file was not answered: %s", reply.message)
        return "gpu", 503
    if reply.outcome == "failed":
        log.error("a file is not readable: %s\n%s", reply.message, reply.where)
        return "unreadable", 422
    status = reply.status if reply.status in REFUSED else 422  # a reader that was taken over may say anything
    return f"refused_{status}", status


def _series(content: dict[str, Any]) -> str:
    """Pseudonym of the series of an answer, empty where there is none."""
    found = content.get("found")
    return str(found.get("series", "")) if isinstance(found, dict) else ""


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)
