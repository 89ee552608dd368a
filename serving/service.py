"""The BentoML service: a released model behind ``/embed``, with probes, figures, a page and an OpenAPI document.

The routes are a plain ASGI application: BentoML's own file inputs would spool whole bodies and fetch addresses. Its
figures are off, since they have a label for every path that anybody asks for, and so is its bound on requests, which
counts whoever sends slowly, and the probes of people, among those who are worked on.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
from typing import Any

os.environ["BENTOML_DO_NOT_TRACK"] = "True"  # before BentoML is imported: it decides once

import bentoml
from starlette.types import Receive, Scope, Send

from components.confined import Bounds
from components.errors import UserError
from serving import worker
from serving.account import write_audit_lines
from serving.app import EmbedApp
from serving.connections import watch_connections
from serving.forks import Forks
from serving.guard import HEADERS, Guard
from serving.limits import Limits, bundle_folder
from serving.program import die_with_parent
from serving.scratch import sweep
from serving.tokens import Tokens

# BentoML must be given a time limit: this is beyond ours, which answers in one line.
BEYOND_SECONDS = 60
REFUSED = signal.SIGUSR1  # to BentoML's supervisor, where nothing is served

application = EmbedApp()
log = logging.getLogger("bentoml.service.ctfoundry")


def longest_seconds() -> int:
    """BentoML's time limit; a setting that is not allowed is told when the service starts, not at import."""
    try:
        return Limits.from_environment().request_seconds + BEYOND_SECONDS
    except UserError:
        return Limits().request_seconds + BEYOND_SECONDS


def without_timers() -> bool:
    """Have BentoML start no timer for a request, for ours end what takes too long: it keeps each until its time is
    over, long after the answer, and with it some 5 kB; whoever asks often enough for nothing would fill the memory.

    Returns:
        Whether it could be done: it is no promise of BentoML's that its parts are called so.
    """
    try:
        from bentoml._internal.server.http.traffic import TimeoutMiddleware
    except ImportError:
        log.warning("this BentoML's timers cannot be left out: each request keeps some memory for minutes")
        return False

    async def straight(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    TimeoutMiddleware.__call__ = straight  # type: ignore[method-assign]
    return True


def fail_where_refused() -> None:
    """Have BentoML's supervisor, which imports this too, end with 1 after :data:`REFUSED`; by itself it ends with 0,
    as when it is told to end, and an orchestrator would take that for success."""

    def end() -> None:
        sys.stdout.flush()
        os._exit(1)

    signal.signal(REFUSED, lambda *_: atexit.register(end))


without_timers()
fail_where_refused()


@bentoml.asgi_app(application.starlette)
@bentoml.service(name="CTEmbed", workers=1, traffic={"timeout": longest_seconds()}, metrics={"enabled": False})
class CTEmbed:
    """CT embeddings: POST one DICOM series as zip, or a NIfTI volume, to /embed."""

    def __init__(self) -> None:
        try:
            limits = Limits.from_environment()
            forks = Forks(worker.command(bundle_folder()), worker.environment(), Bounds.from_environment())
            application.start(forks, limits, Tokens.from_environment())
        except UserError as error:
            log.critical("not served: %s", error)
            for number in (REFUSED, signal.SIGTERM):
                os.kill(os.getppid(), number)  # BentoML would start this process again, for ever
            os._exit(1)  # an exception, SystemExit too, would be logged with its traceback
        sweep()
        write_audit_lines()
        # uvicorn, in whose process this is, has put its own handler there a moment ago.
        watch_connections(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), HEADERS)
        application.drain.watch(limits)
        die_with_parent(signal.SIGTERM, os.getppid())  # or it would serve on, with nobody to start or end it


CTEmbed.add_asgi_middleware(Guard, application=application)  # type: ignore[attr-defined]
