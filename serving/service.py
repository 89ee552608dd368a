"""The BentoML service: a released model behind ``/embed``, with ``/healthz``, ``/readyz`` and ``/metrics``.

The routes are a plain ASGI application: BentoML's own file inputs would spool whole bodies and fetch addresses.
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

os.environ["BENTOML_DO_NOT_TRACK"] = "True"  # before BentoML is imported: it decides once

import bentoml

from components.confined import Bounds
from components.errors import UserError
from serving import worker
from serving.app import EmbedApp
from serving.forks import Forks
from serving.limits import BUNDLE_VARIABLE, Limits

REQUEST_SECONDS = 300
OPEN_REQUESTS = 16  # uploads and waiting requests; beyond it the answer is 429

application = EmbedApp()
log = logging.getLogger("bentoml.service.ctfoundry")


def bundle_folder() -> Path:
    """The release to serve: ``CTFOUNDRY_BUNDLE`` in development, else ``bundle/`` beside the code in the Bento."""
    chosen = os.environ.get(BUNDLE_VARIABLE)
    return Path(chosen) if chosen else Path(__file__).resolve().parent.parent / "bundle"


@bentoml.asgi_app(application.starlette)
@bentoml.service(name="CTEmbed", workers=1, traffic={"timeout": REQUEST_SECONDS, "max_concurrency": OPEN_REQUESTS})
class CTEmbed:
    """CT embeddings: POST one DICOM series as zip, or a NIfTI volume, to /embed."""

    def __init__(self) -> None:
        try:
            forks = Forks(worker.command(bundle_folder()), worker.environment(), Bounds.from_environment())
            application.start(forks, Limits.from_environment())
        except UserError as error:
            log.critical("not served: %s", error)
            os.kill(os.getppid(), signal.SIGTERM)  # BentoML would start this process again, for ever
            os._exit(1)  # an exception, SystemExit too, would be logged with its traceback
