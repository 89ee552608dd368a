"""Masks of a labelled set: NIfTI label maps, DICOM SEG and RTSTRUCT in a folder of this machine.

A mask names its scan by its path, held against a pattern; or, as SEG and RTSTRUCT do, by the series that it was drawn
on. The folder is pinned by a digest of all bytes of its masks: unlike a scan, a mask is edited in place.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from components.ct.dataset import open_dataset
from components.ct.labels.same_scan import RTSTRUCT, SEG, referenced_series
from components.errors import UserError
from components.files import sha256_file
from components.settings import StageConfig
from components.sources.config import Name, path_pattern
from components.sources.tree import READERS, names, stop_if_machine

ROOT = "masks"  # the root of the folder, of the place of the set's scans
SCAN_NAMES = ("patient", "study", "series", "accession", "file")
STRUCTURE = "structure"
NAMED = {**dict.fromkeys((*SCAN_NAMES, STRUCTURE), "[^/]+"), "file": ".+"}
SUFFIXES = (".nii.gz", ".nii", ".dcm")
HEADER = ("SOPClassUID", "ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence")


class MasksConfig(StageConfig):
    """Block ``masks`` of a labelled set.

    Attributes:
        digest: of the masks in a folder, see :func:`digest_of`.
        match: how a mask's path below the folder, without .nii, .nii.gz or .dcm, names its scan: a pattern with one of
            ``{patient}``, ``{study}``, ``{series}``, ``{accession}`` and ``{file}`` (the scan's file without its
            suffix, or its folder), such as 'labelsTr/{patient}', or a regular expression with such a group. Where a
            file holds one structure, ``{structure}`` names it, as in '{patient}/segmentations/{structure}'; all of its
            values but 0 are that structure then. Null: of SEG and RTSTRUCT, by the series that they refer to.
        analysis_results: instead of a folder, of scans of the Imaging Data Commons: whose SEG and RTSTRUCT are taken,
            as its index names them; ``own`` for those that came with a collection itself.
        names: value of a label map, or name of a structure as file or object have it, to the name that it gets here.
    """

    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    match: Name | None = None
    analysis_results: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    names: Mapping[int | str, Name] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_place(self) -> MasksConfig:
        of_folder, of_index = self.digest is not None, self.analysis_results is not None
        if of_folder == of_index or (of_index and self.match is not None):
            raise ValueError("{digest: ..., match: ...} of a folder, or {analysis_results: [...]} of scans of the idc")
        return self

    @field_validator("match")
    @classmethod
    def _names_a_scan(cls, text: str | None) -> str | None:
        return names_a_scan(text)

    @field_validator("names")
    @classmethod
    def _are_above_background(cls, found: Mapping[int | str, str]) -> Mapping[int | str, str]:
        if any(isinstance(value, int) and value < 1 for value in found):
            raise ValueError("values of 1 and above; 0 is the background")
        return found


def names_a_scan(match: str | None) -> str | None:
    """``match`` itself. Raises ValueError where it is no pattern that names a scan in one way."""
    if match is not None:
        groups = path_pattern(match, NAMED).groupindex
        if sum(name in groups for name in SCAN_NAMES) != 1:
            known = ", ".join(f"{{{name}}}" for name in SCAN_NAMES)
            raise ValueError(f"a pattern with one of {known}, or null")
    return match


@dataclass(frozen=True)
class Mask:
    """A file of labels.

    Attributes:
        location: relative to the folder; of the Imaging Data Commons, bucket and UUID of a series of objects.
        sha256: of its bytes; '' where the location tells for ever what they are.
        kind: what ``named`` is, one of :data:`SCAN_NAMES`.
        named: the scan that it is of, or the scans that it refers to; none where it says nothing.
        structure: which the path says that it holds; '' where the file itself names its structures.
        files, bytes: of a series of objects; 0 of a file.
    """

    location: str
    sha256: str
    kind: str
    named: tuple[str, ...]
    structure: str
    files: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Found:
    """What a folder of masks holds.

    Attributes:
        masks: in the order of their locations.
        others: why a file is none to how many: ``other`` (neither SEG nor RTSTRUCT, or not as the pattern wants it), or
            as in :class:`components.sources.tree.Name`.
    """

    masks: list[Mask]
    others: dict[str, int]


def find_masks(root: Path, match: str | None) -> Found:
    """Every mask below ``root``. ``match``: see :class:`MasksConfig`.

    Raises:
        UserError: there is none.
    """
    listed = sorted((name.location, name.status) for name in names(root))
    statuses = Counter(status for _, status in listed if status)
    files = [location for location, status in listed if not status]
    found = _by_reference(root, files) if match is None else _by_path(files, match)
    statuses["other"] = len(files) - len(found)
    others = {status: count for status, count in sorted(statuses.items()) if count}
    if not found:
        wanted = "SEG or RTSTRUCT object" if match is None else f"file that {match!r} fits"
        seen = ", ".join(f"{status} {count}" for status, count in others.items()) or "none"
        hint = "; masks.match says how the path of a NIfTI names its scan" if match is None else ""
        raise UserError(f"masks: no {wanted} below their folder; its files: {seen}{hint}")
    with ThreadPoolExecutor(READERS) as readers:
        digests = readers.map(lambda of: sha256_file(root / of.location), found)
        masks = [Mask(**{**vars(of), "sha256": sha256}) for of, sha256 in zip(found, digests, strict=True)]
    return Found(masks, others)


def digest_of(masks: Iterable[Mask]) -> str:
    """Digest of locations and bytes of masks. Files beside them do not count."""
    digest = hashlib.sha256()
    for mask in masks:
        digest.update(f"{mask.location}\0{mask.sha256}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _by_path(files: Iterable[str], match: str) -> list[Mask]:
    pattern, found = path_pattern(match, NAMED), []
    for location in files:
        suffix = next((suffix for suffix in SUFFIXES if location.endswith(suffix)), "")
        fits = pattern.fullmatch(location.removesuffix(suffix)) if suffix else None
        if fits is None:
            continue
        groups = fits.groupdict()
        kind = next(name for name in SCAN_NAMES if name in groups)
        found.append(Mask(location, "", kind, (groups[kind],), groups.get(STRUCTURE) or ""))
    return found


def _by_reference(root: Path, files: Iterable[str]) -> list[Mask]:
    found = []
    for location in files:
        series = referred_by(root / location)
        if series is not None:
            found.append(Mask(location, "", "series", series, ""))
    return found


def referred_by(path: Path) -> tuple[str, ...] | None:
    """UIDs of the series that a SEG or RTSTRUCT refers to; None of what is neither."""
    if path.name.endswith((".nii", ".nii.gz")):
        return None
    try:
        with path.open("rb") as stream:
            header = open_dataset(stream, path.stat().st_size, HEADER).dataset
        if str(header.get("SOPClassUID", "")) not in (*SEG, RTSTRUCT):
            return None
        return tuple(dict.fromkeys(referenced_series(header)))
    except Exception as error:  # pydicom raises many kinds on what is no DICOM
        if isinstance(error, OSError):
            stop_if_machine(error)
        return None
