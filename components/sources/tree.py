"""A directory tree as a source: the names of all its files, and pseudonyms for them.

Names of a site's folders and files often hold patients' names, and tables keep the locations of files. With ``cohort.
paths: keyed`` tables get keyed pseudonyms instead, and a map from these to the names stays on this machine:
``.ctfoundry/paths/<place>-<root>.sqlite``, which git ignores and only its owner may read (a place is a line, or a
labelled set of a line). Where it is missing or outdated it is made again from the names alone; the same
``CTFOUNDRY_PSEUDONYM_KEY`` then gives the same pseudonyms.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import sqlite3
import tempfile
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path, PurePosixPath
from typing import IO

from components.ct.archive import LOCAL_LIMITS, OBSTACLES, ArchiveError, blocks, members, obstacle, open_zip
from components.ct.keys import file_key, require_secret
from components.errors import UserError
from components.files import NO_ROOM, STATE, DiskFullError, StopStageError, replacing
from components.sources.interface import Listing
from components.sources.roots import key_of, root_of

PIECE_BYTES = 4096
LARGE_BYTES = 4 * 2**20  # such files (volumes, zips) are looked at in their middle and at their end, too
TABLE_SUFFIX = ".csv"  # such as that of a NIfTI tree's patients
UNREADABLE = bytes(32)  # in place of a digest
OPEN_ZIPS = 8
READERS = 16  # threads: on a network share, a small read waits
INSIDE = "!/"  # between a zip's path and its member's name
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
MAPS = STATE / "paths"


@dataclass(frozen=True, slots=True)
class Name:
    """Something below a root.

    Attributes:
        location: path relative to the root; a folder's ends with ``/``.
        status: '' for a file (or a link to one) that can be read, else why not: ``link`` (to a folder whose files are
            listed elsewhere, or that holds the root), ``broken_link``, ``special`` (a pipe, socket or device),
            ``unreadable_folder``.
    """

    location: str
    status: str = ""


def names(root: Path) -> Iterator[Name]:
    """Everything below ``root`` but its folders, folder by folder in the order of their names. No file is opened.

    A link to a folder outside the root is followed, the first time that it is met: archives are often folders of links.
    One that leads to where files are listed anyway, or up, is not, so that no walk goes round.
    """
    return _names(str(root), "", os.path.realpath(root), set())


def _names(folder: str, prefix: str, top: str, followed: set[str]) -> Iterator[Name]:
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        stop_if_machine(error)
        yield Name(prefix, "unreadable_folder")
        return
    for entry in entries:
        location = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _names(entry.path, f"{location}/", top, followed)
            continue
        status = _status(entry)
        target = os.path.realpath(entry.path) if status == "link" else ""
        if target and not _is_listed(target, top, followed):
            followed.add(target)
            yield from _names(target, f"{location}/", top, followed)
        else:
            yield Name(location, status)


def _is_listed(target: str, top: str, followed: set[str]) -> bool:
    """Whether what a link leads to is listed where it lies, or holds the root."""
    above = [target, *map(str, Path(target).parents)]
    return top in above or target in map(str, Path(top).parents) or not followed.isdisjoint(above)


def _status(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_file():
            return ""
        if not entry.is_symlink():
            return "special"
        return "link" if entry.is_dir() else "special" if Path(entry.path).exists() else "broken_link"
    except OSError:  # a link to itself
        return "broken_link"


def folder_of(location: str) -> str:
    return location.rpartition("/")[0]


def ending(location: str) -> str:
    """What a name's ending says of the file; '' where it says nothing, as a UID's last number does."""
    suffix = PurePosixPath(location).suffix.lower()
    return "" if suffix[1:].isdigit() else suffix


def stop_if_machine(error: OSError) -> None:
    """Raise StopStageError where an error is this machine's and not a file's: no file may be thought damaged for it."""
    if error.errno in NO_ROOM:
        raise DiskFullError(
            f"disk: full at {tempfile.gettempdir()} while the source was read; free some, or set TMPDIR"
        )
    stop_if_too_many_open(error)


def stop_if_too_many_open(error: OSError) -> None:
    """Raise StopStageError where this process or machine has too many files open: no other series will fare better."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise StopStageError("this machine: too many open files; raise their number (`ulimit -n`)")


