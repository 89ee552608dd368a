"""How much a request may cost. Defaults fit an 8 GB machine; the environment of the machine changes them."""

from __future__ import annotations

from dataclasses import dataclass

from components.confined import number_from
from components.isolation import GIB

BUNDLE_VARIABLE = "CTFOUNDRY_BUNDLE"  # the release folder to serve in development


@dataclass(frozen=True)
class Limits:
    """Bounds of one request and of the service.

    Attributes:
        body_bytes: largest body accepted (``CTFOUNDRY_MAX_BODY_BYTES``).
        unpacked_bytes: largest content of an archive or of a compressed NIfTI (``CTFOUNDRY_MAX_UNPACKED_BYTES``).
        files: most members of an archive (``CTFOUNDRY_MAX_FILES``).
        voxels: most voxels of a volume, as sent and on the model's grid (``CTFOUNDRY_MAX_VOXELS``).
        at_once: volumes processed at the same time (``CTFOUNDRY_CONCURRENCY``).
    """

    body_bytes: int = GIB
    unpacked_bytes: int = 4 * GIB
    files: int = 20_000
    voxels: int = 2**28  # 512 x 512 x 1024
    at_once: int = 1

    @classmethod
    def from_environment(cls) -> Limits:
        """Limits with what the environment says. Raises UserError for a value that is no positive integer."""
        return cls(
            body_bytes=number_from("CTFOUNDRY_MAX_BODY_BYTES", cls.body_bytes),
            unpacked_bytes=number_from("CTFOUNDRY_MAX_UNPACKED_BYTES", cls.unpacked_bytes),
            files=number_from("CTFOUNDRY_MAX_FILES", cls.files),
            voxels=number_from("CTFOUNDRY_MAX_VOXELS", cls.voxels),
            at_once=number_from("CTFOUNDRY_CONCURRENCY", cls.at_once),
        )
