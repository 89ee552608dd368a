"""One DICOM file's header through pydicom, of whatever transfer syntax, within bounds of memory.

A deflated data set (PS3.5 A.5) says nothing of its size before it is inflated, so that a megabyte can fill any memory:
here, and nowhere else, such files are inflated, block by block, and never further than somebody needs them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, cast

import pydicom
from pydicom.filereader import _at_pixel_data, _read_file_meta_info, read_dataset, read_preamble
from pydicom.tag import Tag
from pydicom.uid import UID

from components.ct.elements import DEFLATED, ELEMENT_BYTES, EXPLICIT, IMPLICIT, native_pixels
from components.ct.values import normalised

BIG_ENDIAN = "1.2.840.10008.1.2.2"
DIRECTORY_STORAGE = "1.2.840.10008.1.3.10"  # class of a DICOMDIR
INFLATED_BYTES = 2**30  # of one file: enhanced CT of 2,000 frames of 512 x 512 fits
HEADER_BYTES = 2**26  # of these, before the pixel data
BLOCK = 2**20


class InflateError(ValueError):
    """A deflated data set is damaged."""


class InflateLimitError(InflateError):
    """A deflated data set is larger than allowed."""


@dataclass(frozen=True)
class Opened:
    """Attributes:
    dataset: up to the pixel data; values are decoded when they are asked for.
    syntax: transfer syntax UID: as stated, else what the bytes were found to be; '' where that cannot be known.
    media_class: the file's class by its meta information.
    pixels_at, pixels: where the pixel data element begins, and its first bytes; of a deflated file, once inflated.
    size: the file's bytes; of a deflated file, once inflated.
    """

    dataset: pydicom.Dataset
    syntax: str
    media_class: str
    pixels_at: int
    pixels: bytes
    size: int


def open_dataset(
    stream: IO[bytes], size: int, keywords: tuple[str, ...] | None = None, inflated_bytes: int = INFLATED_BYTES
) -> Opened:
    """Read a header, with file meta information or without.

    Args:
        stream: seekable.
        size: the file's bytes.
        keywords: only these; None reads all.
        inflated_bytes: most that a deflated file may inflate to.

    Raises:
        InflateError: see there.
        Exception: pydicom raises many kinds on damaged files.
    """
    bounded = cast(IO[bytes], _Bounded(stream, size))
    bounded.seek(0)
    read_preamble(cast(Any, bounded), force=True)
    meta = _read_file_meta_info(cast(Any, bounded))  # the very function that decides whether dcmread would inflate
    stated = normalised("TransferSyntaxUID", meta.get("TransferSyntaxUID")) or ""
    media = normalised("MediaStorageSOPClassUID", meta.get("MediaStorageSOPClassUID")) or ""
    if stated == DEFLATED:
        header, size = _inflated_header(bounded, inflated_bytes)
        wanted: list[Any] | None = [Tag(keyword) for keyword in keywords] if keywords else None
        dataset = read_dataset(header, False, True, stop_when=_at_pixel_data, specific_tags=wanted)
        at = header.tell()
        return Opened(dataset, stated, media, at, header.read(ELEMENT_BYTES), size)
    bounded.seek(0)
    wanted = list(keywords) if keywords else None
    dataset = pydicom.dcmread(cast(Any, bounded), stop_before_pixels=True, specific_tags=wanted, force=True)
    at = stream.tell()
    pixels = stream.read(ELEMENT_BYTES)
    return Opened(dataset, stated or _found(dataset, pixels), media, at, pixels, size)


def inflated(path: Path, size: int) -> bytearray:
    """The first ``size`` bytes of a deflated file's data set; fewer where it ends before.

    Raises:
        InflateError: the stream is damaged.
    """
    with path.open("rb") as stream:
        read_preamble(stream, force=True)
        _read_file_meta_info(stream)
        content = bytearray()
        for block in _blocks(stream):
            content += block
            if len(content) >= size:
                break
    return content[:size]


def inflated_dataset(path: Path, force: bool, inflated_bytes: int = INFLATED_BYTES) -> pydicom.FileDataset | None:
    """A whole deflated file, pixels included, as if it had been written explicit little endian; None where a file is
    not deflated.

    Args:
        path: of the file.
        force: as ``dcmread`` has it, for files without a preamble.
        inflated_bytes: most that it may inflate to.

    Raises:
        InflateError: the stream is damaged, or inflates to more.
        InvalidDicomError: no preamble.
    """
    with path.open("rb") as stream:
        preamble = read_preamble(stream, force=force)
        meta = _read_file_meta_info(stream)
        if normalised("TransferSyntaxUID", meta.get("TransferSyntaxUID")) != DEFLATED:
            return None
        content = BytesIO()
        for block in _blocks(stream):
            if content.tell() + len(block) > inflated_bytes:
                raise InflateLimitError(f"deflated data of more than {inflated_bytes} bytes are not allowed")
            content.write(block)
    content.seek(0)
    meta.TransferSyntaxUID = UID(EXPLICIT)
    dataset = read_dataset(content, False, True)
    return pydicom.FileDataset(str(path), dataset, preamble, meta, False, True)


def _inflated_header(stream: IO[bytes], allowed: int) -> tuple[BytesIO, int]:
    """The first ``HEADER_BYTES`` of what ``stream`` inflates to, and how much that is altogether."""
    header, size = BytesIO(), 0
    for block in _blocks(stream):
        size += len(block)
        if size > allowed:
            raise InflateLimitError(f"deflated data of more than {allowed} bytes are not allowed")
        header.write(block[: max(0, HEADER_BYTES - header.tell())])
    header.seek(0)
    return header, size


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    while not engine.eof:
        packed = engine.unconsumed_tail or stream.read(BLOCK)
        try:
            block = engine.decompress(packed, BLOCK)
        except zlib.error:
            raise InflateError("deflated data are damaged") from None
        if not packed and not block:
            raise InflateError("deflated data are cut short")
        yield block


def _found(dataset: pydicom.Dataset, pixels: bytes) -> str:
    """The transfer syntax that nothing states, from how the elements turned out to be written."""
    if native_pixels(pixels, 0) is None:
        return ""  # no pixels, or compressed ones: who knows how
    implicit, little = dataset.original_encoding
    return BIG_ENDIAN if little is False else IMPLICIT if implicit else EXPLICIT


class _Bounded:
    """A stream that is never asked for more bytes than it has: a damaged length would have them all allocated."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._size = stream, size
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._size - self._stream.tell())
        return self._stream.read(left if count < 0 else min(count, left))
