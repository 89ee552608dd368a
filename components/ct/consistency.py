"""What the instances of one series must share, and what of each must be plausible, measured from their headers.

Measurements only, as in ``components.ct.headers``: the suite *headers* judges them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from components.ct.instance import Instance

# Header values that these measurements need, besides those that place a slice.
TAGS = (
    "PhotometricInterpretation", "SamplesPerPixel", "BitsStored", "RescaleSlope", "RescaleType", "SpacingBetweenSlices",
)  # fmt: skip
# ImageType values of images that are computed from several slices (PS3.3 C.8.16.1 and vendors' own words).
PROJECTIONS = {"MIP", "MAXIMUM", "MINIP", "MIN_IP", "PROJECTION IMAGE", "VOLUME RENDERED", "VRT", "SSD"}
APART_MM = 0.01  # positions closer than this are one position
NAN = float("nan")  # keeps a column numeric where a whole shard states nothing

Floats = npt.NDArray[np.float64]


def measure_consistency(images: Sequence[Instance]) -> dict[str, Any]:
    """One value per column of the receipt; counts are of distinct values, lengths in mm; NaN where not measurable.

    ``orientation`` is the first image's ImageOrientationPatient as text, '' where it has none; ``gap_min_ratio`` the
    smallest gap between neighbouring slices over the median gap; ``off_line_mm`` the largest distance of a slice's
    position from the straight line through the first and the last. ``rescale_missing`` counts images whose slope or
    intercept is missing, empty or no number; the other rescale columns count only images that state one.
    """
    kvp = _numbers(images, "KVP")
    slopes, intercepts = _numbers(images, "RescaleSlope"), _numbers(images, "RescaleIntercept")
    between = [abs(value) for value in _numbers(images, "SpacingBetweenSlices") if value]
    first = images[0].tags if images else {}
    return {
        "patients": _distinct(images, "PatientID"),
        "studies": _distinct(images, "StudyInstanceUID"),
        "series_uids": _distinct(images, "SeriesInstanceUID"),
        "frames_of_reference": _distinct(images, "FrameOfReferenceUID"),
        "scanners": len({(i.tags.get("Manufacturer"), i.tags.get("ManufacturerModelName")) for i in images}),
        "kvp_min": min(kvp, default=NAN),
        "kvp_max": max(kvp, default=NAN),
        "photometric": _joined(images, "PhotometricInterpretation"),
        "samples_per_pixel": max(_numbers(images, "SamplesPerPixel"), default=NAN),
        "frames_per_image": max(_numbers(images, "NumberOfFrames"), default=NAN),
        "bits_allocated": min(_numbers(images, "BitsAllocated"), default=NAN),
        "bits_stored": min(_numbers(images, "BitsStored"), default=NAN),
        "rescale_missing": sum(_number(i, "RescaleSlope") is None or _number(i, "RescaleIntercept") is None
                               for i in images),
        "rescale_slopes": len(set(slopes)),
        "rescale_intercepts": len(set(intercepts)),
        "rescale_slope_min": min(slopes, default=NAN),
        "rescale_slope_max": max(slopes, default=NAN),
        "rescale_type": _joined(images, "RescaleType"),
        "patient_positions": _joined(images, "PatientPosition"),
        "is_projection": any(PROJECTIONS & {str(word).upper() for word in _words(i, "ImageType")} for i in images),
        "spacing_between_mm": round(float(np.median(between)), 4) if between else NAN,
        "field_rows_mm": _field(images, first.get("Rows"), 0),
        "field_columns_mm": _field(images, first.get("Columns"), 1),
        **_stack(images),
    }  # fmt: skip


def _distinct(images: Sequence[Instance], keyword: str) -> int:
    return len({i.tags.get(keyword) for i in images})


def _words(image: Instance, keyword: str) -> tuple[Any, ...]:
    value = image.tags.get(keyword, ())
    return value if isinstance(value, tuple) else (value,)


def _joined(images: Sequence[Instance], keyword: str) -> str:
    """The distinct values that are stated, sorted, '|' between them; '' where none is."""
    return "|".join(sorted({str(i.tags[keyword]).strip() for i in images if keyword in i.tags}))


def _number(image: Instance, keyword: str) -> float | None:
    """A finite number, or None where the image states none."""
    try:
        value = float(image.tags[keyword])
    except (KeyError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _numbers(images: Sequence[Instance], keyword: str) -> list[float]:
    return [value for image in images if (value := _number(image, keyword)) is not None]


def _field(images: Sequence[Instance], size: Any, axis: int) -> float:
    """Extent of the first image along its rows' (0) or columns' (1) direction of counting."""
    spacing = images[0].vector("PixelSpacing", 2) if images else None
    return NAN if spacing is None or not isinstance(size, int) else round(float(spacing[axis]) * size, 3)


def _stack(images: Sequence[Instance]) -> dict[str, Any]:
    orientation = next((o for i in images if (o := i.vector("ImageOrientationPatient", 6)) is not None), None)
    if orientation is None:
        return {"orientation": "", "gap_min_ratio": NAN, "off_line_mm": NAN}
    text = "\\".join(f"{value:.6g}" for value in orientation)
    normal = np.cross(orientation[:3], orientation[3:])
    length = float(np.linalg.norm(normal))
    positions = [p for i in images if (p := i.vector("ImagePositionPatient", 3)) is not None]
    if len(positions) < 3 or length < 1e-6:
        return {"orientation": text, "gap_min_ratio": NAN, "off_line_mm": NAN}
    points: Floats = np.stack(positions)
    points = points[np.argsort(points @ normal, kind="stable")]
    gaps = np.diff(points @ normal) / length
    apart = gaps[gaps > APART_MM]
    ends = points[-1] - points[0]
    reach = float(np.linalg.norm(ends))
    if not len(apart) or reach < APART_MM:
        return {"orientation": text, "gap_min_ratio": NAN, "off_line_mm": NAN}
    relative = points - points[0]
    aside = relative - np.outer(relative @ ends / reach**2, ends)
    return {
        "orientation": text,
        "gap_min_ratio": round(float(apart.min() / np.median(apart)), 4),
        "off_line_mm": round(float(np.linalg.norm(aside, axis=1).max()), 3),
    }
