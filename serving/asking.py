"""What a request asks of the heads, and whether they can answer at all: known before its body is read."""

from __future__ import annotations

import math
from collections.abc import Mapping

from serving.sniff import InputError

POINT = "point_mm"
HOW = f"{POINT}=R,A,S, three numbers: a place in the scan in mm, right, anterior and superior positive"


def point_of(text: str | None) -> tuple[float, float, float] | None:
    """A point from the text of a request; None for none. Raises InputError with 400 for what is no point."""
    if text is None:
        return None
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{POINT} {text[:60]!r} is not allowed: {HOW}", 400) from None
    if not all(map(math.isfinite, (x, y, z))):
        raise InputError(f"{POINT} {text[:60]!r} is not allowed: {HOW}", 400)
    return x, y, z


def require_answer(heads: Mapping[str, str], point: tuple[float, float, float] | None) -> None:
    """Refuse before a body is read where no head could answer.

    Args:
        heads: part to what the head sees, ``scan`` or ``point``.
        point: that was sent.

    Raises:
        InputError: 404 where the release has no head; 409 where all of them see points and none was sent.
    """
    if not heads:
        raise InputError("this release has no heads: it gives vectors (POST /embed) and answers no question", 404)
    if point is None and "scan" not in heads.values():
        raise InputError(f"the heads of this release ({', '.join(heads)}) see a point: send {HOW}", 409)
