"""A directory tree of DICOM files, in which a zip counts as a folder."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pandas as pd

from components.acquire.archive import ArchiveError, copy_member, open_zip
from components.acquire.config import TransferConfig
from components.acquire.headers import Instance, read_instance, series_identity
from components.acquire.sources import Listed, Listing
from components.acquire.sources.tree import (
    INSIDE,
    ZIP_MAGIC,
    Name,
    has_map,
    keyed,
    names,
    reason_of,
    resolve,
    shown,
    split_inside,
    write_map,
    zip_members,
)
from components.cohort.config import CohortConfig
from components.cohort.keys import patient_key, series_key, study_key
from components.cohort.roots import check_pinned, root_of
from components.params import UserError
from components.progress import map_series, track

SUFFIXES = (".dcm", ".dicom", ".ima")  # such a name claims that the file is DICOM
RESOURCE_FORK = "._"  # macOS writes these beside every file on foreign disks
MEMORY_BYTES = 64 * 2**20  # larger zip members are unpacked on disk
BLOCK = 256  # files that a worker reads at a time
MANY = 200_000  # below, starting workers takes longer than they save


@dataclass(frozen=True, slots=True)
class Found:
    """One file of the tree, as far as a listing needs to know it.

    Attributes:
        location, bytes: where it is, and its size.
        status: see :func:`list_tree`.
        identity: of its series, '' where it tells none.
        instance, patient, study: SOPInstanceUID, PatientID, StudyInstanceUID.
    """

    location: str
    bytes: int
    status: str
    identity: str = ""
    instance: str = ""
    patient: str = ""
    study: str = ""


def list_tree(root: Path, config: CohortConfig, workers: int | None = None) -> Listing:
    """Series and files of a tree: every file has a row, and a status that says what it is.

    ``image`` and ``truncated`` (its pixel data end early) are instances of a series, as is ``object`` (DICOM without an
    image); ``conflicting`` is one of several with the same SOPInstanceUID and other bytes, all kept for screening;
    ``duplicate`` has the very bytes of another instance, and is left out. ``dicomdir``, ``not_dicom``, ``archive`` (a
    zip, its members follow) and ``nested_archive`` (a zip in a zip, not opened) hold no image; ``unreadable``,
    ``empty``, ``damaged_archive``, ``vanished`` (between listing and reading) and those of :class:`tree.Name` could not
    be read. An unreadable file counts to its own series where it still names it, else to the series of its folder where
    that has only one, so that the damage is judged with the series and not lost.

    Args:
        root: of the tree.
        config: attribution.
        workers: processes; None chooses by the number of files.
    """
    found = [file for files in _read(root, names(root), workers) for file in files]
    groups: dict[str, list[Found]] = defaultdict(list)
    for file in found:
        if file.status in ("image", "truncated", "object"):
            groups[file.identity].append(file)
    status = {file.location: file.status for file in found}
    status.update(_twins(root, groups))
    owner = {f.location: i for i, files in groups.items() for f in files if status[f.location] != "duplicate"}
    owner.update(_damaged(found, groups))
    kept: dict[str, list[Found]] = defaultdict(list)
    for file in found:
        if file.location in owner:
            kept[owner[file.location]].append(file)
    series = [_listed(identity, files, config) for identity, files in kept.items()]
    keys = {"": "", **{identity: series_key(identity) for identity in kept}}
    rows = [
        {"location": f.location, "bytes": f.bytes, "status": status[f.location],
         "series": keys[owner.get(f.location, "")]}
        for f in found
    ]  # fmt: skip
    return Listing(sorted(series, key=lambda s: s.series), rows)


def _read(root: Path, found: list[Name], workers: int | None) -> list[list[Found]]:
    blocks = [(root, found[start : start + BLOCK]) for start in range(0, len(found), BLOCK)]
    workers = workers or (None if len(found) >= MANY else 1)
    return map_series(_read_block, blocks, f"headers of {len(found)} files", workers=workers)


def _read_block(block: tuple[Path, list[Name]]) -> list[Found]:
    return [found for name in block[1] for found in read_file(block[0], name)]


def read_file(root: Path, name: Name) -> Iterator[Found]:
    """A file of the tree; a zip with all its members."""
    if name.status:
        yield Found(name.location, 0, name.status)
        return
    path, size = f"{root}/{name.location}", 0
    try:
        with io.BufferedReader(io.FileIO(path)) as stream:
            size = os.fstat(stream.fileno()).st_size
            instance = read_instance(stream, name.location, size, listing=True)
            magic = b""
            if instance.status == "not_dicom":
                stream.seek(0)
                magic = stream.read(4)
    except FileNotFoundError:
        yield Found(name.location, size, "vanished")
        return
    except OSError:
        yield Found(name.location, size, "unreadable")
        return
    if magic in ZIP_MAGIC:
        yield from _read_zip(Path(path), name.location, size)
    else:
        yield _found(instance)


def _found(instance: Instance) -> Found:
    status = "truncated" if instance.truncated else instance.status
    if status == "not_dicom":
        base = PurePosixPath(instance.location).name
        claims = base.lower().endswith(SUFFIXES) and not base.startswith(RESOURCE_FORK)
        status = "empty" if instance.bytes == 0 else "unreadable" if claims else status
    if not instance.tags:
        return Found(instance.location, instance.bytes, status)
    uids = (str(instance.tags.get(tag, "")) for tag in ("SOPInstanceUID", "PatientID", "StudyInstanceUID"))
    return Found(instance.location, instance.bytes, status, series_identity(instance), *uids)


def _read_zip(path: Path, location: str, size: int) -> Iterator[Found]:
    """A zip's row and those of its members. A damaged or over-limit zip is one file, whatever is in it."""
    try:
        with open_zip(path) as archive:
            within = zip_members(archive)
            yield Found(location, size, "archive")
            for name, info in within.items():
                yield _read_member(archive, info, f"{location}{INSIDE}{name}")
    except (ArchiveError, OSError, ValueError):
        yield Found(location, size, "damaged_archive")


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, location: str) -> Found:
    with tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES) as content:
        try:
            copy_member(archive, info, content)
        except ArchiveError:
            return Found(location, info.file_size, "unreadable")
        content.seek(0)
        instance = read_instance(content, location, info.file_size, listing=True)
        content.seek(0)
        nested = instance.status == "not_dicom" and content.read(4) in ZIP_MAGIC
    return Found(location, info.file_size, "nested_archive") if nested else _found(instance)


