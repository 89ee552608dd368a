"""Takes a request's body to files, counting while it streams: nothing is held in memory, nothing is fetched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from components.ct.tar import numbered
from serving.limits import Limits
from serving.pace import Pace, chunks
from serving.sniff import InputError

MULTIPART_OVERHEAD, FILE_OVERHEAD = 64 * 1024, 2048  # boundaries and part headers, of a form and round each file
MAX_PART_HEADER, MAX_BOUNDARY = 16 * 1024, 70  # the latter of RFC 2046, 5.1.1
HOW = "send the file itself, as the raw body or as a multipart file field; addresses are not fetched"


@dataclass(frozen=True)
class Sent:
    """One file of a request.

    Attributes:
        path: where it lies.
        field: of the form; empty where it is the body itself.
    """

    path: Path
    field: str = ""


async def receive_files(request: Request, folder: Path, limits: Limits, pace: Pace) -> list[Sent]:
    """Write the files of a request into ``folder``, in the order in which they came.

    Args:
        request: raw body, or multipart/form-data with one file field or several. The declared type is ignored.
        folder: empty. Files are numbered there, and keep the end of their names in plain characters.
        limits: of the body's bytes, all files together, and of how many there may be.
        pace: how fast they must come.

    Raises:
        InputError: 413 as soon as the body is known to be too large (by its declared length, before a byte is read,
            or while it streams), or to hold too many files; 400 where there is no file, an empty one, or text in place
            of a file; 408 where it comes too slowly.
        ClientDisconnect: the client has left.
    """
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    multipart = media_type == b"multipart/form-data"
    allowed = limits.body_bytes + (MULTIPART_OVERHEAD + limits.files * FILE_OVERHEAD if multipart else 0)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > allowed:
        raise _too_large(f"body of {declared} bytes", limits.body_bytes)
    with _Files(folder, limits) as files:
        if multipart:
            await _receive_multipart(chunks(request, pace), files, options.get(b"boundary", b""))
        else:
            files.begin("", "")
            async for chunk in chunks(request, pace):
                files.write(chunk)
        if files.written == 0:
            raise InputError(f"the body holds no bytes: {HOW}", 400)
    return files.sent


async def receive_nothing(request: Request) -> None:
    """Raises InputError with 400 where a request has a body that it should not have."""
    async for chunk in request.stream():
        if chunk:
            raise InputError("the scan is named, and sent as well: send it, or name it by its UIDs", 400)


def scans_of(sent: Sequence[Sent], fields: Sequence[str]) -> dict[str, Path]:
    """Field to its scan: a file, or a folder of several.

    Args:
        sent: the files of a request.
        fields: that it must have. Where there is one scan only, fields may have any name.

    Raises:
        InputError: 400 where a field is missing, or another is there.
    """
    found: dict[str, list[Path]] = {field: [] for field in fields}
    for one in sent:
        field = one.field if len(fields) > 1 else fields[0]
        if field not in found:
            what = f"form field {field[:40]!r}" if field else "a raw body"
            raise InputError(f"{what} is not allowed: one scan in each of the file fields {', '.join(fields)}", 400)
        found[field].append(one.path)
    for field, paths in found.items():
        if not paths:
            raise InputError(f"form field {field!r} holds no file: send one scan in each of {', '.join(fields)}", 400)
    return {field: paths[0] if len(paths) == 1 else _gathered(field, paths) for field, paths in found.items()}


def _gathered(field: str, paths: Sequence[Path]) -> Path:
    folder = paths[0].with_name(f"several-{field}")
    folder.mkdir()
    for path in paths:
        path.rename(folder / path.name)
    return folder


def _too_large(what: str, max_bytes: int) -> InputError:
    return InputError(f"{what} is too large: at most {max_bytes} bytes", 413)


class _Files:
    """Files that refuse to be too many, or together too large."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.sent: list[Sent] = []
        self.written = 0
        self._folder, self._limits = folder, limits
        self._stream: BinaryIO | None = None

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def begin(self, field: str, name: str) -> None:
        """Another file; ``name`` as its sender has it."""
        if self._stream is not None:
            self._stream.close()
        if len(self.sent) == self._limits.files:
            raise InputError(f"more than {self._limits.files} files are not allowed in one request", 413)
        path = self._folder / numbered(len(self.sent), name)
        self.sent.append(Sent(path, field))
        self._stream = path.open("wb")

    def write(self, chunk: bytes) -> None:
        """More of the file that was begun last."""
        assert self._stream is not None
        self.written += len(chunk)
        if self.written > self._limits.body_bytes:
            raise _too_large("body", self._limits.body_bytes)
        self._stream.write(chunk)

    def allow(self, received: int) -> None:
        """Refuse a form of which so many bytes have come, if that is more than its files may be and what is round
        them."""
        if received > self._limits.body_bytes + MULTIPART_OVERHEAD + len(self.sent) * FILE_OVERHEAD:
            raise _too_large("body", self._limits.body_bytes)


class _Parts:
    """Callbacks of the streaming parser: writes the parts that are files, refuses everything else."""

    def __init__(self, files: _Files) -> None:
        self._files, self.ended = files, False
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
        field, name = (options.get(key, b"").decode("utf-8", "replace") for key in (b"name", b"filename"))
        if b"filename" not in options:
            raise InputError(f"form field {field[:40]!r} holds text, not a file: {HOW}", 400)
        self._files.begin(field, name)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._files.write(data[start:end])

    def _end(self) -> None:
        self.ended = True


async def _receive_multipart(body: AsyncIterator[bytes], files: _Files, boundary: bytes) -> None:
    if not boundary:
        raise InputError("multipart/form-data without a boundary: let the client set the header", 400)
    if len(boundary) > MAX_BOUNDARY:
        raise InputError(f"boundary of {len(boundary)} characters is not allowed: at most {MAX_BOUNDARY}", 400)
    parts, received = _Parts(files), 0
    try:
        parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]
        async for chunk in body:
            received += len(chunk)
            files.allow(received)
            parser.write(chunk)
    except FormParserError as error:
        raise InputError(f"multipart body not readable: {error}", 400) from None
    if not files.sent or not parts.ended:
        what = "the form holds no file" if parts.ended or not received else "the multipart body ends early"
        raise InputError(f"{what}: {HOW}", 400)
