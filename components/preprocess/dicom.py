"""DICOM pixels to HU and geometry to an affine, for one screened CT series.

Native pixels are read as they lie in the file; compressed ones, whose own size is held against the header first, are
decoded by dicomsdl (11 times pydicom's speed, exact), RLE and what dicomsdl does not take by pydicom. Slices are
ordered by position along the normal, never by name or number.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import dicomsdl
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID, ExplicitVRBigEndian

from components.acquire.dataset import DIRECTORY_STORAGE, InflateError, inflated, open_dataset
from components.acquire.elements import (
    DEFLATED,
    ELEMENT_BYTES,
    EXPLICIT,
    HEAD_BYTES,
    IMPLICIT,
    native_pixels,
    read_regular,
)
from components.acquire.frames import PER_FRAME, SHARED, frame_values, is_multi_frame, is_object
from components.acquire.stacks import TAGS as STACK_TAGS
from components.acquire.stacks import largest_stack, no_grid
from components.acquire.values import values_of
from components.files import sha256_file
from components.params import UserError
from components.preprocess.samples import RLE, check_rle, codestream_of, values_in_words
from components.preprocess.store import AIR_HU, FloatArray, Int16Array, Volume

log = logging.getLogger(__name__)

GEOMETRY_TAGS = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "RescaleSlope",
    "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelRepresentation", "BitsStored", "HighBit",
    "SamplesPerPixel", "BitsAllocated", "NumberOfFrames", "SOPClassUID", "SeriesInstanceUID",
)  # fmt: skip
# What dicomsdl is given: JPEG, JPEG-LS, JPEG 2000. Of damaged RLE it writes past its buffers, of native pixels whose
# header contradicts itself it reads past them, and the process dies.
JPEG = "1.2.840.10008.1.2.4."
BIG_ENDIAN = str(ExplicitVRBigEndian)
RLE_EXCESS = re.compile(r"RLE segment contains non-conformant padding - (\d+) vs\. (\d+) bytes")  # pydicom's words
LARGEST_RESCALE = 1e6  # of slope and intercept; beyond it nothing is HU, and float32 overflows
ONE_PLANE = 1e-3  # direction cosines, and mm of pixel spacing, that rounding may change from slice to slice
NO_TISSUE_HU = (-1000, 3071)  # at or below the first is air at most; 12 bits end with the second
PIXEL_MM = (0.01, 20.0)  # no scanner is finer or coarser; beyond it a resampled volume would fill the memory


class DecodeError(UserError):
    """The series cannot be turned into a volume; the message names the file (its base name) and the cause."""


@dataclass(frozen=True)
class _Slice:
    """One instance, or one frame of a multi-frame instance, not yet decoded.

    Attributes:
        path: of the file.
        header: keyword to value, as ``components.acquire.values`` normalises it.
        syntax: transfer syntax UID.
        native: first byte and length of the file's pixel data, None where they are compressed.
        pixels_at: where the pixel data element begins.
        frame: which of the file's frames, from 0; None where the file is one image.
    """

    path: Path
    header: dict[str, Any]
    syntax: str
    native: tuple[int, int] | None
    pixels_at: int = 0
    frame: int | None = None

    def number(self, keyword: str, default: float) -> float:
        """A number, or ``default`` where the header does not state it. Raises DecodeError where it is none."""
        value = self.header.get(keyword)
        if value in (None, ""):
            return float(default)
        number = _finite(value)
        if math.isnan(number):
            raise DecodeError(f"{self.path.name}: {keyword} is no number")
        return number

    def vector(self, keyword: str, length: int) -> FloatArray:
        """Raises DecodeError where the header does not state so many numbers."""
        values = self.header.get(keyword)
        if values is None:
            raise DecodeError(f"{self.path.name}: {keyword} is missing")
        numbers = np.array([_finite(value) for value in values])
        if numbers.shape != (length,) or np.isnan(numbers).any():
            raise DecodeError(f"{self.path.name}: {keyword} is not {length} numbers")
        return numbers

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.number("Rows", 0)), int(self.number("Columns", 0))


def _finite(value: Any) -> float:
    """A finite number, else NaN."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


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
        volume = _assemble(slices, _Files(digests))
        if digests is not None:
            digests.update({path.name: sha256_file(path) for path in paths if path.name not in digests})
        return volume
    except (ValueError, TypeError, ArithmeticError) as error:
        if isinstance(error, DecodeError):
            raise
        # What the error says would quote the header.
        raise DecodeError(f"series: a header value is not the number it must be ({type(error).__name__})") from None


def _assemble(slices: list[_Slice], files: _Files) -> Volume:
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
    framed: dict[Path, list[tuple[_Slice, Int16Array]]] = defaultdict(list)
    for plane, (_, item) in zip(hu, placed, strict=True):
        if item.frame is None:
            _fill_hu(plane, item, _stored_values(item, files))
        else:
            framed[item.path].append((item, plane))
    for pairs in framed.values():
        for (item, plane), stored in zip(pairs, _stored_frames([item for item, _ in pairs]), strict=True):
            _fill_hu(plane, item, stored)
    return Volume(hu=hu, affine=affine)