def _twins(root: Path, groups: dict[str, list[Found]]) -> dict[str, str]:
    """Location to ``duplicate`` or ``conflicting``, of instances that have a twin in their series."""
    twins: dict[tuple[str, str, int], list[Found]] = defaultdict(list)
    sizes: dict[tuple[str, str], set[int]] = defaultdict(set)
    for identity, files in groups.items():
        for file in files:
            twins[identity, file.instance, file.bytes].append(file)
            sizes[identity, file.instance].add(file.bytes)
    compared = [file for alike in twins.values() if len(alike) > 1 for file in alike]
    digests = _digests(root, compared)
    status: dict[str, str] = {}
    for identity, uid in sizes:
        alike = [file for size in sorted(sizes[identity, uid]) for file in twins[identity, uid, size]]
        first: dict[str, str] = {}
        for file in sorted(alike, key=lambda f: f.location):
            digest = digests.get(file.location, file.location)
            if first.setdefault(digest, file.location) != file.location:
                status[file.location] = "duplicate"
        if uid and len(first) > 1:
            status.update(dict.fromkeys(first.values(), "conflicting"))
    return status


def _digests(root: Path, files: list[Found]) -> dict[str, str]:
    """SHA-256 of files that may be copies of each other; a file that cannot be read is no copy."""
    digests: dict[str, str] = {}
    if not files:
        return digests
    with ExitStack() as stack:
        archives = _Archives(root, stack)
        for file in track(files, [f.bytes for f in files], f"comparing {len(files)} files", in_bytes=True):
            try:
                with tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES) as content:
                    archives.copy(file.location, content)
                    content.seek(0)
                    digest = hashlib.sha256()
                    for block in iter(lambda: content.read(1 << 20), b""):
                        digest.update(block)
                digests[file.location] = digest.hexdigest()
            except (OSError, KeyError, ArchiveError):
                continue
    return digests


