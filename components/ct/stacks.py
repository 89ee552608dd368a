"""Which images of a series form one stack of slices, where a series holds more than one: a scout beside the scan, two
reconstructions, several points in time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

APART_MM = 0.01  # positions closer than this are one position
MISSING_SLICE = 1.5  # a gap so many times longer or shorter than the median one is no step of the same grid
# What tells the images of one place apart, the most telling first (PS3.3 C.7.6.16.2.2, C.7.6.1, C.8.15.3).
TIMES = ("TemporalPositionIndex", "TemporalPositionIdentifier", "NominalPercentageOfCardiacPhase", "TriggerTime",
         "AcquisitionNumber", "AcquisitionDateTime", "AcquisitionTime")  # fmt: skip
# Header values that are looked at.
TAGS = ("ImageType", "Rows", "Columns", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing",
        "ConvolutionKernel", *TIMES)  # fmt: skip

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Stack:
    """The stack with the most slices.

    Attributes:
        members: which images, in their order.
        left_out_for: what the other images differ in; none where there are no others.
    """

    members: list[int]
    left_out_for: tuple[str, ...]


def largest_stack(images: Sequence[Values]) -> Stack:
    """The largest set of images of one matrix, orientation, pixel spacing and kernel, and, where these still hold
    several images at one place, of one time point. Scouts are no slices, however many they are. Of sets equally large,
    the first in the order of those values.

    Images at one place that no time tells apart stay together: they are for the suite *headers* to reject.

    Args:
        images: keyword to value, of at least :data:`TAGS`, as far as the headers state them.
    """
    chosen = list(range(len(images)))
    left_out_for: list[str] = []
    slices = [n for n in chosen if not _is_scout(images[n])]
    if slices and len(slices) < len(chosen):
        chosen, left_out_for = slices, ["scout"]
    for name, value in _KINDS:
        chosen, others = _largest(chosen, [value(image) for image in images])
        left_out_for += [name] if others else []
    if _repeated([images[n] for n in chosen]):
        for name in TIMES:
            part, others = _largest(chosen, [_text(image.get(name)) for image in images])
            if others and not _repeated([images[n] for n in part]):
                return Stack(part, (*left_out_for, "time"))
    return Stack(chosen, tuple(left_out_for))


def off_grid(positions: npt.NDArray[np.float64]) -> float:
    """The largest distance, in mm, of a slice from where an affine puts it: at even steps from the first to the last.

    Args:
        positions: ImagePositionPatient of at least one slice, (slices, 3), in the order of the stack.
    """
    shares = np.linspace(0.0, 1.0, len(positions))[:, None]
    even = positions[0] + shares * (positions[-1] - positions[0])
    return float(np.linalg.norm(positions - even, axis=1).max())


def no_grid(positions: npt.NDArray[np.float64], normal: npt.NDArray[np.float64]) -> str:
    """Why slices do not follow each other as those of one grid do; '' where they do.

    Args:
        positions: ImagePositionPatient, (slices, 3), in the order of the stack.
        normal: of the slices' planes, of any length.
    """
    gaps = np.diff(positions @ normal) / max(float(np.linalg.norm(normal)), 1e-9)
    if not len(gaps):
        return ""
    if gaps.max() < APART_MM:
        return "all slices lie at one position"
    if (same := int((gaps < APART_MM).sum())) > 0:
        return f"{same} of {len(positions)} slices lie at the position of another; allowed: none"
    usual = float(np.median(gaps))
    for gap in (float(gaps.max()), float(gaps.min())):
        if not usual / MISSING_SLICE <= gap <= usual * MISSING_SLICE:
            return (f"a gap of {gap:.4g} mm between slices {usual:.4g} mm apart: slices of the grid are missing, or "
                    "others lie between them")  # fmt: skip
    return ""


def _largest(members: list[int], values: Sequence[Any]) -> tuple[list[int], bool]:
    """Those of the members that share the commonest value; whether there are others."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for member in members:
        groups[values[member]].append(member)
    if len(groups) <= 1:
        return members, False
    return min(groups.items(), key=lambda pair: (-len(pair[1]), _in_order(pair[0])))[1], True


def _in_order(value: Any) -> tuple[float, str]:
    """Numbers as numbers, before everything else."""
    try:
        return float(value), ""
    except (TypeError, ValueError):
        return float("inf"), str(value)


def _repeated(images: Sequence[Values]) -> bool:
    if len(images) < 2:
        return False
    positions = [_numbers(image.get("ImagePositionPatient"), 6) for image in images]
    orientation = _numbers(images[0].get("ImageOrientationPatient"), 6)
    if len(orientation) != 6 or any(len(position) != 3 for position in positions):
        return False
    normal = np.cross(orientation[:3], orientation[3:])
    along = np.sort(np.array(positions) @ normal)
    return bool((np.diff(along) < APART_MM).any())


def _numbers(value: Any, digits: int) -> tuple[float, ...]:
    try:
        return tuple(round(float(v), digits) + 0.0 for v in value)  # no -0
    except (TypeError, ValueError):
        return ()


def _text(value: Any) -> str:
    """Also of values in parts, which the readers give as tuples or as pydicom's lists."""
    return "" if value is None else value if isinstance(value, str) else "\\".join(_parts(value))


def _parts(value: Any) -> list[str]:
    return [str(part) for part in value] if hasattr(value, "__iter__") else [str(value)]


def _is_scout(image: Values) -> bool:
    value = image.get("ImageType") or ()
    return "LOCALIZER" in (value.split("\\") if isinstance(value, str) else _parts(value))


_KINDS: tuple[tuple[str, Callable[[Values], Any]], ...] = (
    ("matrix", lambda image: (_text(image.get("Rows")), _text(image.get("Columns")))),
    ("orientation", lambda image: _numbers(image.get("ImageOrientationPatient"), 3)),
    ("pixel spacing", lambda image: _numbers(image.get("PixelSpacing"), 4)),
    ("kernel", lambda image: _text(image.get("ConvolutionKernel"))),
)