def _check_one_plane(slices: list[_Slice]) -> None:
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


class _Files:
    """Reads whole files, one after the other into the same memory, and notes their SHA-256 where that is asked for."""

    def __init__(self, digests: dict[str, str] | None) -> None:
        self._digests = digests
        self._buffer = bytearray()

    def read(self, path: Path) -> memoryview:
        """The file's bytes, until the next call."""
        with path.open("rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > len(self._buffer):
                self._buffer = bytearray(size)
            view = memoryview(self._buffer)[:size]
            view = view[: stream.readinto(view)]
        if self._digests is not None:
            self._digests[path.name] = hashlib.sha256(view).hexdigest()
        return view


def _open(path: Path, keywords: tuple[str, ...]) -> list[_Slice]:
    """Read one header, with the short reader where it will; a slice for each of its frames, none of an object."""
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES[0])
            regular = read_regular(stream, head, keywords, None) if head[128:132] == b"DICM" else None
            if regular is not None and "Rows" in regular.values and not is_multi_frame(regular.values):
                pixels = native_pixels(regular.pixels, regular.pixels_at)
                item = _Slice(path, regular.values, regular.syntax, pixels, regular.pixels_at)
                _check_length(item, path.stat().st_size)
                return [item]
            opened = open_dataset(stream, path.stat().st_size, (*keywords, SHARED, PER_FRAME))
            values = values_of(opened.dataset, keywords)
            if opened.media_class == DIRECTORY_STORAGE or ("Rows" not in values and is_object(values)):
                return []
            pixels = native_pixels(opened.pixels, opened.pixels_at)
            item = _Slice(path, values, opened.syntax, pixels, opened.pixels_at)
            _check_length(item, opened.size)
            groups = frame_values(opened.dataset, frozenset(keywords)) if is_multi_frame(values) else []
            return _frames(item, groups)
    except (DecodeError, MemoryError):
        raise
    except InflateError as error:
        raise DecodeError(f"{path.name}: {error}") from None
    except Exception as error:  # pydicom raises many kinds on damaged files; each is this series' rejection
        raise DecodeError(f"{path.name}: header not readable ({type(error).__name__})") from None


def _frames(item: _Slice, groups: list[dict[str, Any]]) -> list[_Slice]:
    """Each frame of an enhanced or legacy converted multi-frame image; the image itself, where it is none."""
    if not groups:
        return [item]
    if item.number("NumberOfFrames", 1) != len(groups):
        raise DecodeError(f"{item.path.name}: functional groups of {len(groups)} frames, "
                          f"NumberOfFrames is {item.header.get('NumberOfFrames')}")  # fmt: skip
    return [replace(item, header={**item.header, **group}, frame=n) for n, group in enumerate(groups)]


def _needed(item: _Slice) -> int:
    """Bytes of the file's native pixel data by its matrix."""
    rows, columns = item.shape
    samples = int(item.number("SamplesPerPixel", 1)) * max(1, int(item.number("NumberOfFrames", 1)))
    return rows * columns * samples * int(item.number("BitsAllocated", 16)) // 8


def _check_length(item: _Slice, size: int) -> None:
    """dicomsdl fills what is missing from native pixel data with whatever lies in memory, without a word. ``size``: of
    the file, once inflated."""
    if item.native is None:
        return
    first, length = item.native
    needed, there = _needed(item), min(length, size - first)
    if there < needed:
        raise DecodeError(f"{item.path.name}: {there} bytes of pixel data, its matrix needs {needed}")


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


def _fill_hu(out: Int16Array, item: _Slice, stored: npt.NDArray[Any]) -> None:
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


def _inflated(item: _Slice) -> tuple[bytearray, int]:
    """A deflated file, no further than its matrix needs, and where its words begin."""
    if item.native is None or (item.number("BitsAllocated", 16), item.number("SamplesPerPixel", 1)) != (16, 1):
        raise DecodeError(f"{item.path.name}: deflated pixels other than words of 16 bits are not supported")
    first = item.native[0]
    content = inflated(item.path, first + _needed(item))
    if len(content) < first + _needed(item):
        raise DecodeError(f"{item.path.name}: {len(content) - first} bytes of pixel data, its matrix needs more")
    return content, first


def _stored_values(item: _Slice, files: _Files) -> npt.NDArray[Any]:
    """The pixels of a file that holds one image, as numbers of the header's BitsStored."""
    word = (item.number("BitsAllocated", 16), item.number("SamplesPerPixel", 1), item.number("NumberOfFrames", 1))
    try:
        if item.syntax == DEFLATED:
            return _native_values(item, *_inflated(item))
        if item.native and item.syntax in (EXPLICIT, IMPLICIT, BIG_ENDIAN) and word == (16, 1, 1):
            return _native_values(item, files.read(item.path), item.native[0])
        return _as_stored(item, _decoded(item))
    except (DecodeError, MemoryError):
        raise
    except InflateError as error:
        raise DecodeError(f"{item.path.name}: {error}") from None
    except Exception as error:  # decoders raise many kinds of their own
        log.debug("decoding: %s", error)
        raise DecodeError(f"{item.path.name}: pixels do not decode ({type(error).__name__})") from None


