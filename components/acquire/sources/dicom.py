"""A directory tree of DICOM files, in which a zip counts as a folder."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from components.acquire.archive import LOCAL_LIMITS, ArchiveError, copy_member, members, open_zip
from components.acquire.config import TransferConfig
from components.acquire.headers import Instance, group_series, read_instance, read_instance_bytes
from components.acquire.sources import Listed, Listing
from components.cohort.config import CohortConfig
from components.cohort.keys import patient_key, series_key
from components.cohort.roots import check_pinned, root_of
from components.params import UserError

INSIDE = "!/"  # between a zip's path and its member's name


def walk(root: Path) -> Iterator[Instance]:
    """Every file below ``root``, zips opened, sorted by path. A damaged or over-limit zip is one unreadable file."""
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        location = path.relative_to(root).as_posix()
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            yield from _walk_zip(path, location, size)
            continue
        with path.open("rb") as stream:
            if stream.read(4) == b"PK\x03\x04":  # begins as a zip, but has no directory: cut short
                yield Instance(location, size, "unreadable")
                continue
            stream.seek(0)
            yield read_instance(stream, location, size)


def _walk_zip(path: Path, location: str, size: int) -> Iterator[Instance]:
    try:
        with open_zip(path) as archive:
            for info in members(archive, LOCAL_LIMITS):
                try:
                    content = archive.read(info)
                except Exception:  # zlib, CRC, truncation: zipfile raises many kinds; this member is unreadable
                    yield Instance(f"{location}{INSIDE}{info.filename}", info.file_size, "unreadable")
                    continue
                yield read_instance_bytes(content, f"{location}{INSIDE}{info.filename}")
    except ArchiveError:
        yield Instance(location, size, "unreadable")


def list_tree(root: Path, config: CohortConfig) -> Listing:
    """Series and files of a tree. An unreadable file counts to the series of its folder where that has only one,
    so that the damage is judged with the series, not lost."""
    instances = list(walk(root))
    groups = group_series(instances)
    folders: dict[str, set[str]] = {}
    for identity, group in groups.items():
        for instance in group:
            folders.setdefault(_folder(instance.location), set()).add(identity)
    orphans: dict[str, list[Instance]] = {}
    for instance in instances:
        owners = folders.get(_folder(instance.location), set())
        if instance.status == "unreadable" and len(owners) == 1:
            orphans.setdefault(next(iter(owners)), []).append(instance)
    listed, owner = [], {}
    for identity, group in groups.items():
        files = sorted(group + orphans.get(identity, []), key=lambda i: i.location)
        series = _listed(identity, files, config)
        listed.append(series)
        owner.update(dict.fromkeys(series.members, series.series))
    rows = [
        {"location": i.location, "bytes": i.bytes, "status": i.status, "series": owner.get(i.location, "")}
        for i in instances
    ]
    return Listing(sorted(listed, key=lambda s: s.series), rows)


def _folder(location: str) -> str:
    return location.rpartition("/")[0]


def _listed(identity: str, files: list[Instance], config: CohortConfig) -> Listed:
    patient_id = next((i.tags["PatientID"] for i in files if i.tags.get("PatientID")), "")
    folders = sorted({_folder(i.location) for i in files})
    location = folders[0] if len(folders) == 1 else ";".join(folders)
    return Listed(
        series=series_key(identity),
        # Series without a PatientID are nobody's: as one patient they would all fall into one split.
        patient=patient_key(patient_id or f"no PatientID|{identity}"),
        name=_name(folders[0]),
        location=location,
        files=len(files),
        bytes=sum(i.bytes for i in files),
        collection=config.collection,
        licence=config.licence,
        doi=config.doi,
        members=tuple(i.location for i in files),
    )


def _name(folder: str) -> str:
    """The zip's or the folder's own name: short enough for a table."""
    outer = folder.split(INSIDE)[0].removesuffix("!")
    return PurePosixPath(outer).name or "."


class DicomSource:
    """A tree of DICOM files under the root ``dicom``."""

    def __init__(self, config: CohortConfig, line: str) -> None:
        self._config, self._key = config, f"{line}.cohort.source_digest"
        self.version = config.source_digest or ""

    def list_series(self, held_out: frozenset[str]) -> Listing:
        listing = list_tree(check_pinned("dicom", self._config.source_digest, self._key), self._config)
        if not listing.series:
            raise UserError("root 'dicom': no DICOM file below it; allowed: folders and zips of DICOM files")
        return listing

    def check(self) -> None:
        root_of("dicom")

    def fetch(
        self, row: dict[str, Any], members: list[str], folder: Path, transfer: TransferConfig
    ) -> pd.DataFrame | None:
        """Copy the members under numbered names: names from a zip are never used as paths."""
        root = root_of("dicom")
        archives: dict[str, zipfile.ZipFile] = {}
        try:
            for index, member in enumerate(members):
                target = folder / f"{index:06d}.dcm"
                outer, inside, inner = member.partition(INSIDE)
                if not inside:
                    target.write_bytes((root / outer).read_bytes())
                    continue
                if outer not in archives:
                    archives[outer] = open_zip(root / outer)
                archive = archives[outer]
                try:
                    with target.open("wb") as stream:
                        copy_member(archive, archive.getinfo(inner), stream)
                except ArchiveError:
                    target.write_bytes(b"")  # kept as an unreadable file of the series: screening names it
        finally:
            for archive in archives.values():
                archive.close()
        return None
