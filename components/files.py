"""Files that are never half-written (a temporary name, then a rename), hashes, JSON with stable bytes."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import socket
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from components.errors import UserError

# What this machine keeps between runs, beside the outputs: of this checkout, or of all that name the same folder.
STATE = Path(os.environ.get("CTFOUNDRY_STATE") or ".ctfoundry")
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a quota on it, a limit on a file


class StopStageError(UserError):
    """No other series will fare better, so the stage stops; what is finished stays, and a later run goes on from it."""


class DiskFullError(StopStageError):
    """The disk is full."""


def disk_full(error: OSError, where: Path) -> DiskFullError | None:
    """What to raise for ``error`` where it says that a disk is full, or a quota on it or on a file's size; None for any
    other."""
    if error.errno not in NO_ROOM:
        return None
    return DiskFullError(f"disk: full while writing below {where}; free some and run again: what is finished is kept")


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes the name ``path``, on error it is removed and what
    was there stays. Temporary names are unique among processes and hosts that share the disk.

    Args:
        path: a file or a folder.
        durable: bring the bytes to the disk before the name, for when the power fails. What carries hashes that are
            compared whenever it is read can do without.

    Raises:
        DiskFullError: instead of the OSError that says so.
        UserError: a file, and ``path`` is a folder.
    """
    unique = f"{socket.gethostname()}.{uuid.uuid4().hex}"
    temporary = path.with_name(f".{path.name}.{unique}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            _to_disk(temporary)
        _take_name(temporary, path, path.with_name(f".{path.name}.{unique}.old"))
        if durable:
            _sync(path.parent)
    except OSError as error:
        full = disk_full(error, path.parent)
        if full is None:
            raise
        raise full from None
    finally:
        with suppress(NotADirectoryError):  # where the folder to be is a file
            _remove(temporary)


def require_file_name(path: Path, *kept: Path) -> Path:
    """``path``, where a file may be written; asked before long work begins.

    Args:
        path: of a file to be, or to be replaced.
        kept: files that are read, which it must not replace.

    Raises:
        UserError: it is a folder, or one of ``kept``.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder; allowed: the name of a file, such as {path / 'result'}{path.suffix}")
    if any(path.exists() and other.exists() and path.samefile(other) for other in kept):
        raise UserError(f"{path}: is what is read, and would be replaced; allowed: another name")
    return path


def _take_name(temporary: Path, path: Path, aside: Path) -> None:
    """Rename. A folder cannot be renamed onto another: the two exchange names, at once where the file system can do
    that; else the old one steps aside, and comes back if the new one cannot take its place.

    Raises:
        UserError: a file would replace a folder and all that is in it.
    """
    if not path.is_dir() or path.is_symlink():
        temporary.replace(path)
        return
    if not temporary.is_dir():
        require_file_name(path)
    if _exchange(temporary, path):
        return
    path.rename(aside)
    try:
        temporary.rename(path)
    except BaseException:
        if not path.exists():
            aside.rename(path)
        raise
    _remove(aside)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names (Linux' renameat2); False where this system or file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return bool(renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)


def _to_disk(path: Path) -> None:
    for found in [*path.rglob("*"), path] if path.is_dir() else [path]:
        if not found.is_symlink():
            _sync(found)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_tree(root: Path) -> str:
    """Hex SHA-256 over the sorted (relative path, file hash) pairs below ``root``; of the bytes if it is a file."""
    if root.is_file():
        return sha256_file(root)
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(root).as_posix()}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """A file that is there keeps its mode: who may read it is not for a new version to change."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        if path.is_file():
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))


def write_json(path: Path, content: Any) -> None:
    """JSON with sorted keys and a final newline: equal content gives equal bytes. NaN is refused."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