def _decoded(item: _Slice) -> npt.NDArray[Any]:
    """What the decoder of the transfer syntax gives. Raises DecodeError where the codestream is not the header's."""
    frames = _frames_of(item)
    (frame,) = frames if len(frames) == 1 else (None,)
    same = all(_check_codestream(item, frame) for frame in frames)
    # Words of bytes are not for dicomsdl either: it takes the header's word for them.
    if item.syntax.startswith(JPEG) and same and frame is not None:
        try:
            data = dicomsdl.open(str(item.path))
            if (data.Rows, data.Columns, data.BitsAllocated) == (*item.shape, item.number("BitsAllocated", 16)):
                return np.asarray(data.pixelData(storedvalue=True))
        except MemoryError:
            raise
        except Exception as error:  # RuntimeError subclasses of its own; pydicom has the last word
            log.debug("dicomsdl: %s", error)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        dataset = pydicom.dcmread(item.path, force=True)
        dataset.file_meta.TransferSyntaxUID = UID(item.syntax)  # some files state none
        words = np.asarray(dataset.pixel_array)
    for found, wanted in RLE_EXCESS.findall("\n".join(str(warning.message) for warning in said)):
        if int(found) - int(wanted) >= item.shape[1]:  # a byte or two is an old writer's padding
            raise DecodeError(f"{item.path.name}: RLE of {found} bytes is not allowed: its matrix needs {wanted}")
    return words


def _frames_of(item: _Slice) -> list[bytes]:
    """The compressed frames of a file; none where its pixels are native."""
    if item.native or item.syntax == DEFLATED:
        return []
    with item.path.open("rb") as stream:
        stream.seek(item.pixels_at + ELEMENT_BYTES)
        return list(generate_frames(stream, number_of_frames=max(1, int(item.number("NumberOfFrames", 1)))))


def _check_codestream(item: _Slice, frame: bytes) -> bool:
    """Whether a frame's samples are of the header's own size. Raises DecodeError where the header says otherwise."""
    samples, allocated = int(item.number("SamplesPerPixel", 1)), int(item.number("BitsAllocated", 16))
    try:
        if item.syntax == RLE:
            check_rle(frame, samples * allocated // 8)
        found = codestream_of(frame, item.syntax)
    except ValueError as error:
        raise DecodeError(f"{item.path.name}: pixels do not decode: {error}") from None
    if found is None:
        return True
    if (found.rows, found.columns, found.components) != (*item.shape, samples) or found.bits > allocated:
        raise DecodeError(
            f"{item.path.name}: compressed pixels of {found.rows} x {found.columns} x {found.components} with "
            f"{found.bits} bits are not allowed: the header says {item.shape[0]} x {item.shape[1]} x {samples} "
            f"with {allocated} allocated"
        )
    return found.bits > allocated - 8


def _stored_frames(items: list[_Slice]) -> Iterator[npt.NDArray[Any]]:
    """Frames of one file, in the order of ``items``, one at a time: together they may fill the memory."""
    first = items[0]
    if first.syntax == DEFLATED:
        content, start = _inflated(first)
        size = 2 * first.shape[0] * first.shape[1]
        yield from (_native_values(item, content, start + size * int(item.frame or 0)) for item in items)
        return
    if first.native and first.syntax in (EXPLICIT, IMPLICIT) and first.number("BitsAllocated", 16) == 16:
        size = 2 * first.shape[0] * first.shape[1]
        for item in items:
            start = first.native[0] + size * int(item.frame or 0)
            yield _native_values(item, np.fromfile(first.path, np.uint8, size, offset=start), 0)
        return
    try:
        for frame in _frames_of(first):
            _check_codestream(first, frame)
        decoded = iter_pixels(first.path, raw=True, indices=[int(item.frame or 0) for item in items])
        yield from map(_as_stored, items, decoded)
    except (DecodeError, MemoryError):
        raise
    except Exception as error:  # as of single slices
        log.debug("pydicom: %s", error)
        raise DecodeError(f"{first.path.name}: pixels do not decode ({type(error).__name__})") from None


def _native_values(item: _Slice, content: Any, first: int) -> npt.NDArray[Any]:
    """The words of 16 bits as they lie in ``content``, from byte ``first`` on. It is writable, and used up."""
    rows, columns = item.shape
    stored = np.frombuffer(content, np.uint16, rows * columns, first).reshape(rows, columns)
    if (item.syntax == BIG_ENDIAN) == (sys.byteorder == "little"):
        stored.byteswap(inplace=True)
    return _as_stored(item, stored)


def _as_stored(item: _Slice, words: npt.NDArray[Any]) -> npt.NDArray[Any]:
    bits = int(item.number("BitsStored", words.dtype.itemsize * 8))
    return values_in_words(
        words, bits, int(item.number("HighBit", bits - 1)), item.number("PixelRepresentation", 0) == 1
    )
