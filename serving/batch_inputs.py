"""The scans of a folder: DICOM series whose files lie anywhere in it, zips and NIfTI volumes. Found by content, not by
name; whatever is no scan is counted by reason."""

from __future__ import annotations

import hashlib
import os
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from components.ct.copies import copies
from components.ct.dataset import INFLATED_BYTES
from components.ct.headers import group_series, is_ct, read_instance
from components.ct.instance import Instance
from components.ct.keys import file_key, series_key
from components.errors import UserError
from components.files import sha256_file
from components.progress import track
from components.sources.dicom_tree import RESOURCE_FORK, SUFFIXES
from components.sources.tree import folder_of, names, stop_if_machine
from serving.limits import Limits
from serving.sniff import InputError, kind_of


@dataclass(frozen=True)
class ScanFiles:
    """One scan: a DICOM series, a zip or a NIfTI volume.

    Attributes:
        id: pseudonym: of the series, or of where the file lies.
        where: a file's path relative to the folder, or a series' folders there, by which it is found again.
        kind: ``dicom``, ``zip`` or ``nifti``.
        files: paths relative to the folder, sorted.
    """

    id: str
    where: str
    kind: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class FoundScans:
    """What a folder holds: its scans, by where they lie; and (where, reason) to the number of files that are none."""

    scans: tuple[ScanFiles, ...]
    left_out: dict[tuple[str, str], int]


def find_scans(folder: Path, limits: Limits) -> FoundScans:
    """Every scan below ``folder``.

    A damaged DICOM file counts to the series of its folder where that has only one, as in training: that series is not
    whole. Elsewhere it is a scan of its own, which will fail, so that it is told of.

    Raises:
        UserError: no such folder, or it holds no scan; this machine has too many open files.
    """
    if not folder.is_dir():
        raise UserError(f"folder {str(folder)!r}: {'no folder' if folder.exists() else 'no such folder'}")
    left_out: Counter[tuple[str, str]] = Counter()
    instances: list[Instance] = []
    alone: list[ScanFiles] = []
    found = list(names(folder))
    for name in track(found, [1] * len(found), f"looking at {len(found)} files"):
        status = name.status or _look(folder, name.location, limits, instances, alone)
        if status:
            left_out[folder_of(name.location) or ".", status] += 1
    scans = [*_series(folder, instances, left_out), *_once(folder, alone, left_out)]
    if not scans:
        counts: Counter[str] = Counter()
        for (_, reason), number in left_out.items():
            counts[reason] += number
        seen = ", ".join(f"{number} {reason}" for reason, number in sorted(counts.items())) or "no file"
        raise UserError(f"folder {str(folder)!r}: no CT scan in it ({seen}); allowed: DICOM series, zips of one, NIfTI")
    told: Counter[tuple[str, str]] = Counter()
    for (where, reason), number in left_out.items():
        told[shown(where), reason] += number
    return FoundScans(tuple(sorted(scans, key=lambda scan: (scan.where, scan.id))), dict(sorted(told.items())))


def _look(folder: Path, location: str, limits: Limits, instances: list[Instance], alone: list[ScanFiles]) -> str:
    """Add what a file is to ``instances`` or to the files that are scans ``alone``; or say why it is neither."""
    try:
        with (folder / location).open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's quote header values
            size = os.fstat(stream.fileno()).st_size
            allowed = min(limits.unpacked_bytes, INFLATED_BYTES)
            instance = read_instance(stream, location, size, inflated_bytes=allowed)
        if instance.status == "dicomdir":
            return "dicomdir"
        if instance.status != "not_dicom":
            instances.append(instance)
            return ""
        packed = kind_of(folder / location)
        kind: str = packed if packed in ("zip", "tar") else "nifti"
    except InputError:
        base = PurePosixPath(location).name
        if not base.lower().endswith(SUFFIXES) or base.startswith(RESOURCE_FORK):
            return "not_dicom"
        kind = "dicom"  # as its name claims: a file that was overwritten must not be lost
    except OSError as error:
        stop_if_machine(error)
        return "not_readable"
    where = shown(folder_of(location) or "." if kind == "dicom" else location)
    alone.append(ScanFiles(file_key(location), where, kind, (location,)))
    return ""


