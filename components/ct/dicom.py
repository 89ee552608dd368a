"""DICOM pixels to HU and geometry to an affine, for one screened CT series.

Native pixels are read as they lie in the file; compressed ones, whose own size is held against the header first, are
decoded by dicomsdl (11 times pydicom's speed, exact), RLE and what dicomsdl does not take by pydicom. Slices are
ordered by position along the normal, never by name or number.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from components.ct.dataset import DIRECTORY_STORAGE, InflateError, open_dataset
from components.ct.elements import HEAD_BYTES, native_pixels, read_regular
from components.ct.frames import PER_FRAME, SHARED, frame_values, is_multi_frame, is_object
from components.ct.pixels import DecodeError, Files, Slice, check_length, stored_frames, stored_values
from components.ct.stacks import TAGS as STACK_TAGS
from components.ct.stacks import largest_stack, no_grid
from components.ct.store import AIR_HU, FloatArray, Int16Array, Volume
from components.ct.values import values_of
from components.files import sha256_file

log = logging.getLogger(__name__)

GEOMETRY_TAGS = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "RescaleSlope",
    "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelRepresentation", "BitsStored", "HighBit",
    "SamplesPerPixel", "BitsAllocated", "NumberOfFrames", "SOPClassUID", "SeriesInstanceUID",
)  # fmt: skip
LARGEST_RESCALE = 1e6  # of slope and intercept; beyond it nothing is HU, and float32 overflows
ONE_PLANE = 1e-3  # direction cosines, and mm of pixel spacing, that rounding may change from slice to slice
NO_TISSUE_HU = (-1000, 3071)  # at or below the first is air at most; 12 bits end with the second
PIXEL_MM = (0.01, 20.0)  # no scanner is finer or coarser; beyond it a resampled volume would fill the memory


def read_series(
    paths: Sequence[Path], only_largest_stack: bool = False, digests: dict[str, str] | None = None
) -> Volume:
    """Decode the CT instances of one series: single slices, or enhanced or legacy converted multi-frame images. Objects
    without an image that share its folder or its UID (a structure set, a presentation state, a DICOMDIR) are left out,
    as the measurements of headers leave them out.

    Args:
        paths: the instances, in any order.
        only_largest_stack: of a series that holds more than one stack; otherwise all images must form one.
        digests: gets each file's name and hex SHA-256, of the very bytes that were decoded where these are native.

    Returns:
        int16 HU of shape (slices, rows, columns), slices in the order of the normal; pixels marked as padding are
        -1024 HU. The affine maps (slice, row, column) to RAS mm (DICOM PS3.3 C.7.6.2.1.1, with x and y negated).

    Raises:
        DecodeError: no instance, an instance that does not decode, or instances that do not form one grid: of several
            series, matrices, orientations or pixel spacings, two at one position, or some missing between others. How
            even the steps must be beyond that, the suite *headers* says.
    """
    if not paths:
        raise DecodeError("series: 0 instances is not allowed: at least 1")
    tags = tuple(dict.fromkeys((*GEOMETRY_TAGS, *STACK_TAGS))) if only_largest_stack else GEOMETRY_TAGS
    try:
        slices = [item for path in paths for item in _open(path, tags)]
        if not slices:
            raise DecodeError(f"series: none of its {len(paths)} files holds an image")
        if only_largest_stack:
            slices = [slices[n] for n in largest_stack([item.header for item in slices]).members]
        volume = _assemble(slices, Files(digests))
        if digests is not None:
            digests.update({path.name: sha256_file(path) for path in paths if path.name not in digests})
        return volume
    except (ValueError, TypeError, ArithmeticError) as error:
        if isinstance(error, DecodeError):
            raise
        # What the error says would quote the header.
        raise DecodeError(f"series: a header value is not the number it must be ({type(error).__name__})") from None


def _assemble(slices: list[Slice], files: Files) -> Volume:
    first = slices[0]
    orientation = first.vector("ImageOrientationPatient", 6)
    normal = np.cross(orientation[:3], orientation[3:])
    placed = [(item.vector("ImagePositionPatient", 3), item) for item in slices]
    placed.sort(key=lambda pair: float(np.dot(pair[0], normal)))
    shapes = {item.shape for item in slices}
    if len(shapes) != 1:
        raise DecodeError(f"series: slices of {len(shapes)} different matrix sizes")
    if min(first.shape) < 1:
        raise DecodeError(f"{first.path.name}: a matrix of {first.shape} is not allowed: at least one row and column")
    _check_one_plane(slices)
    positions = np.stack([position for position, _ in placed])
    if uneven := no_grid(positions, normal):
        raise DecodeError(f"series: {uneven}")
    affine = _affine(positions, orientation, first.vector("PixelSpacing", 2))
    hu: Int16Array = np.empty((len(slices), *first.shape), dtype=np.int16)
    framed: dict[Path, list[tuple[Slice, Int16Array]]] = defaultdict(list)
    for plane, (_, item) in zip(hu, placed, strict=True):
        if item.frame is None:
            _fill_hu(plane, item, stored_values(item, files))
        else:
            framed[item.path].append((item, plane))
    for pairs in framed.values():
        for (item, plane), stored in zip(pairs, stored_frames([item for item, _ in pairs]), strict=True):
            _fill_hu(plane, item, stored)
    return Volume(hu=hu, affine=affine)


def _check_one_plane(slices: list[Slice]) -> None:
    """Raises DecodeError where slices differ in their series, orientation or pixel spacing."""
    first = slices[0]
    series = {str(item.header.get("SeriesInstanceUID") or "") for item in slices}
    if len(series) > 1:
        raise DecodeError(f"series: instances of {len(series)} series; allowed: one")
    for keyword, length, name in (("ImageOrientationPatient", 6, "orientation"), ("PixelSpacing", 2, "pixel spacing")):
        stated, expected = first.header.get(keyword), first.vector(keyword, length)
        for item in slices:
            if item.header.get(keyword) == stated:
                continue
            if not np.abs(item.vector(keyword, length) - expected).max() <= ONE_PLANE:
                raise DecodeError(f"{item.path.name}: another {name} than in {first.path.name}; allowed: one grid")


def _open(path: Path, keywords: tuple[str, ...]) -> list[Slice]:
    """Read one header, with the short reader where it will; a slice for each of its frames, none of an object."""
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES[0])
            regular = read_regular(stream, head, keywords, None) if head[128:132] == b"DICM" else None
            if regular is not None and "Rows" in regular.values and not is_multi_frame(regular.values):
                pixels = native_pixels(regular.pixels, regular.pixels_at)
                item = Slice(path, regular.values, regular.syntax, pixels, regular.pixels_at)
                check_length(item, path.stat().st_size)
                return [item]
            opened = open_dataset(stream, path.stat().st_size, (*keywords, SHARED, PER_FRAME))
            values = values_of(opened.dataset, keywords)
            if opened.media_class == DIRECTORY_STORAGE or ("Rows" not in values and is_object(values)):
                return []
            pixels = native_pixels(opened.pixels, opened.pixels_at)
            item = Slice(path, values, opened.syntax, pixels, opened.pixels_at)
            check_length(item, opened.size)
            groups = frame_values(opened.dataset, frozenset(keywords)) if is_multi_frame(values) else []
            return _frames(item, groups)
    except (DecodeError, MemoryError):
        raise
    except InflateError as error:
        raise DecodeError(f"{path.name}: {error}") from None
    except Exception as error:  # pydicom raises many kinds on damaged files; each is this series' rejection
        raise DecodeError(f"{path.name}: header not readable ({type(error).__name__})") from None


def _frames(item: Slice, groups: list[dict[str, Any]]) -> list[Slice]:
    """Each frame of an enhanced or legacy converted multi-frame image; the image itself, where it is none."""
    if not groups:
        return [item]
    if item.number("NumberOfFrames", 1) != len(groups):
        raise DecodeError(f"{item.path.name}: functional groups of {len(groups)} frames, "
                          f"NumberOfFrames is {item.header.get('NumberOfFrames')}")  # fmt: skip
    return [replace(item, header={**item.header, **group}, frame=n) for n, group in enumerate(groups)]


def _affine(positions: FloatArray, orientation: FloatArray, spacing: FloatArray) -> FloatArray:
    if not all(PIXEL_MM[0] <= value <= PIXEL_MM[1] for value in spacing):
        raise DecodeError(f"series: PixelSpacing {spacing.tolist()} is not allowed: {PIXEL_MM[0]} to {PIXEL_MM[1]} mm")
    between_rows, between_columns = spacing
    row_direction, column_direction = orientation[:3], orientation[3:]
    if len(positions) > 1:
        step = (positions[-1] - positions[0]) / (len(positions) - 1)
    else:
        step = np.cross(row_direction, column_direction)
    lps = np.eye(4)
    lps[:3, 0] = step
    lps[:3, 1] = column_direction * between_rows  # the column direction points to the next row
    lps[:3, 2] = row_direction * between_columns
    lps[:3, 3] = positions[0]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def _fill_hu(out: Int16Array, item: Slice, stored: npt.NDArray[Any]) -> None:
    """Stored values to HU. MONOCHROME1 says how to show values, not what they mean (PS3.3 C.7.6.3.1.2):
    the rescaled values are HU either way."""
    if stored.shape != out.shape:
        raise DecodeError(f"{item.path.name}: pixels of shape {stored.shape}, the header says {out.shape}")
    slope, intercept = item.number("RescaleSlope", 1) or 1.0, item.number("RescaleIntercept", 0)
    if max(abs(slope), abs(intercept)) > LARGEST_RESCALE:
        raise DecodeError(f"{item.path.name}: slope {slope:g} and intercept {intercept:g} are not allowed: at most "
                          f"{LARGEST_RESCALE:g}")  # fmt: skip
    if not _shifted_into(out, stored, slope, intercept):
        hu = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        out[:] = np.clip(np.rint(hu), -32768, 32767).astype(np.int16)
    padding = padding_range(item.header)
    if padding is not None:
        marked = (stored >= padding[0]) & (stored <= padding[1])
        darkest, brightest = sorted(value * slope + intercept for value in padding)
        surely = brightest <= NO_TISSUE_HU[0] or darkest > NO_TISSUE_HU[1]
        out[marked if surely else _outside(marked, out)] = AIR_HU


def _shifted_into(out: Int16Array, stored: npt.NDArray[Any], slope: float, intercept: float) -> bool:
    """Write the HU of stored values that only need a shift, as nearly all do; False where these do not, or where
    int16 could not hold them."""
    if slope != 1.0 or not intercept.is_integer() or stored.dtype.kind not in "iu" or not stored.dtype.isnative:
        return False
    shift = int(intercept)
    lowest, highest = cv2.minMaxLoc(stored)[:2]
    if lowest + shift < -32768 or highest + shift > 32767 or abs(shift) > 32767:
        return False
    # Modulo 2^16: the results fit, so it does not matter that uint16 values above 32767 turn negative on the way.
    words = stored.view(np.int16) if stored.dtype.itemsize == 2 else stored.astype(np.int16)
    np.add(words, np.int16(shift), out=out)
    return True


def padding_range(header: Any) -> tuple[int, int] | None:
    """The lowest and highest stored value that the header declares as padding (PS3.3 C.7.5.1.1.2), or None."""
    value, limit = header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit")
    if value is None:
        return None
    low = _as_signed(value, header)
    high = low if limit is None else _as_signed(limit, header)
    return min(low, high), max(low, high)


def _outside(padding: npt.NDArray[np.bool_], hu: Int16Array) -> npt.NDArray[np.bool_]:
    """Which pixels marked as padding are no tissue: those that no tissue can be, and those that hang together with a
    corner of the slice, outside of the scanner's circle. Some writers declare a value that also is a voxel's, such as
    0 where 0 is water: in the patient it is a voxel."""
    darkest, brightest = NO_TISSUE_HU
    surely: npt.NDArray[np.bool_] = padding & ((hu <= darkest) | (hu > brightest))
    regions = cv2.connectedComponents(padding.astype(np.uint8), connectivity=4)[1]
    corners = np.unique(regions[[0, 0, -1, -1], [0, -1, 0, -1]])
    return surely | np.isin(regions, corners[corners > 0])


def _as_signed(value: Any, header: Any) -> int:
    """Writers get the sign wrong, and implicit files do not tell it: that of the pixels decides."""
    number = int.from_bytes(value, "little") if isinstance(value, bytes) else int(value)
    if header.get("PixelRepresentation") == 1:
        return number - 65536 if number >= 32768 else number
    return number + 65536 if number < 0 else number
