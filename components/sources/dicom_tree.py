"""A directory tree of DICOM files, in which a zip counts as a folder."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tempfile
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from components.ct.archive import (
    LOCAL_LIMITS,
    OBSTACLES,
    ArchiveError,
    ArchiveLimitError,
    copy_member,
    obstacle,
    open_zip,
)
from components.ct.headers import CT_CLASSES, CT_IMAGE_STORAGE, read_instance, series_identity
from components.ct.instance import Instance
from components.ct.keys import accession_key, patient_key, series_key, study_key, uid_key
from components.errors import UserError
from components.processes import map_all
from components.progress import track
from components.sources.config import SourceConfig
from components.sources.interface import Files, Listed, Listing, folders_up
from components.sources.tree import (
    INSIDE,
    UNREADABLE,
    ZIP_MAGIC,
    Archives,
    Name,
    add_to_digest,
    ending,
    folder_of,
    glance,
    names,
    stop_if_machine,
    zip_members,
)

SUFFIXES = (".dcm", ".dicom", ".ima")  # such a name claims that the file is DICOM
RESOURCE_FORK = "._"  # macOS writes these beside every file on foreign disks
MEMORY_BYTES = 64 * 2**20  # larger zip members are unpacked on disk
BLOCK = 256  # files that a worker reads at a time
MANY = 200_000  # below, starting workers takes longer than they save
GLANCE = struct.Struct("q32s")  # size of a file, and a glance at it
STATED = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "AccessionNumber")  # by an owner, in its order
CT_IMAGES = ("image", "truncated")
INSTANCES = (*CT_IMAGES, "object", "other_image")
DAMAGED = ("unreadable", *(reason for reason in OBSTACLES if reason != "link"))


@dataclass(frozen=True, slots=True)
class Owner:
    """The series that a file states: identity (see ``series_identity``), PatientID, StudyInstanceUID, and what does not
    tell one series from another: SeriesInstanceUID, AccessionNumber."""

    identity: str
    patient: str
    study: str
    uid: str = field(default="", compare=False)
    accession: str = field(default="", compare=False)


@dataclass(slots=True)
class TreeFile:
    """One file of the tree, as far as a listing needs to know it. Not frozen: what is a copy, and whose a damaged file
    is, shows when all are read.

    Attributes:
        location, bytes: where it is, and its size.
        status: see :func:`list_tree`.
        owner: its series, None where it tells none.
        instance: SOPInstanceUID.
        seen: what a glance at its bytes shows, as a number; of a zip's member its checksum.
    """

    location: str
    bytes: int
    status: str
    owner: Owner | None = None
    instance: str = ""
    seen: int = 0


Groups = dict[Owner, list[TreeFile]]


def list_tree(root: Path, config: SourceConfig, workers: int | None = None) -> Listing:
    """Series and files of a tree: every file has a row, and a status that says what it is.

    ``image`` and ``truncated`` (its pixel data end early) are instances of a series, as is ``object`` (DICOM without an
    image); ``conflicting`` is one of several with the same SOPInstanceUID and other bytes, all kept for screening;
    ``duplicate`` has the very bytes of another instance, and is left out. ``other_image`` is one of a series that is no
    CT (PET, MR, a dose page), which is no series of ours, nor are objects alone (structures, segmentations, reports).
    ``dicomdir``, ``not_dicom``, ``archive`` (a zip, its members follow) and ``nested_archive`` (a zip in a zip, not
    opened) hold no image; ``unreadable``, ``empty``, ``damaged_archive``, ``archive_over_limit``, ``vanished`` (between
    listing and reading), members of a zip that are not unpacked (``archive.OBSTACLES``) and those of :class:`tree.Name`
    could not be read. An unreadable file counts to its own series where it still names it, else to the series of its
    folder where that has only one, so that the damage is judged with the series and not lost.

    Args:
        root: of the tree.
        config: attribution.
        workers: processes; None chooses by the number of files.

    Raises:
        UserError: this machine's disk is full, or it has too many open files.
    """
    found, digest = _read(root, list(names(root)), workers)
    groups: Groups = defaultdict(list)
    for file in found:
        if file.owner and file.status in INSTANCES:
            groups[file.owner].append(file)
    near = _owners_by_folder(groups)
    of_ct = {owner: files for owner, files in groups.items() if any(f.status in CT_IMAGES for f in files)}
    _mark_twins(root, of_ct)
    kept: Groups = defaultdict(list)
    for file in found:
        file.owner = _owner_of(file, groups, near)
        if file.owner in of_ct:
            kept[file.owner].append(file)
    series = [_listed(owner, files, config) for owner, files in kept.items()]
    keys = {owner: series_key(owner.identity) for owner in kept}
    of = [keys.get(file.owner, "") if file.owner else "" for file in found]
    files = Files([f.location for f in found], (f.bytes for f in found), [f.status for f in found], of)
    return Listing(sorted(series, key=lambda s: s.series), files, digest)


def _read(root: Path, found: list[Name], workers: int | None) -> tuple[list[TreeFile], str]:
    """Every file, and the digest of the tree (see ``tree.tree_digest``), in one pass."""
    blocks = [(root, found[start : start + BLOCK]) for start in range(0, len(found), BLOCK)]
    workers = workers or (None if len(found) >= MANY else 1)
    read = map_all(_read_block, blocks, f"headers of {len(found)} files", workers=workers)
    digest, files, owners = hashlib.sha256(), [], dict[Owner | None, Owner | None]()
    for (_, block), (listed, seen) in zip(blocks, read, strict=True):
        for name, (size, pieces) in zip([n for n in block if not n.status], GLANCE.iter_unpack(seen), strict=True):
            add_to_digest(digest, name.location, size, pieces)
        for file in listed:
            file.owner = owners.setdefault(file.owner, file.owner)  # one object for the hundreds of files of a series
        files += listed
    return files, digest.hexdigest()


def _read_block(block: tuple[Path, list[Name]]) -> tuple[list[TreeFile], bytes]:
    """The files of a block, and of each that was opened size and glance."""
    listed, seen, owners = [], [], dict[Owner | None, Owner | None]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's quote values; headers are judged by screening
        for name in block[1]:
            size, pieces, files = read_file(block[0], name)
            for file in files:
                file.owner = owners.setdefault(file.owner, file.owner)
            listed += files
            if not name.status:
                seen.append(GLANCE.pack(size, pieces))
    return listed, b"".join(seen)


def read_file(root: Path, name: Name) -> tuple[int, bytes, list[TreeFile]]:
    """Size of a file of the tree, a glance at it (``UNREADABLE`` where there is none), and what it is; of a zip, with
    all its members. Raises UserError where this machine's disk is full, or it has too many open files."""
    if name.status:
        return 0, UNREADABLE, [TreeFile(name.location, 0, name.status)]
    path = f"{root}/{name.location}"
    try:
        with io.BufferedReader(io.FileIO(path)) as stream:
            size = os.fstat(stream.fileno()).st_size
            pieces = glance(stream, name.location, size)
            found, magic = _told(stream, name.location, size)
    except FileNotFoundError:
        return 0, UNREADABLE, [TreeFile(name.location, 0, "vanished")]
    except OSError as error:
        stop_if_machine(error)
        return 0, UNREADABLE, [TreeFile(name.location, 0, "unreadable")]
    if magic in ZIP_MAGIC:
        return size, pieces, _read_zip(Path(path), name.location, size)
    found.seen = int.from_bytes(pieces[:8])
    return size, pieces, [found]