def _series(folder: Path, instances: list[Instance], left_out: Counter[tuple[str, str]]) -> list[ScanFiles]:
    twice = copies(instances, {instance.location: folder / instance.location for instance in instances})
    groups: dict[str, list[str]] = {}
    for identity, group in group_series(i for i in instances if i.location not in twice).items():
        for reason, members in _kinds(group).items():
            if reason:
                left_out.update((folder_of(i.location) or ".", reason) for i in members)
            else:
                groups[identity] = [i.location for i in members]
    left_out.update((folder_of(location) or ".", "duplicate") for location in twice)
    near: dict[str, set[str]] = defaultdict(set)
    for identity, locations in groups.items():
        for location in locations:
            near[folder_of(location)].add(identity)
    scans = []
    for damaged in (i for i in instances if i.status == "unreadable"):
        of_it = near[folder_of(damaged.location)]
        if len(of_it) == 1:
            groups[next(iter(of_it))].append(damaged.location)
        else:
            where = shown(folder_of(damaged.location) or ".")
            scans.append(ScanFiles(file_key(damaged.location), where, "dicom", (damaged.location,)))
    for identity, locations in groups.items():
        folders = sorted({folder_of(location) or "." for location in locations})
        files = tuple(sorted(locations))
        scans.append(ScanFiles(series_key(identity), shown(";".join(folders)), "dicom", files))
    return scans


def _kinds(group: Sequence[Instance]) -> dict[str, list[Instance]]:
    """The files of one series by why they are left out; those of a scan by ''. A series of CT and other images, or of
    slices and scouts, is a scan: reading it says what is wrong with it."""
    images = [i for i in group if i.status == "image"]
    found = {"no_image": [i for i in group if i.status != "image"]}
    if not any(is_ct(i.tags) for i in images):
        return found | {"not_ct": images}
    if all("LOCALIZER" in i.tags.get("ImageType", ()) for i in images):
        return found | {"localizer": images}
    return found | {"": images}


def _once(folder: Path, alone: Iterable[ScanFiles], left_out: Counter[tuple[str, str]]) -> list[ScanFiles]:
    """Those that are not the very bytes of an earlier one."""
    by_size: dict[int, list[ScanFiles]] = defaultdict(list)
    for scan in sorted(alone, key=lambda scan: scan.files):
        by_size[(folder / scan.files[0]).stat().st_size].append(scan)
    kept = []
    for alike in by_size.values():
        seen: set[str] = set()
        for scan in alike:
            digest = sha256_file(folder / scan.files[0]) if len(alike) > 1 else ""
            if digest in seen:
                left_out[scan.where, "duplicate"] += 1
            else:
                kept.append(scan)
            seen.add(digest)
    return kept


def shown(location: str) -> str:
    """A location as tables and pages have it: the name of a file may be any bytes."""
    return location.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def input_of(folder: Path, scan: ScanFiles) -> dict[str, Any]:
    """What a scan was made from: ``files``, ``bytes`` and ``sha256``; of a series that of its files' sorted hashes, so
    that neither names nor places count. Raises OSError where a file is not to be read."""
    paths = [folder / location for location in scan.files]
    hashes = sorted(sha256_file(path) for path in paths)
    whole = hashes[0] if scan.kind != "dicom" else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    return {"sha256": whole, "files": len(paths), "bytes": sum(path.stat().st_size for path in paths)}


def as_upload(folder: Path, scan: ScanFiles, scratch: Path) -> Path:
    """The one file that a client would send to the service: a series is packed as a zip, in ``scratch``."""
    if scan.kind != "dicom":
        return (folder / scan.files[0]).resolve()
    path = scratch / "upload"
    folders = {name: number for number, name in enumerate(sorted({folder_of(file) for file in scan.files}))}
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", strict_timestamps=False) as archive:
        warnings.simplefilter("ignore")  # two names may look alike once they are UTF-8; the reader tells them apart
        for location in scan.files:
            # One folder stays one: a series without a UID is known by it.
            archive.write(
                folder / location, f"{folders[folder_of(location)]:04d}/{shown(PurePosixPath(location).name)}"
            )
    return path
