"""The BentoML service: a released model behind ``/embed``, with probes, figures, a page and an OpenAPI document.

The routes are a plain ASGI application: BentoML's own file inputs would spool whole bodies and fetch addresses. Its
figures are off, since they have a label for every path that anybody asks for, and so is its bound on requests, which
counts whoever sends slowly, and the probes of people, among those who are worked on.
"""

from __future__ import annotations

import logging
import os
import signal

os.environ["BENTOML_DO_NOT_TRACK"] = "True"  # before BentoML is imported: it decides once

import bentoml

from components.confined import Bounds
from components.errors import UserError
from serving import worker
from serving.account import write_audit_lines
from serving.app import EmbedApp
from serving.connections import watch_connections
from serving.forks import Forks
from serving.guard import Guard
from serving.limits import Limits, bundle_folder
from serving.tokens import Tokens

# BentoML must be given a time limit, and keeps a timer of that length for each request: this is beyond ours, which
# answers in one line, and no longer than that needs.
BEYOND_SECONDS = 60

application = EmbedApp()
log = logging.getLogger("bentoml.service.ctfoundry")


def longest_seconds() -> int:
    """BentoML's time limit; a setting that is not allowed is told when the service starts, not at import."""
    try:
        return Limits.from_environment().request_seconds + BEYOND_SECONDS
    except UserError:
        return Limits().request_seconds + BEYOND_SECONDS


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
            os.kill(os.getppid(), signal.SIGTERM)  # BentoML would start this process again, for ever
            os._exit(1)  # an exception, SystemExit too, would be logged with its traceback
        write_audit_lines()
        # uvicorn, in whose process this is, has put its own handler there a moment ago.
        watch_connections(getattr(signal.getsignal(signal.SIGTERM), "__self__", None))
        application.drain.watch(limits)


CTEmbed.add_asgi_middleware(Guard, application=application)  # type: ignore[attr-defined]
