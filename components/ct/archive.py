"""Zip archives, unpacked with limits: people send series as zips, and a zip is not to be trusted."""

from __future__ import annotations

import errno
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from components.errors import UserError


class ArchiveError(UserError):
    """An archive, or a member of it, that is damaged or cannot be unpacked."""


class ArchiveLimitError(ArchiveError):
    """One that is beyond the limits; the message says which limit and by how much."""


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold: members, bytes when unpacked, and the ratio of unpacked to packed bytes."""

    members: int
    unpacked_bytes: int
    ratio: float


# What a member may be that is not unpacked. Of packings, only Deflate is read piece by piece: a few hundred bytes of
# bzip2 or LZMA unpack to gigabytes at once, whatever size the directory declares.
OBSTACLES = {
    "link": "is a link",
    "encrypted": "is encrypted; allowed: members without a password",
    "unsupported_packing": "is packed in a way that is not supported (Deflate64, as Windows does beyond 2 GB, bzip2, "
    "LZMA); allowed: stored or Deflate, so pack the archive again, such as with `zip` or 7-Zip's Deflate",
    "over_limit": "is packed suspiciously well",
}
METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard"}  # APPNOTE 4.4.5

# A CT series of 5,000 slices fits; deflated slices of air reach a ratio of a few dozen, a zip bomb a thousand.
LOCAL_LIMITS = ArchiveLimits(members=200_000, unpacked_bytes=200 * 2**30, ratio=200.0)


def members(archive: zipfile.ZipFile, limits: ArchiveLimits) -> list[zipfile.ZipInfo]:
    """All members but folders, sorted by name, after holding their number and their sum against ``limits``.

    Raises:
        ArchiveLimitError: too many, or too large together.
    """
    infos = sorted((i for i in archive.infolist() if not i.is_dir()), key=lambda info: info.filename)
    if len(infos) > limits.members:
        raise ArchiveLimitError(f"zip: {len(infos)} members are not allowed: at most {limits.members}")
    total = sum(info.file_size for info in infos)
    if total > limits.unpacked_bytes:
        raise ArchiveLimitError(f"zip: {total} bytes unpacked are not allowed: at most {limits.unpacked_bytes}")
    return infos


def obstacle(info: zipfile.ZipInfo, limits: ArchiveLimits) -> str:
    """Why a member is not unpacked, by the directory alone; a key of :data:`OBSTACLES`, or '' where it is."""
    if stat.S_ISLNK(info.external_attr >> 16):
        return "link"
    if info.flag_bits & 1:
        return "encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "unsupported_packing"
    if info.file_size > 2**20 and info.file_size > limits.ratio * max(1, info.compress_size):
        return "over_limit"
    return ""


def _refusal(info: zipfile.ZipInfo, reason: str, limits: ArchiveLimits) -> ArchiveError:
    if reason == "unsupported_packing":
        method = METHODS.get(info.compress_type, "a method unknown")
        return ArchiveError(f"zip: a member {OBSTACLES[reason]} (it is packed by {method}, {info.compress_type})")
    if reason == "over_limit":
        ratio = info.file_size / max(1, info.compress_size)
        return ArchiveLimitError(
            f"zip: a member packed {ratio:.0f} to 1 is not allowed: at most {limits.ratio:.0f} to 1"
        )
    return ArchiveError(f"zip: a member {OBSTACLES[reason]}")


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip. Raises ArchiveError where it is none, or damaged; OSError where the file itself cannot be read."""
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # BadZipFile, NotImplementedError, ValueError, struct.error, UnicodeDecodeError
        raise _damage(error, "not readable as an archive") from None


def _damage(error: Exception, what: str) -> Exception:
    """``error`` as an ArchiveError, in words that hold no member's name, for it may be a patient's; as it is where it
    is this machine's, such as a full disk: that must not pass for damage."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a place before the file
        return error
    why = "its checksum is wrong" if "CRC" in str(error) else type(error).__name__
    return ArchiveError(f"zip: {what} ({why})")


def blocks(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """The content of a member, never more than its declared size, whatever the compressed stream says: zipfile cuts it
    there, and the checksum then tells.

    Raises:
        ArchiveError: a damaged member.
        OSError: the file of the zip cannot be read.
    """
    try:
        with archive.open(info) as source:
            while block := source.read(1 << 20):
                yield block
    except Exception as error:  # BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error
        raise _damage(error, "a member is damaged") from None


def copy_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: IO[bytes]) -> None:
    """Unpack one member. Raises as :func:`blocks`, and OSError where ``target`` cannot be written."""
    for block in blocks(archive, info):
        target.write(block)


def _base_name(member: str) -> str:
    """The end of a member's base name in plain characters: at most 80 bytes, so that any file system takes it."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", PurePosixPath(member).name)[-80:]


def unpack(path: Path, destination: Path, limits: ArchiveLimits) -> Iterator[tuple[Path, str]]:
    """Unpack every member of ``path``, but for links, into ``destination`` under numbered names.

    Members' own names are never used as paths, so none can leave ``destination``.

    Yields:
        Each file written, ``<number>-<base name>``, with its member name, in the order of the members' names.

    Raises:
        ArchiveError: see :func:`members`, :func:`obstacle` and :func:`blocks`; nothing is left behind then.
        OSError: the disk is full, or another reason of this machine.
    """
    destination.mkdir(parents=True, exist_ok=True)
    with open_zip(path) as archive:
        try:
            for index, info in enumerate(members(archive, limits)):
                if reason := obstacle(info, limits):
                    if reason == "link":
                        continue
                    raise _refusal(info, reason, limits)
                file = destination / f"{index:06d}-{_base_name(info.filename)}"
                with file.open("wb") as target:
                    copy_member(archive, info, target)
                yield file, info.filename
        except (ArchiveError, OSError):
            shutil.rmtree(destination, ignore_errors=True)
            raise
