"""What lies in a frame's bytes: the size that a codestream states, before anything decodes it, and values in words.

Decoders write as many samples as the codestream holds, into a buffer as large as the DICOM header says. The two must
agree first. JPEG 2000 and HTJ2K: ISO/IEC 15444-1 A.5.1; JPEG and JPEG-LS: ITU-T T.81 B.2.2, T.87 C.2.2; RLE: PS3.5 G.5.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

JPEG_2000 = ("1.2.840.10008.1.2.4.9", "1.2.840.10008.1.2.4.20")  # and HTJ2K
JPEG = ("1.2.840.10008.1.2.4.5", "1.2.840.10008.1.2.4.6", "1.2.840.10008.1.2.4.7", "1.2.840.10008.1.2.4.8")  # and LS
RLE = "1.2.840.10008.1.2.5"
RLE_HEADER = 64
SOC_SIZ = b"\xff\x4f\xff\x51"
JP2 = b"\x00\x00\x00\x0cjP  "
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # SOF 0 to 15 and JPEG-LS's


@dataclass(frozen=True)
class Codestream:
    """Samples of one frame: rows, columns, components (1 is grey) and bits of each."""

    rows: int
    columns: int
    components: int
    bits: int


def codestream_of(frame: bytes, syntax: str) -> Codestream | None:
    """The size that a frame states, or None where the transfer syntax is not of a kind read here.

    Args:
        frame: one frame's compressed bytes; its first few hundred are looked at.
        syntax: transfer syntax UID.

    Raises:
        ValueError: the bytes are not a codestream of the syntax, or are cut short.
    """
    try:
        if syntax.startswith(JPEG_2000):
            return _jpeg_2000(frame)
        if syntax.startswith(JPEG):
            return _jpeg(frame)
    except (struct.error, IndexError):
        raise ValueError("its codestream is cut short") from None
    return None


def check_rle(frame: bytes, segments: int) -> None:
    """Refuse an RLE frame that does not hold one segment for each byte of a sample, in order and within the frame.

    Raises:
        ValueError: saying what is wrong.
    """
    if len(frame) < RLE_HEADER:
        raise ValueError("its RLE header is cut short")
    count, *offsets = struct.unpack("<16L", frame[:RLE_HEADER])
    if count != segments:
        raise ValueError(f"{count} RLE segments, its header needs {segments}")
    bounds = [RLE_HEADER, *offsets[1:count], len(frame)]
    if offsets[0] != RLE_HEADER or any(a > b for a, b in itertools.pairwise(bounds)):
        raise ValueError("its RLE segments do not follow each other")


def values_in_words(words: npt.NDArray[Any], bits: int, high: int, signed: bool) -> npt.NDArray[Any]:
    """Words as they were stored to the values in them, whatever a decoder made of their other bits (PS3.5 8.1.1).

    Args:
        words: integers; changed in place where they can be.
        bits, high: BitsStored and HighBit: where in a word the value lies. Old files hold overlays beside it.
        signed: PixelRepresentation is 1: the value's highest bit is its sign.
    """
    size = words.dtype.itemsize * 8
    if words.dtype.kind not in "iu" or not words.dtype.isnative:
        return words
    stored = words.view(f"{'i' if signed else 'u'}{size // 8}")
    if not (0 < bits < size and bits - 1 <= high < size):  # all bits are the value's, or the header makes no sense
        return stored
    if not stored.flags.writeable:
        stored = stored.copy()
    if not signed and high == bits - 1:
        stored &= stored.dtype.type((1 << bits) - 1)  # one pass, not two
    else:  # the shifts also extend the sign
        stored <<= size - 1 - high
        stored >>= size - bits
    return stored


def _jpeg_2000(frame: bytes) -> Codestream:
    start = 0
    if frame.startswith(JP2):  # the file format round a codestream: not allowed, but written
        start = frame.find(b"jp2c" + SOC_SIZ) + 4
    if frame[start : start + 4] != SOC_SIZ:
        raise ValueError("it holds no JPEG 2000 codestream")
    _, _, x1, y1, x0, y0, *tiles, components = struct.unpack_from(">2H8LH", frame, start + 4)
    depths = {frame[start + 42 + 3 * n] for n in range(components)}
    steps = {frame[start + 42 + 3 * n + m] for n in range(components) for m in (1, 2)}
    if len(depths) != 1 or steps != {1}:
        raise ValueError("its codestream's components are subsampled, or of different depths")
    if not (x0 < x1 and y0 < y1 and tiles[0] > 0 and tiles[1] > 0):
        raise ValueError("its codestream is of no size")
    return Codestream(y1 - y0, x1 - x0, components, (depths.pop() & 0x7F) + 1)  # the highest bit says signed


def _jpeg(frame: bytes) -> Codestream:
    if frame[:2] != b"\xff\xd8":
        raise ValueError("it holds no JPEG codestream")
    at = 2
    while frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker in FRAME_MARKERS:
            bits, rows, columns, components = struct.unpack_from(">BHHB", frame, at + 4)
            return Codestream(rows, columns, components, bits)
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in (0xD9, 0xDA):  # its end, or pixels without a frame header
            break
        else:
            at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    raise ValueError("its JPEG codestream states no size")
