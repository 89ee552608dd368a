"""The stored values of instances: which decoder reads them, and what stands in a word beside them."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dicomsdl
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID, ExplicitVRBigEndian

from components.ct.dataset import InflateError, inflated
from components.ct.elements import DEFLATED, ELEMENT_BYTES, EXPLICIT, IMPLICIT
from components.ct.samples import RLE, check_rle, codestream_of, values_in_words
from components.ct.store import FloatArray
from components.errors import UserError

log = logging.getLogger(__name__)

# What dicomsdl is given: JPEG, JPEG-LS, JPEG 2000. Of damaged RLE it writes past its buffers, of native pixels whose
# header contradicts itself it reads past them, and the process dies.
JPEG = "1.2.840.10008.1.2.4."
BIG_ENDIAN = str(ExplicitVRBigEndian)
RLE_EXCESS = re.compile(r"RLE segment contains non-conformant padding - (\d+) vs\. (\d+) bytes")  # pydicom's words


class DecodeError(UserError):
    """The series cannot be turned into a volume; the message names the file (its base name) and the cause."""


@dataclass(frozen=True)
class Slice:
    """One instance, or one frame of a multi-frame instance, not yet decoded.

    Attributes:
        path: of the file.
        header: keyword to value, as ``components.ct.values`` normalises it.
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


class Files:
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


def _needed(item: Slice) -> int:
    """Bytes of the file's native pixel data by its matrix."""
    rows, columns = item.shape
    samples = int(item.number("SamplesPerPixel", 1)) * max(1, int(item.number("NumberOfFrames", 1)))
    return rows * columns * samples * int(item.number("BitsAllocated", 16)) // 8


def check_length(item: Slice, size: int) -> None:
    """dicomsdl fills what is missing from native pixel data with whatever lies in memory, without a word. ``size``: of
    the file, once inflated."""
    if item.native is None:
        return
    first, length = item.native
    needed, there = _needed(item), min(length, size - first)
    if there < needed:
        raise DecodeError(f"{item.path.name}: {there} bytes of pixel data, its matrix needs {needed}")


def _inflated(item: Slice) -> tuple[bytearray, int]:
    """A deflated file, no further than its matrix needs, and where its words begin."""
    if item.native is None or (item.number("BitsAllocated", 16), item.number("SamplesPerPixel", 1)) != (16, 1):
        raise DecodeError(f"{item.path.name}: deflated pixels other than words of 16 bits are not supported")
    first = item.native[0]
    content = inflated(item.path, first + _needed(item))
    if len(content) < first + _needed(item):
        raise DecodeError(f"{item.path.name}: {len(content) - first} bytes of pixel data, its matrix needs more")
    return content, first


def stored_values(item: Slice, files: Files) -> npt.NDArray[Any]:
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


def _decoded(item: Slice) -> npt.NDArray[Any]:
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


def _frames_of(item: Slice) -> list[bytes]:
    """The compressed frames of a file; none where its pixels are native."""
    if item.native or item.syntax == DEFLATED:
        return []
    with item.path.open("rb") as stream:
        stream.seek(item.pixels_at + ELEMENT_BYTES)
        return list(generate_frames(stream, number_of_frames=max(1, int(item.number("NumberOfFrames", 1)))))


def _check_codestream(item: Slice, frame: bytes) -> bool:
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


def stored_frames(items: list[Slice]) -> Iterator[npt.NDArray[Any]]:
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


def _native_values(item: Slice, content: Any, first: int) -> npt.NDArray[Any]:
    """The words of 16 bits as they lie in ``content``, from byte ``first`` on. It is writable, and used up."""
    rows, columns = item.shape
    stored = np.frombuffer(content, np.uint16, rows * columns, first).reshape(rows, columns)
    if (item.syntax == BIG_ENDIAN) == (sys.byteorder == "little"):
        stored.byteswap(inplace=True)
    return _as_stored(item, stored)


def _as_stored(item: Slice, words: npt.NDArray[Any]) -> npt.NDArray[Any]:
    bits = int(item.number("BitsStored", words.dtype.itemsize * 8))
    return values_in_words(
        words, bits, int(item.number("HighBit", bits - 1)), item.number("PixelRepresentation", 0) == 1
    )
