"""One DICOM file as its header describes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Instance:
    """One file: where it is, its status, and the header values that were there.

    Attributes:
        location: path relative to the source's root; a zip's members follow ``!/``.
        bytes: size.
        status: ``image``, ``object`` (DICOM without an image), ``dicomdir``, ``not_dicom`` or ``unreadable``.
        truncated: pixel data end before the length they declare.
        tags: keyword to value, only what is present and not empty, as ``values.normalised`` has them.
        identifiers: keywords of direct identifiers with a real value.
        private_unknown: private elements that are not known to be harmless.
        frames: of enhanced and legacy converted CT, what each frame's functional groups say, as ``tags``.
        detail: of an ``unreadable`` file, what reading it raised; no value of the file is in it.
        unpacked: bytes once inflated, of a deflated file.
        too_large: it would inflate to more than allowed.
    """

    location: str
    bytes: int
    status: str
    truncated: bool = False
    tags: dict[str, Any] = field(default_factory=dict)
    transfer_syntax: str = ""
    identifiers: tuple[str, ...] = ()
    private_unknown: frozenset[str] = frozenset()
    frames: tuple[dict[str, Any], ...] = ()
    detail: str = ""
    unpacked: int = 0
    too_large: bool = False

    def whole(self, keyword: str) -> int | None:
        """A whole number, or None where it is missing or none."""
        value = self.tags.get(keyword)
        return value if isinstance(value, int) else None

    def vector(self, keyword: str, length: int) -> np.ndarray[Any, np.dtype[np.float64]] | None:
        """A numeric multi-value as floats, or None where it is missing or not of ``length`` finite numbers."""
        try:
            values = np.asarray([float(v) for v in self.tags.get(keyword, ())], dtype=np.float64)
        except (TypeError, ValueError):
            return None
        return values if values.shape == (length,) and np.isfinite(values).all() else None
