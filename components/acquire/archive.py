"""Zip archives, unpacked with limits: people send series as zips, and a zip is not to be trusted."""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from components.params import UserError


class ArchiveError(UserError):
    """An archive that is damaged or beyond the limits; the message says which limit and by how much."""


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold: members, bytes when unpacked, and the ratio of unpacked to packed bytes."""

    members: int
    unpacked_bytes: int
    ratio: float


# A CT series of 5,000 slices fits; deflated slices of air reach a ratio of a few dozen, a zip bomb a thousand.
LOCAL_LIMITS = ArchiveLimits(members=200_000, unpacked_bytes=200 * 2**30, ratio=200.0)


def members(archive: zipfile.ZipFile, limits: ArchiveLimits) -> list[zipfile.ZipInfo]:
    """The regular members, sorted by name, after checking the directory against ``limits``.

    Raises:
        ArchiveError: too many members, too large, a suspicious ratio, or an encrypted member.
    """
    infos = sorted((i for i in archive.infolist() if not i.is_dir()), key=lambda info: info.filename)
    if len(infos) > limits.members:
        raise ArchiveError(f"zip: {len(infos)} members are not allowed: at most {limits.members}")
    total = sum(info.file_size for info in infos)
    if total > limits.unpacked_bytes:
        raise ArchiveError(f"zip: {total} bytes unpacked are not allowed: at most {limits.unpacked_bytes}")
    for info in infos:
        if info.flag_bits & 1:
            raise ArchiveError("zip: encrypted members are not allowed")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ArchiveError("zip: links are not allowed")
        if info.file_size > 2**20 and info.file_size > limits.ratio * max(1, info.compress_size):
            ratio = info.file_size / max(1, info.compress_size)
            raise ArchiveError(f"zip: a member packed {ratio:.0f} to 1 is not allowed: at most {limits.ratio:.0f} to 1")
    return infos


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip. Raises ArchiveError where it is none, or damaged."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ArchiveError(f"zip: not readable as an archive: {reason}") from None


def copy_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: IO[bytes]) -> None:
    """Unpack one member; the declared size holds, whatever the compressed stream says.

    Raises:
        ArchiveError: a damaged member, or one larger than declared.
    """
    try:
        with archive.open(info) as source:
            for block in iter(lambda: source.read(1 << 20), b""):
                target.write(block)
                if target.tell() > info.file_size:
                    raise ArchiveError(f"zip: a member is larger than its declared {info.file_size} bytes")
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise ArchiveError(f"zip: a member is damaged: {error}") from None
    except Exception as error:  # zlib.error, lzma.LZMAError
        if isinstance(error, UserError):
            raise
        raise ArchiveError(f"zip: a member is damaged: {error}") from None


def _base_name(member: str) -> str:
    """The end of a member's base name in plain characters: at most 80 bytes, so that any file system takes it."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", PurePosixPath(member).name)[-80:]


def unpack(path: Path, destination: Path, limits: ArchiveLimits) -> Iterator[tuple[Path, str]]:
    """Unpack every member of ``path`` into ``destination`` under numbered names.

    Members' own names are never used as paths, so none can leave ``destination``.

    Yields:
        Each file written, ``<number>-<base name>``, with its member name, in the order of the members' names.

    Raises:
        ArchiveError: see :func:`members` and :func:`copy_member`; nothing is left behind then.
    """
    destination.mkdir(parents=True, exist_ok=True)
    with open_zip(path) as archive:
        try:
            for index, info in enumerate(members(archive, limits)):
                file = destination / f"{index:06d}-{_base_name(info.filename)}"
                with file.open("wb") as target:
                    copy_member(archive, info, target)
                yield file, info.filename
        except ArchiveError:
            shutil.rmtree(destination, ignore_errors=True)
            raise