def _told(stream: IO[bytes], location: str, size: int) -> tuple[TreeFile, bytes]:
    """What a file is and, where it is no DICOM, its first bytes. Whatever an odd one does to the reader, it costs that
    file only."""
    stream.seek(0)
    try:
        instance = read_instance(stream, location, size, listing=True)
        found = _found(instance)
    except OSError:
        raise
    except Exception:
        return TreeFile(location, size, "unreadable"), b""
    stream.seek(0)
    return found, stream.read(4) if instance.status == "not_dicom" else b""


def _found(instance: Instance) -> TreeFile:
    status = "truncated" if instance.truncated else instance.status
    if status == "not_dicom":
        base = PurePosixPath(instance.location).name
        claims = base.lower().endswith(SUFFIXES) and not base.startswith(RESOURCE_FORK)
        status = "empty" if instance.bytes == 0 else "unreadable" if claims else status
    tags = instance.tags
    if not tags:
        return TreeFile(instance.location, instance.bytes, status)
    if status in CT_IMAGES and not (tags.get("SOPClassUID", CT_IMAGE_STORAGE) in CT_CLASSES
                                    and tags.get("Modality", "CT") == "CT"):  # fmt: skip
        status = "other_image"
    owner = Owner(series_identity(instance), *(str(tags.get(tag, "")) for tag in STATED))
    return TreeFile(instance.location, instance.bytes, status, owner, str(tags.get("SOPInstanceUID", "")))