def _damaged(found: Iterable[Found], groups: dict[str, list[Found]]) -> dict[str, str]:
    """Location to identity of the series that a damaged file belongs to, where that can be told."""
    folders: dict[str, set[str]] = defaultdict(set)
    for identity, files in groups.items():
        for file in files:
            folders[_folder(file.location)].add(identity)
    owner = {}
    for file in found:
        claims = file.status == "empty" and file.location.lower().endswith(SUFFIXES)
        if file.status != "unreadable" and not claims:
            continue
        near = folders.get(_folder(file.location), set())
        if file.identity in groups:
            owner[file.location] = file.identity
        elif len(near) == 1:
            owner[file.location] = next(iter(near))
    return owner


def _folder(location: str) -> str:
    return location.rpartition("/")[0]


def _listed(identity: str, files: list[Found], config: CohortConfig) -> Listed:
    patient_id = next((file.patient for file in files if file.patient), "")
    study = next((file.study for file in files if file.study), "")
    folders = sorted({_folder(file.location) for file in files})
    return Listed(
        series=series_key(identity),
        # Studies without a PatientID are nobody's: as one patient they would all fall into one split.
        patient=patient_key(patient_id or f"no PatientID|{study or identity}"),
        study=study_key(study),
        name=_name(folders[0]),
        location=";".join(folders),
        files=len(files),
        bytes=sum(file.bytes for file in files),
        collection=config.collection,
        licence=config.licence,
        doi=config.doi,
        members=tuple(sorted(file.location for file in files)),
    )


def _name(folder: str) -> str:
    """The zip's or the folder's own name: short enough for a table."""
    outer = folder.split(INSIDE)[0].removesuffix("!")
    return PurePosixPath(outer).name or "."


class _Archives:
    """Reads files of a tree by location; zips stay open until ``stack`` closes."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self._root, self._stack = root, stack
        self._open: dict[str, tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]] = {}

    def copy(self, location: str, target: IO[bytes]) -> None:
        """Raises OSError or KeyError where the file has gone, ArchiveError where a zip or its member is damaged."""
        outer, inner = split_inside(self._root, location)
        if not inner:
            with (self._root / outer).open("rb") as source:
                shutil.copyfileobj(source, target, 1 << 20)
            return
        if outer not in self._open:
            archive = self._stack.enter_context(open_zip(self._root / outer))
            self._open[outer] = archive, zip_members(archive)
        archive, within = self._open[outer]
        copy_member(archive, within[inner], target)


class DicomSource:
    """A tree of DICOM files under the root ``dicom``."""

    def __init__(self, config: CohortConfig, line: str) -> None:
        self._config, self._key = config, f"{line}.cohort.source_digest"
        self.version = config.source_digest or ""

    def list_series(self, held_out: frozenset[str]) -> Listing:
        listing = list_tree(check_pinned("dicom", self._config.source_digest, self._key), self._config)
        if not listing.series:
            raise UserError("root 'dicom': no DICOM file below it; allowed: folders and zips of DICOM files")
        return keyed(listing, "dicom") if self._config.paths == "keyed" else shown(listing, "dicom")

    def check(self) -> None:
        root_of("dicom")
        if self._config.paths == "keyed" and not has_map("dicom"):
            write_map("dicom")

    def fetch(
        self, row: dict[str, Any], members: list[str], folder: Path, transfer: TransferConfig
    ) -> pd.DataFrame | None:
        """Copy the members under numbered names: names from a zip are never used as paths."""
        locations = resolve("dicom", members) if self._config.paths == "keyed" else members
        with ExitStack() as stack:
            archives = _Archives(root_of("dicom"), stack)
            for index, (member, location) in enumerate(zip(members, locations, strict=True)):
                target = folder / f"{index:06d}.dcm"
                try:
                    with target.open("wb") as stream:
                        archives.copy(location, stream)
                except KeyError:
                    raise UserError(f"file {member}: no longer in its zip; the source has changed") from None
                except ArchiveError:
                    target.write_bytes(b"")  # kept as an unreadable file of the series: screening names it
                except OSError as error:
                    raise reason_of(error) from None
        return None
