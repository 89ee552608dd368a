"""Enhanced and legacy converted multi-frame CT: what each frame's header would say, had it a file of its own.

Functional groups after PS3.3 C.7.6.16: what all frames share, then what each has. A group's place in them says nothing
that its attributes do not say themselves, but for the two that single-frame CT knows by another name.
"""

from __future__ import annotations

from typing import Any

from pydicom import Dataset

SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
RENAMED = {"FrameType": "ImageType", "FrameAcquisitionNumber": "AcquisitionNumber"}
# Of multi-frame CT (PS3.4 B.5), besides the class of single slices.
CLASSES = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")


def frame_values(dataset: Dataset, wanted: frozenset[str]) -> list[dict[str, Any]]:
    """One mapping of keyword to value per frame, in the order of the pixels; none where the file has no such groups.

    Only what the groups say: what the file says of all frames at its top level is not repeated.

    Args:
        dataset: a header, its sequences included.
        wanted: keywords.
    """
    frames = dataset.get(PER_FRAME)
    if not frames:
        return []
    shared: dict[str, Any] = {}
    for group in dataset.get(SHARED) or []:
        shared |= _flat(group, wanted)
    return [{**shared, **_flat(frame, wanted)} for frame in frames]


def _flat(groups: Dataset, wanted: frozenset[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for element in groups:
        if element.VR != "SQ" or not element.value:
            continue
        for inner in element.value[0]:  # each macro's sequence has one item
            keyword = RENAMED.get(inner.keyword, inner.keyword)
            if keyword in wanted and inner.value not in (None, "", []):
                values[keyword] = inner.value
    return values