def _read_zip(path: Path, location: str, size: int) -> list[TreeFile]:
    """A zip's row and those of its members. A damaged or over-limit zip is one file, whatever is in it; a member that
    is a link, encrypted or packed in another way costs itself."""
    try:
        with open_zip(path) as archive:
            within = zip_members(archive)
            read = [_read_member(archive, info, f"{location}{INSIDE}{name}") for name, info in within.items()]
            return [TreeFile(location, size, "archive"), *read]
    except ArchiveLimitError:
        return [TreeFile(location, size, "archive_over_limit")]
    except ArchiveError:
        return [TreeFile(location, size, "damaged_archive")]
    except OSError as error:
        stop_if_machine(error)
        return [TreeFile(location, size, "damaged_archive")]


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, location: str) -> TreeFile:
    if reason := obstacle(info, LOCAL_LIMITS):
        return TreeFile(location, info.file_size, reason)
    with tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES) as content:
        try:
            copy_member(archive, info, content)
            found, magic = _told(content, location, info.file_size)
        except ArchiveError:
            return TreeFile(location, info.file_size, "unreadable")
        except OSError as error:
            stop_if_machine(error)
            return TreeFile(location, info.file_size, "unreadable")
    found.seen = info.CRC
    return TreeFile(location, info.file_size, "nested_archive") if magic in ZIP_MAGIC else found


def _mark_twins(root: Path, groups: Groups) -> None:
    """Give instances that have a twin in their series the status ``duplicate`` (the very bytes of an earlier one; it
    then belongs to no series) or ``conflicting``."""
    compared = [file for files in groups.values() for file in _alike(files)]
    digests = _digests(root, sorted(compared, key=lambda file: file.location))
    for files in groups.values():
        by_uid: dict[str, dict[bytes | str, TreeFile]] = defaultdict(dict)
        for file in sorted(files, key=lambda f: f.location):
            digest = digests.get(file.location, file.location)
            if by_uid[file.instance].setdefault(digest, file) is not file:
                file.status, file.owner = "duplicate", None
        for uid, alone in by_uid.items():
            if uid and len(alone) > 1:
                for file in alone.values():
                    file.status = "conflicting"


def _alike(files: list[TreeFile]) -> Iterator[TreeFile]:
    """Files of a series that may be copies: the same SOPInstanceUID and size."""
    alike: dict[tuple[str, int], list[TreeFile]] = defaultdict(list)
    for file in files:
        alike[file.instance, file.bytes].append(file)
    for several in alike.values():
        if len(several) > 1:
            yield from several


def _digests(root: Path, files: list[TreeFile]) -> dict[str, bytes | str]:
    """SHA-256 of files that may be copies of each other; a file that cannot be read is no copy."""
    digests: dict[str, bytes | str] = {}
    if not files:
        return digests
    with Archives(root) as archives:
        for file in track(files, [f.bytes for f in files], f"comparing {len(files)} files", in_bytes=True):
            try:
                digest = hashlib.sha256()
                for block in archives.blocks(file.location):
                    digest.update(block)
                digests[file.location] = digest.digest()
            except (KeyError, UserError):
                continue
            except OSError as error:
                stop_if_machine(error)
    return digests


def _owners_by_folder(groups: Groups) -> dict[str, set[Owner]]:
    folders: dict[str, set[Owner]] = defaultdict(set)
    for owner, files in groups.items():
        for file in files:
            folders[folder_of(file.location)].add(owner)
    return folders


def _owner_of(file: TreeFile, groups: Groups, near: dict[str, set[Owner]]) -> Owner | None:
    """The series that a file belongs to; of a damaged one the one that it names or that is alone in its folder."""
    claims = file.status == "empty" and file.location.lower().endswith(SUFFIXES)
    if file.status not in DAMAGED and not claims:
        return file.owner
    if file.owner in groups:
        return file.owner
    owners = near.get(folder_of(file.location), set())
    if len(owners) != 1:
        return None
    (owner,) = owners
    kind = ending(file.location)
    named_so = kind in ("", *SUFFIXES) or any(ending(other.location) == kind for other in groups[owner])
    return owner if named_so or file.status not in OBSTACLES else None  # a log or a table in the zip, by its name


def _listed(owner: Owner, files: list[TreeFile], config: SourceConfig) -> Listed:
    folders = sorted({folder_of(file.location) for file in files})
    files = sorted(files, key=lambda file: file.location)
    seen = "\n".join(f"{file.bytes} {file.seen}" for file in files)
    return Listed(
        series=series_key(owner.identity),
        # Studies without a PatientID are nobody's: as one patient they would all fall into one split.
        patient=patient_key(owner.patient or f"no PatientID|{owner.study or owner.identity}"),
        study=study_key(owner.study),
        uid=uid_key(owner.uid),
        accession=accession_key(owner.accession),
        name=_name(folders[0]),
        location=";".join(folders),
        files=len(files),
        bytes=sum(file.bytes for file in files),
        collection=config.collection,
        licence=config.licence,
        doi=config.doi,
        members=tuple(file.location for file in files),
        folders=folders_up(folders),
        version=hashlib.sha256(seen.encode()).hexdigest()[:16],
    )


def _name(folder: str) -> str:
    """The zip's or the folder's own name: short enough for a table."""
    outer = folder.split(INSIDE)[0].removesuffix("!")
    return PurePosixPath(outer).name or "."
