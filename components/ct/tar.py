"""Tars, unpacked with limits, as :mod:`components.ct.archive` does zips."""

from __future__ import annotations

import gzip
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from components.ct.archive import ArchiveError, ArchiveLimitError, ArchiveLimits

GZIP_MAGIC = b"\x1f\x8b"
TAR_ROUND = 64 * 2**20  # bytes of headers and padding that a tar may have round its files' content


def numbered(index: int, member: str) -> str:
    """Name for a file that others have named: a number, and the end of its base name in plain characters, at most 80
    bytes, so that any file system takes it."""
    return f"{index:06d}-{re.sub(r'[^A-Za-z0-9._-]', '_', PurePosixPath(member).name)[-80:]}"


def unpack_tar(path: Path, destination: Path, limits: ArchiveLimits) -> Iterator[tuple[Path, str]]:
    """As :func:`components.ct.archive.unpack`, of a tar or a gzipped one; all but plain files is passed over.

    It is read once from front to back, for it has no directory: the order is that of its members.
    """
    destination.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("rb") as file:
            packed = file.read(2) == GZIP_MAGIC
            file.seek(0)
            stream = _Bounded(gzip.GzipFile(fileobj=file) if packed else file, limits.unpacked_bytes)
            with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
                yield from _tar_members(archive, destination, limits)
            while stream.read(1 << 20):  # to its end, where gzip's checksum is
                pass
    except (ArchiveError, OSError, tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        shutil.rmtree(destination, ignore_errors=True)
        ours = isinstance(error, (ArchiveError, OSError)) and not isinstance(error, gzip.BadGzipFile)
        if ours:
            raise
        raise ArchiveError(f"tar: damaged or cut short ({type(error).__name__}); send it again") from None


def _tar_members(archive: tarfile.TarFile, destination: Path, limits: ArchiveLimits) -> Iterator[tuple[Path, str]]:
    for index, info in enumerate(archive):
        if index == limits.members:
            raise ArchiveLimitError(f"tar: more members are not allowed: at most {limits.members}")
        source = archive.extractfile(info) if info.isreg() and not info.issparse() else None
        if source is None:
            continue
        file = destination / numbered(index, info.name)
        with file.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        yield file, info.name


class _Bounded:
    """A stream of which no more is read than may be, headers and padding of a tar included."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, most: int) -> None:
        self._stream, self._most, self._left = stream, most, most + TAR_ROUND

    def read(self, size: int) -> bytes:
        found = self._stream.read(size)
        self._left -= len(found)
        if self._left < 0:
            raise ArchiveLimitError(f"tar: more bytes unpacked are not allowed: at most {self._most}")
        return found
