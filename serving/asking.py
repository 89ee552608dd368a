"""What a request asks of the heads, in which form, and whether they can answer: known before its body is read."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from serving.sniff import InputError

POINT = "point_mm"
HEAD, FORM, CLASS, WAY, BLOCKS, NEAREST = "head", "form", "of_class", "way", "blocks", "nearest"
SCAN, OTHER = "scan", "other"
FIELDS = {"locate": (SCAN, OTHER)}  # file fields of a request with several scans, by route
ANSWER = "answer"  # a file in the request's scratch folder, where an answer is more than JSON
# Form of an answer to media type and ending of its file; json has no voxels.
FORMS = {
    "json": ("application/json", ""),
    "nifti": ("application/gzip", ".nii.gz"),
    "dicom": ("application/dicom", ".dcm"),
    "capture": ("application/dicom", ".dcm"),
}
FORMS_OF_LABELS, FORMS_OF_A_MAP = ("json", "nifti", "dicom"), ("json", "nifti", "dicom", "capture")
IN_A_PACS = ("dicom", "capture")
FILES = {
    "classify": "answers",
    "segment": "labels",
    "saliency": "saliency",
    "preview": "preview",
}  # route to the name of its file
WAYS = ("occlusion", "gradients")
DOES = {"segment": "segments", "classify": "classifies"}
BLOCKS_AN_AXIS, MOST_BLOCKS = 6, 16
NEAREST_CASES, MOST_NEAREST = 5, 100
INDEX_VARIABLE = "CTFOUNDRY_INDEX"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)  # float() takes 1_0 and more
HOW = f"{POINT}=R,A,S, three numbers: a place in the scan in mm, right, anterior and superior positive"


def point_of(text: str | None) -> tuple[float, float, float] | None:
    """A point from the text of a request; None for none. Raises InputError with 400 for what is no point."""
    if text is None:
        return None
    try:
        x, y, z = (float(part) for part in text.split(",") if NUMBER.fullmatch(part.strip(" ")))
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


def require_point(point: tuple[float, float, float] | None, sees: str, who: str) -> None:
    """Raises InputError with 409 where a point is needed and none was sent, with 400 where one was and none is."""
    if sees == "point" and point is None:
        raise InputError(f"{who} sees a point: send {HOW}", 409)
    if sees == "scan" and point is not None:
        raise InputError(f"{POINT} is not allowed: {who} sees the whole scan", 400)


def one_of(name: str, text: str | None, allowed: Collection[str]) -> str:
    """One of those allowed; the first for None. Raises InputError with 400 for any other."""
    chosen = next(iter(allowed)) if text is None else text
    if chosen not in allowed:
        raise InputError(f"{name} {chosen[:60]!r} is not allowed: {', '.join(allowed)}", 400)
    return chosen


def form_of(text: str | None) -> str:
    """One of :data:`FORMS_OF_LABELS`; json for None. Raises InputError with 400 for any other."""
    return one_of(FORM, text, FORMS_OF_LABELS)


def count_of(name: str, text: str | None, default: int, most: int) -> int:
    """A whole number from 1 to ``most``. Raises InputError with 400 for any other."""
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise InputError(f"{name} {text[:60]!r} is not allowed: a whole number from 1 to {most}", 400)
    return int(text)


def segmenter_of(parts: Collection[str], asked: str | None) -> str:
    """The head that segments, see :func:`head_of`."""
    return head_of(parts, asked, "segment")


def head_of(parts: Collection[str], asked: str | None, does: str) -> str:
    """The head that is asked.

    Args:
        parts: of the release's heads that do what is wanted.
        asked: one of them; None where there is one.
        does: what they do, also the kind of their tasks.

    Raises:
        InputError: 404 where the release has none; 400 for one that it has not, or where it has several and none was
            named.
    """
    if not parts:
        raise InputError(f"this release has no head that {DOES[does]}: give a task of kind {does} `serve: true`", 404)
    if asked is None and len(parts) == 1:
        return next(iter(parts))
    if asked is not None and asked in parts:
        return asked
    what = f"several heads {does}" if asked is None else f"{HEAD} {asked[:60]!r} is not allowed"
    raise InputError(f"{what}: {HEAD}= one of {', '.join(parts)}", 400)


def require_once(names: Collection[str]) -> None:
    """Raises InputError with 400 where a parameter of a query is there twice: which of the two is meant?"""
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise InputError(f"{twice[:60]!r} is in the query more than once: send it once", 400)


def classified(query: Mapping[str, str], model: Mapping[str, Any]) -> dict[str, Any]:
    """What ``POST /classify`` asks of a model, as ``GET /model`` tells of it. Raises InputError where it cannot."""
    point = point_of(query.get(POINT))
    require_answer(model["heads"], point)
    return {POINT: point, FORM: one_of(FORM, query.get(FORM), ["json", "dicom"])}


def segmented(query: Mapping[str, str], model: Mapping[str, Any]) -> dict[str, Any]:
    """As :func:`classified`, of ``POST /segment``."""
    return {FORM: form_of(query.get(FORM)), HEAD: segmenter_of(model["segments"], query.get(HEAD))}


def explained(query: Mapping[str, str], model: Mapping[str, Any]) -> dict[str, Any]:
    """As :func:`classified`, of ``POST /saliency``."""
    part = head_of(model["heads"], query.get(HEAD), "classify")
    point, sees = point_of(query.get(POINT)), model["heads"][part]
    require_point(point, sees, f"head {part}")
    of_class = query.get(CLASS)
    if of_class is not None:
        one_of(CLASS, of_class, model["classes"][part])
    wanted = {
        "part": part, "of_class": of_class, "point": point, "way": one_of(WAY, query.get(WAY), WAYS),
        "blocks": count_of(BLOCKS, query.get(BLOCKS), BLOCKS_AN_AXIS, MOST_BLOCKS),
    }  # fmt: skip
    if wanted["way"] == "gradients":
        require_gradients(sees, model["sees"])
    return {FORM: one_of(FORM, query.get(FORM), FORMS_OF_A_MAP), "wanted": wanted}


def require_gradients(sees: str, encoder_sees: str) -> None:
    """Raises InputError with 400 where a head sees a whole scan of which the encoder sees places only."""
    if (sees, encoder_sees) == ("scan", "crop"):
        raise InputError(
            f"{WAY} 'gradients' is not allowed: this head sees the mean over places; allowed: occlusion", 400
        )


def located(query: Mapping[str, str], model: Mapping[str, Any]) -> dict[str, Any]:
    """As :func:`classified`, of ``POST /locate``."""
    require_places(model["sees"])
    point = point_of(query.get(POINT))
    require_point(point, "point", "this route")
    return {POINT: point}


def require_places(encoder_sees: str) -> None:
    """Raises InputError with 404 where the encoder sees whole scans, and so no places in them."""
    if encoder_sees == "scan":
        raise InputError("the encoder of this release sees whole scans, and finds no places in them", 404)


def retrieved(query: Mapping[str, str], model: Mapping[str, Any]) -> dict[str, Any]:
    """As :func:`classified`, of ``POST /retrieve``."""
    if model["index"] is None:
        raise InputError(f"no index is served: make one with `ctfoundry index` and name it in {INDEX_VARIABLE}", 404)
    return {NEAREST: count_of(NEAREST, query.get(NEAREST), NEAREST_CASES, MOST_NEAREST)}
