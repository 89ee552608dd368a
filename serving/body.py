"""Takes a request's body to a file, counting while it streams: nothing is held in memory, nothing is fetched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from serving.pace import Pace, chunks
from serving.sniff import InputError

MULTIPART_OVERHEAD = 64 * 1024  # boundaries and part headers round the one file
MAX_PART_HEADER = 16 * 1024
HOW = "send the file itself, as the raw body or as one multipart file field; addresses are not fetched"


async def receive_file(request: Request, path: Path, max_bytes: int, pace: Pace) -> None:
    """Write the one file of a request to ``path``.

    Args:
        request: raw body, or multipart/form-data with exactly one file field. The declared type is ignored otherwise.
        path: where the bytes go.
        max_bytes: largest file.
        pace: how fast it must come.

    Raises:
        InputError: 413 as soon as the body is known to be too large (by its declared length, before a byte is read,
            or while it streams); 400 where there is no file, more than one, or text in place of a file; 408 where it
            comes too slowly.
        ClientDisconnect: the client has left.
    """
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    multipart = media_type == b"multipart/form-data"
    allowed = max_bytes + (MULTIPART_OVERHEAD if multipart else 0)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > allowed:
        raise _too_large(f"body of {declared} bytes", max_bytes)
    with path.open("wb") as stream:
        sink = _Counted(stream, max_bytes)
        if multipart:
            await _receive_multipart(chunks(request, pace), sink, options.get(b"boundary", b""), allowed)
        else:
            async for chunk in chunks(request, pace):
                sink.write(chunk)
        if sink.written == 0:
            raise InputError(f"the body holds no bytes: {HOW}", 400)


def _too_large(what: str, max_bytes: int) -> InputError:
    return InputError(f"{what} is too large: at most {max_bytes} bytes", 413)


class _Counted:
    """A file that refuses to grow beyond a size."""

    def __init__(self, stream: BinaryIO, max_bytes: int) -> None:
        self._stream, self._max_bytes, self.written = stream, max_bytes, 0

    def write(self, chunk: bytes) -> None:
        self.written += len(chunk)
        if self.written > self._max_bytes:
            raise _too_large("body", self._max_bytes)
        self._stream.write(chunk)


class _OneFile:
    """Callbacks of the streaming parser: writes the one file part, refuses everything else."""

    def __init__(self, sink: _Counted) -> None:
        self._sink, self.files, self.ended = sink, 0, False
        self._name, self._value, self._disposition = b"", b"", b""

    def callbacks(self) -> dict[str, Callable[..., None]]:
        names = ("part_begin", "part_data", "header_field", "header_value", "header_end", "headers_finished", "end")
        return {f"on_{name}": getattr(self, f"_{name}") for name in names}

    def _part_begin(self) -> None:
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name = self._bounded(self._name + data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value = self._bounded(self._value + data[start:end])

    def _bounded(self, value: bytes) -> bytes:
        if len(value) > MAX_PART_HEADER:
            raise InputError(f"multipart header of more than {MAX_PART_HEADER} bytes is not allowed", 400)
        return value

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"filename" not in options:
            field = options.get(b"name", b"").decode("utf-8", "replace")[:40]
            raise InputError(f"form field {field!r} holds text, not a file: {HOW}", 400)
        self.files += 1
        if self.files > 1:
            raise InputError("more than one file in the form: send one series, as one zip or NIfTI", 400)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._sink.write(data[start:end])

    def _end(self) -> None:
        self.ended = True


async def _receive_multipart(body: AsyncIterator[bytes], sink: _Counted, boundary: bytes, max_body: int) -> None:
    if not boundary:
        raise InputError("multipart/form-data without a boundary: let the client set the header", 400)
    part, received = _OneFile(sink), 0
    try:
        parser = MultipartParser(boundary, part.callbacks())  # type: ignore[arg-type]
        async for chunk in body:
            received += len(chunk)
            if received > max_body:
                raise _too_large("body", max_body)
            parser.write(chunk)
    except MultipartParseError as error:
        raise InputError(f"multipart body not readable: {error}", 400) from None
    if part.files == 0 or not part.ended:
        what = "the form holds no file" if part.ended or not received else "the multipart body ends early"
        raise InputError(f"{what}: {HOW}", 400)
