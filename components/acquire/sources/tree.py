"""A directory tree as a source: the names of all its files, and pseudonyms for them.

Names of a site's folders and files often hold patients' names, and tables keep the locations of files. With ``cohort.
paths: keyed`` tables get keyed pseudonyms instead, and a map from these to the names stays on this machine:
``.ctfoundry/paths/<root>.sqlite``, which git ignores and only its owner may read. Where it is missing or outdated it is
made again from the names alone; the same ``CTFOUNDRY_PSEUDONYM_KEY`` then gives the same pseudonyms.
"""

from __future__ import annotations

import os
import sqlite3
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from components.acquire.archive import LOCAL_LIMITS, ArchiveError, members, open_zip
from components.acquire.sources import Listing
from components.cohort.keys import file_key
from components.cohort.roots import root_of
from components.files import replacing
from components.params import UserError

INSIDE = "!/"  # between a zip's path and its member's name
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
MAPS = Path(".ctfoundry/paths")


@dataclass(frozen=True)
class Name:
    """Something below a root.

    Attributes:
        location: path relative to the root; a folder's ends with ``/``.
        status: '' for a file (or a link to one) that can be read, else why not: ``link`` (to a folder: not followed,
            so that no loop is), ``broken_link``, ``special`` (a pipe, socket or device), ``unreadable_folder``.
    """

    location: str
    status: str = ""


def names(root: Path) -> list[Name]:
    """Everything below ``root`` but its folders, sorted by location. No file is opened."""
    return sorted(_names(str(root), ""), key=lambda name: name.location)


def _names(folder: str, prefix: str) -> Iterator[Name]:
    try:
        with os.scandir(folder) as scan:
            entries = list(scan)
    except OSError:
        yield Name(prefix, "unreadable_folder")
        return
    for entry in entries:
        location = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _names(entry.path, f"{location}/")
        else:
            yield Name(location, _status(entry))


def _status(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_file():
            return ""
        if not entry.is_symlink():
            return "special"
        return "link" if entry.is_dir() else "special" if Path(entry.path).exists() else "broken_link"
    except OSError:  # a link to itself
        return "broken_link"


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


def reason_of(error: OSError) -> OSError:
    """The same error without the name of the file, which may be a patient's."""
    return OSError(error.errno, error.strerror)


def keyed(listing: Listing, name: str) -> Listing:
    """``listing`` with pseudonyms for its locations; their map is written for the root ``name``."""
    locations = {file_key(row["location"]): row["location"] for row in listing.files}
    if len(locations) < len(listing.files):
        raise RuntimeError("listing: two files share a key")
    _write_map(name, locations.items())
    files = [{**row, "location": key} for key, row in zip(locations, listing.files, strict=True)]
    series = [
        replace(of, name=of.series, location=file_key(of.location), members=tuple(file_key(m) for m in of.members))
        for of in listing.series
    ]
    return replace(listing, series=series, files=sorted(files, key=lambda row: str(row["location"])))


def shown(listing: Listing, name: str) -> Listing:
    """``listing`` as it is. Raises UserError where a name cannot be written to a table."""
    try:
        "".join(row["location"] for row in listing.files).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"root {name!r}: a file's name is not UTF-8: cohort.paths: shown is not allowed with it; use keyed"
        ) from None
    return listing


def resolve(name: str, keys: Sequence[str]) -> list[str]:
    """The locations below the root ``name`` that ``keys`` stand for.

    Raises:
        UserError: one of them is not below the root, or the root is not configured.
    """
    root = root_of(name)
    found = _look_up(name, keys)
    if any(key not in found or not (root / split_inside(root, found[key])[0]).exists() for key in keys):
        write_map(name)
        found = _look_up(name, keys)
    missing = [key for key in keys if key not in found]
    if missing:
        raise UserError(
            f"root {name!r}: {len(missing)} of {len(keys)} files are not below it, first {missing[0]}; the tree has "
            "changed, or CTFOUNDRY_PSEUDONYM_KEY is another than when the cohort was made"
        )
    return [found[key] for key in keys]


def has_map(name: str) -> bool:
    return _map(name).is_file()


def write_map(name: str) -> None:
    """Make the map of the root ``name`` again, from names alone."""
    root = root_of(name)
    _write_map(name, ((file_key(location), location) for location in _locations(root)))


def _locations(root: Path) -> Iterator[str]:
    for name in names(root):
        yield name.location
        if name.status:
            continue
        try:
            if is_zip(root / name.location):
                with open_zip(root / name.location) as archive:
                    yield from (f"{name.location}{INSIDE}{member}" for member in zip_members(archive))
        except (ArchiveError, OSError, ValueError):
            continue  # the zip itself has its key; what cannot be read has no members


def _map(name: str) -> Path:
    return MAPS / f"{name}.sqlite"


def _write_map(name: str, pairs: Iterable[tuple[str, str]]) -> None:
    with replacing(_map(name)) as temporary:
        temporary.touch(mode=0o600)
        with closing(sqlite3.connect(temporary)) as base, base:
            base.execute("CREATE TABLE paths (key TEXT PRIMARY KEY, location BLOB NOT NULL) WITHOUT ROWID")
            base.executemany("INSERT OR REPLACE INTO paths VALUES (?, ?)", ((k, os.fsencode(v)) for k, v in pairs))


def _look_up(name: str, keys: Sequence[str]) -> dict[str, str]:
    if not _map(name).is_file():
        return {}
    with closing(sqlite3.connect(_map(name))) as base:
        rows = (base.execute("SELECT key, location FROM paths WHERE key = ?", (key,)).fetchone() for key in keys)
        return {row[0]: os.fsdecode(row[1]) for row in rows if row}
