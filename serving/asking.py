"""What a request asks of the heads, in which form, and whether they can answer: known before its body is read."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from serving.sniff import InputError

POINT = "point_mm"
HEAD, FORM = "head", "form"
# Form of a segmentation to media type and name of the file; json has the structures and no voxels.
FORMS = {
    "json": ("application/json", ""),
    "nifti": ("application/gzip", "labels.nii.gz"),
    "dicom": ("application/dicom", "labels.dcm"),
}
PREVIEW = ("application/gzip", "preview.nii.gz")
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


def form_of(text: str | None) -> str:
    """One of :data:`FORMS`; json for None. Raises InputError with 400 for any other."""
    form = "json" if text is None else text
    if form not in FORMS:
        raise InputError(f"{FORM} {form[:60]!r} is not allowed: {', '.join(FORMS)}", 400)
    return form


def segmenter_of(parts: Collection[str], asked: str | None) -> str:
    """The head that segments.

    Args:
        parts: of the release's heads that segment.
        asked: one of them; None where there is one.

    Raises:
        InputError: 404 where the release has none; 400 for one that it has not, or where it has several and none was
            named.
    """
    if not parts:
        raise InputError("this release has no head that segments: give a task of kind segment `serve: true`", 404)
    if asked is None and len(parts) == 1:
        return next(iter(parts))
    if asked is not None and asked in parts:
        return asked
    what = "several heads segment" if asked is None else f"{HEAD} {asked[:60]!r} is not allowed"
    raise InputError(f"{what}: {HEAD}= one of {', '.join(parts)}", 400)
