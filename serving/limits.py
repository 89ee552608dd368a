"""How much a request may cost. Defaults fit an 8 GB machine; the environment of the machine changes them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from components.confined import number_from
from components.errors import UserError
from components.isolation import GIB

BUNDLE_VARIABLE = "CTFOUNDRY_BUNDLE"  # the release folder to serve in development
DEVICE_VARIABLE = "CTFOUNDRY_DEVICE"
DEVICES = ("auto", "cpu", "cuda")


def bundle_folder() -> Path:
    """The release to serve: ``CTFOUNDRY_BUNDLE`` in development, else ``bundle/`` beside the code, as in a Bento."""
    chosen = os.environ.get(BUNDLE_VARIABLE)
    return Path(chosen) if chosen else Path(__file__).resolve().parent.parent / "bundle"


def device_asked() -> str:
    """Of :data:`DEVICES`, as ``CTFOUNDRY_DEVICE`` says; ``auto`` where it says nothing. Raises UserError."""
    asked = os.environ.get(DEVICE_VARIABLE, "").strip() or DEVICES[0]
    if asked not in DEVICES:
        raise UserError(f"{DEVICE_VARIABLE}: {asked!r} is not allowed: {', '.join(DEVICES)}")
    return asked


@dataclass(frozen=True)
class Limits:
    """Bounds of one request and of the service.

    Attributes:
        body_bytes: largest body accepted (``CTFOUNDRY_MAX_BODY_BYTES``).
        unpacked_bytes: largest content of an archive or of a compressed NIfTI (``CTFOUNDRY_MAX_UNPACKED_BYTES``).
        files: most members of an archive (``CTFOUNDRY_MAX_FILES``).
        voxels: most voxels of a volume, as sent and on the model's grid (``CTFOUNDRY_MAX_VOXELS``).
        at_once: volumes processed at the same time (``CTFOUNDRY_CONCURRENCY``).
        queue: files that wait or are worked on, together (``CTFOUNDRY_MAX_QUEUE``).
        uploads: files that are being sent at the same time (``CTFOUNDRY_MAX_UPLOADS``).
        upload_seconds: for one upload (``CTFOUNDRY_UPLOAD_SECONDS``).
        upload_rate: bytes a second that an upload must bring (``CTFOUNDRY_UPLOAD_BYTES_PER_SECOND``).
        request_seconds: for a request, its upload and its waiting included (``CTFOUNDRY_REQUEST_SECONDS``).
        drain_seconds: from SIGTERM on, in which a balancer can see that the service is not ready before it may end
            (``CTFOUNDRY_DRAIN_SECONDS``).
        grace_seconds: from SIGTERM on, after which what is still in work is ended (``CTFOUNDRY_GRACE_SECONDS``).
        warm_seconds: without a request, after which no process waits on the GPU (``CTFOUNDRY_WARM_SECONDS``).
    """

    body_bytes: int = GIB
    unpacked_bytes: int = 4 * GIB
    files: int = 20_000
    voxels: int = 2**28  # 512 x 512 x 1024
    at_once: int = 1
    queue: int = 16
    uploads: int = 32
    upload_seconds: int = 240
    upload_rate: int = 64 * 1024
    request_seconds: int = 300
    drain_seconds: int = 5
    grace_seconds: int = 300
    warm_seconds: int = 600

    @classmethod
    def from_environment(cls) -> Limits:
        """Limits with what the environment says.

        Raises:
            UserError: a value is no positive integer, the drain is longer than the grace, or more files are to be
                worked on than there may be.
        """
        found = cls(**{field: number_from(name, getattr(cls, field)) for field, name in VARIABLES.items()})
        for less, more in (("drain_seconds", "grace_seconds"), ("at_once", "queue")):
            value, most = getattr(found, less), getattr(found, more)
            if value > most:
                raise UserError(f"{VARIABLES[less]}: {value} is not allowed: at most {VARIABLES[more]}, {most}")
        return found


VARIABLES = {
    "body_bytes": "CTFOUNDRY_MAX_BODY_BYTES",
    "unpacked_bytes": "CTFOUNDRY_MAX_UNPACKED_BYTES",
    "files": "CTFOUNDRY_MAX_FILES",
    "voxels": "CTFOUNDRY_MAX_VOXELS",
    "at_once": "CTFOUNDRY_CONCURRENCY",
    "queue": "CTFOUNDRY_MAX_QUEUE",
    "uploads": "CTFOUNDRY_MAX_UPLOADS",
    "upload_seconds": "CTFOUNDRY_UPLOAD_SECONDS",
    "upload_rate": "CTFOUNDRY_UPLOAD_BYTES_PER_SECOND",
    "request_seconds": "CTFOUNDRY_REQUEST_SECONDS",
    "drain_seconds": "CTFOUNDRY_DRAIN_SECONDS",
    "grace_seconds": "CTFOUNDRY_GRACE_SECONDS",
    "warm_seconds": "CTFOUNDRY_WARM_SECONDS",
}