def glance(stream: IO[bytes], location: str, size: int) -> bytes:
    """SHA-256 of a file's first 4 KiB and, of a large one, of as much from its middle and its end; of all of a table.
    32 bytes."""
    digest = hashlib.sha256(stream.read(-1 if location.endswith(TABLE_SUFFIX) else PIECE_BYTES))
    if size > LARGE_BYTES:
        for at in (size // 2, size - PIECE_BYTES):
            stream.seek(at)
            digest.update(stream.read(PIECE_BYTES))
    return digest.digest()


def tree_digest(root: Path) -> str:
    """Digest of a tree: relative path, size and a glance at every file.

    Sees every added, removed, renamed or resized file, every changed header and, in files of more than 4 MiB, nearly
    every change of all values, without reading terabytes; the bytes themselves are hashed by ``acquire``. Pixels of a
    single slice, changed in place, are not seen.
    """
    digest = hashlib.sha256()
    for location, size, pieces in glances(root):
        add_to_digest(digest, location, size, pieces)
    return digest.hexdigest()


def glances(root: Path) -> Iterator[tuple[str, int, bytes]]:
    """Location and size of every file below ``root``, and a glance at it, in the order of :func:`names`."""
    files = (name.location for name in names(root) if not name.status)
    with ThreadPoolExecutor(READERS) as readers:
        while batch := list(islice(files, 10_000)):
            seen = readers.map(lambda location: _glance_at(f"{root}/{location}"), batch)
            yield from ((location, *told) for location, told in zip(batch, seen, strict=True))


def _glance_at(path: str) -> tuple[int, bytes]:
    try:
        with io.FileIO(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            return size, glance(stream, path, size)
    except OSError as error:  # without permission, or gone: the cohort's table of files says so
        stop_if_machine(error)
        return 0, UNREADABLE


def add_to_digest(digest: hashlib._Hash, location: str, size: int, pieces: bytes) -> None:
    """Add one file, as :func:`tree_digest` does; files come in the order of :func:`names`."""
    seen, size = ("unreadable", 0) if pieces == UNREADABLE else (pieces.hex(), size)
    digest.update(f"{location}\0{size}\0{seen}\n".encode("utf-8", "surrogateescape"))  # a name may be any bytes


def pinned_root(name: str, pinned: str | None, place: str) -> Path:
    """The folder behind the root ``name``. Raises UserError where none is configured, or no digest is pinned."""
    if not pinned:
        told = f"params.yaml: {key_of(place)}.source_digest: null is not allowed with this source"
        raise UserError(f"{told}; run `ctfoundry {'set pin' if '-' in place else 'release --source'}`")
    return root_of(name, place)


def check_digest(name: str, pinned: str | None, place: str, found: str) -> None:
    """Raise UserError where the tree is another than the one that ``params.yaml`` pins for the place."""
    if found != pinned:
        line, _, of_set = place.partition("-")
        command = f"set pin {of_set} --line {line}" if of_set else f"release --source {name}:<folder>"
        raise UserError(
            f"root {name!r}: its files have changed (digest {found[:12]}, {key_of(place)}.source_digest pins "
            f"{str(pinned)[:12]}); run `ctfoundry {command}` to pin them as they are now"
        )


def none_found(name: str, wanted: str, statuses: Iterable[str]) -> UserError:
    """The error of a tree without any ``wanted``: what its files are instead, and what can be done."""
    counts: dict[str, int] = {}
    for status in statuses:
        counts[status] = counts.get(status, 0) + 1
    seen = ", ".join(f"{status} {count}" for status, count in sorted(counts.items())) or "none"
    known = [f"{status}: {OBSTACLES[status]}" for status in sorted(counts) if status in OBSTACLES and status != "link"]
    return UserError("; ".join([f"root {name!r}: no {wanted} below it; its files: {seen}", *known]))


def is_zip(path: Path) -> bool:
    """By its first bytes; raises OSError where it cannot be read."""
    with path.open("rb") as stream:
        return stream.read(4) in ZIP_MAGIC


def zip_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Members by name; a zip may hold a name twice, and the second is then told apart by ``#2``."""
    found: dict[str, zipfile.ZipInfo] = {}
    for info in members(archive, LOCAL_LIMITS):
        name, number = info.filename, 1
        while name in found:
            number += 1
            name = f"{info.filename}#{number}"
        found[name] = info
    return found


def split_inside(root: Path, location: str) -> tuple[str, str]:
    """A location's path below ``root`` and, of a zip's member, its name in there. Folders may end in ``!``, too."""
    at = location.find(INSIDE)
    while at != -1:
        if (root / location[:at]).is_file():
            return location[:at], location[at + len(INSIDE) :]
        at = location.find(INSIDE, at + 1)
    return location, ""


class Archives:
    """Reads files of a tree by location. A few zips stay open, those used last: a tree may hold more of them than a
    process may have open files."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: OrderedDict[str, tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]] = OrderedDict()

    def __enter__(self) -> Archives:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._open.popitem()[1][0].close()

    def blocks(self, location: str) -> Iterator[bytes]:
        """The bytes of a file, piece by piece.

        Raises:
            OSError, KeyError: the file, or the zip or its member, has gone or cannot be read.
            ArchiveError: the member is damaged. UserError: the zip itself is.
        """
        outer, inner = split_inside(self._root, location)
        if inner:
            archive, within = self._archive(outer)
            info = within[inner]
            if obstacle(info, LOCAL_LIMITS):
                raise ArchiveError("zip: a member that is not unpacked")
            yield from blocks(archive, info)
            return
        with (self._root / outer).open("rb") as source:
            while block := source.read(1 << 20):
                yield block

    def _archive(self, outer: str) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
        if outer not in self._open:  # not an lru_cache, which would not close what it drops
            while len(self._open) >= OPEN_ZIPS:
                self._open.popitem(last=False)[1][0].close()
            try:
                archive = open_zip(self._root / outer)
                self._open[outer] = archive, zip_members(archive)
            except ArchiveError as error:  # it was sound when the tree was listed
                raise UserError(f"{error}; the source has changed") from None
        self._open.move_to_end(outer)
        return self._open[outer]


def reason_of(error: OSError) -> OSError:
    """The same error without the name of the file, which may be a patient's."""
    return OSError(error.errno, error.strerror)


def own_names(place: str) -> str:
    """What goes before a location below the root of a labelled set, so that its pseudonym is not that of a file of the
    same name below the line's own root."""
    return f"{place}|" if "-" in place else ""


def keyed(listing: Listing, name: str, place: str) -> Listing:
    """``listing`` with pseudonyms for its locations; their map is written for the root ``name`` of the place."""
    files, prefix = listing.files, own_names(place)
    keys = [file_key(prefix + location) for location in files.location]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    if any(keys[one] == keys[next_one] for one, next_one in pairwise(order)):
        raise RuntimeError("listing: two files share a key")
    _write_map(name, place, zip(keys, files.location, strict=True))
    members: dict[str, list[str]] = defaultdict(list)
    for key, series in zip(keys, files.series, strict=True):
        if series:
            members[series].append(key)
    series_ = [
        replace(
            of, name=of.series, location=file_key(prefix + of.location), members=tuple(members[of.series]),
            folders=tuple(file_key(prefix + folder) for folder in of.folders),
        )
        for of in listing.series
    ]  # fmt: skip
    return replace(listing, series=series_, files=files.renamed(keys, order))


def shown(listing: Listing, name: str) -> Listing:
    """``listing`` as it is. Raises UserError where a name cannot be written to a table."""
    try:
        for location in listing.files.location:
            location.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"root {name!r}: a file's name is not UTF-8: cohort.paths: shown is not allowed with it; use keyed"
        ) from None
    return listing


def resolve(name: str, place: str, keys: Sequence[str]) -> list[str]:
    """The locations below the root ``name`` of a place that ``keys`` stand for.

    Raises:
        UserError: one of them is not below the root, or the root is not configured.
    """
    root = root_of(name, place)
    found = _look_up(name, place, keys)
    if any(key not in found or not (root / split_inside(root, found[key])[0]).exists() for key in keys):
        write_map(name, place)
        found = _look_up(name, place, keys)
    missing = [key for key in keys if key not in found]
    if missing:
        raise UserError(
            f"root {name!r}: {len(missing)} of {len(keys)} files are not below it, first {missing[0]}; the tree has "
            "changed, or CTFOUNDRY_PSEUDONYM_KEY is another than when the cohort was made"
        )
    return [found[key] for key in keys]


def has_map(name: str, place: str) -> bool:
    return _map(name, place).is_file()


def write_map(name: str, place: str) -> None:
    """Make the map of a place's root ``name`` again, from names alone. Raises UserError without a secret: a process
    that lacks it would give every file another pseudonym."""
    require_secret(name)
    root, prefix = root_of(name, place), own_names(place)
    _write_map(name, place, ((file_key(prefix + location), location) for location in _locations(root)))


def _locations(root: Path) -> Iterator[str]:
    for name in names(root):
        yield name.location
        if name.status:
            continue
        try:
            if is_zip(root / name.location):
                with open_zip(root / name.location) as archive:
                    yield from (f"{name.location}{INSIDE}{member}" for member in zip_members(archive))
        except ArchiveError:
            continue  # the zip itself has its key; what cannot be read has no members
        except OSError as error:
            stop_if_machine(error)


def _map(name: str, place: str) -> Path:
    return MAPS / f"{place}-{name}.sqlite"


def _write_map(name: str, place: str, pairs: Iterable[tuple[str, str]]) -> None:
    with replacing(_map(name, place)) as temporary:
        temporary.touch(mode=0o600)
        with closing(sqlite3.connect(temporary)) as base, base:
            base.execute("CREATE TABLE paths (key TEXT PRIMARY KEY, location BLOB NOT NULL) WITHOUT ROWID")
            base.executemany("INSERT OR REPLACE INTO paths VALUES (?, ?)", ((k, os.fsencode(v)) for k, v in pairs))


def _look_up(name: str, place: str, keys: Sequence[str]) -> dict[str, str]:
    if not _map(name, place).is_file():
        return {}
    with closing(sqlite3.connect(_map(name, place))) as base:
        rows = (base.execute("SELECT key, location FROM paths WHERE key = ?", (key,)).fetchone() for key in keys)
        return {row[0]: os.fsdecode(row[1]) for row in rows if row}
