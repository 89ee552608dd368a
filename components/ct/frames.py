"""Enhanced and legacy converted multi-frame CT: what each frame's header would say, had it a file of its own.

Functional groups after PS3.3 C.7.6.16: what all frames share, then what each has. An attribute counts only in the macro
where it means what it means in single-frame CT: the second tube of a dual-source scanner states a KVP, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydicom import Dataset, Sequence

from components.ct.values import normalised

SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
# Macro to its attributes, and the names of these in single-frame CT (PS3.3 C.7.6.16.2, C.8.15.3).
_SAME = {
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "FrameContentSequence": ("TemporalPositionIndex",),
    "CardiacSynchronizationSequence": ("NominalPercentageOfCardiacPhase",),
    "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope", "RescaleType"),
    "CTAcquisitionDetailsSequence": ("GantryDetectorTilt",),
    "CTReconstructionSequence": ("ConvolutionKernel",),
    "CTXRayDetailsSequence": ("KVP",),
}
MACROS = {macro: {keyword: keyword for keyword in keywords} for macro, keywords in _SAME.items()}
MACROS["FrameContentSequence"] |= {"FrameAcquisitionNumber": "AcquisitionNumber"}
MACROS["CTImageFrameTypeSequence"] = {"FrameType": "ImageType"}
# Legacy converted CT keeps here what its single slices said and no macro has (PS3.3 C.7.6.16.2.25).
UNASSIGNED = ("UnassignedSharedConvertedAttributesSequence", "UnassignedPerFrameConvertedAttributesSequence")
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
# Of multi-frame CT (PS3.4 B.5), besides the class of single slices.
CLASSES = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")


def is_object(values: Mapping[str, Any]) -> bool:
    """Of a header without Rows: whether the file is an object without an image, such as a structure set. A file cut
    inside its header parses, too, but says that it is CT, or nothing."""
    return values.get("SOPClassUID", CT_IMAGE_STORAGE) not in (CT_IMAGE_STORAGE, *CLASSES)


def is_multi_frame(values: Mapping[str, Any]) -> bool:
    """Whether a header's functional groups are to be looked at."""
    return values.get("SOPClassUID") in CLASSES or values.get("NumberOfFrames", 1) not in (0, 1)


def frame_values(dataset: Dataset, wanted: frozenset[str]) -> list[dict[str, Any]]:
    """One mapping of keyword to (normalised) value per frame, in the order of the pixels; none where the file has no
    such groups.

    Only what the groups say: what the file says of all frames at its top level is not repeated.

    Args:
        dataset: a header, its sequences included.
        wanted: keywords.
    """
    frames, shared_groups = dataset.get(PER_FRAME), dataset.get(SHARED)
    if not isinstance(frames, Sequence):
        return []
    shared: dict[str, Any] = {}
    for group in shared_groups if isinstance(shared_groups, Sequence) else []:
        shared |= _flat(group, wanted)
    return [{**shared, **_flat(frame, wanted)} for frame in frames]


def _flat(groups: Dataset, wanted: frozenset[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for macro, names in _names(wanted):
        values |= _stated(groups, macro, names)
    return values


@cache
def _names(wanted: frozenset[str]) -> list[tuple[str, dict[str, str]]]:
    unassigned = [(macro, {keyword: keyword for keyword in sorted(wanted)}) for macro in UNASSIGNED]
    return unassigned + [
        (macro, {name: keyword for name, keyword in names.items() if keyword in wanted})
        for macro, names in MACROS.items()
    ]


def _stated(groups: Dataset, macro: str, names: Mapping[str, str]) -> dict[str, Any]:
    """Of a macro's first item (the others are of further tubes, or not allowed), by the names of single-frame CT."""
    items = groups.get(macro)
    if not isinstance(items, Sequence) or not items:
        return {}
    found = {keyword: normalised(keyword, items[0].get(name)) for name, keyword in names.items()}
    return {keyword: value for keyword, value in found.items() if value is not None}
