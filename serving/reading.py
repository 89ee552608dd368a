"""One uploaded file to one CT volume, with an account of what was in it.

The very readers of the training data do the work; what is added here are the limits of a service.
"""

from __future__ import annotations

import math
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
import pydicom

from components.ct.archive import ArchiveError, ArchiveLimits, unpack
from components.ct.copies import copies
from components.ct.dataset import INFLATED_BYTES
from components.ct.dicom import read_series
from components.ct.headers import group_series, is_ct, measure_series, read_instance, series_identity
from components.ct.instance import Instance
from components.ct.keys import patient_key, series_key
from components.ct.nifti import measure_nifti, read_nifti
from components.ct.store import FloatArray, Volume
from components.ct.tar import unpack_tar
from components.errors import UserError
from components.files import NO_ROOM
from serving.limits import Limits
from serving.sniff import ZIP_MAGIC, InputError, Kind, check_nifti, kind_of

ARCHIVE_RATIO = 200.0  # slices of air deflate a few dozen to one, a bomb a thousand to one
DIRECTORY_BYTES_PER_FILE = 512
VOXEL_MM = (0.01, 100.0)
MAX_MATRIX = 4096  # rows or columns of one slice
MEMBER_NUMBER = re.compile(r"^\d{6}-")  # unpacked members are numbered; senders know them by their own names


@dataclass(frozen=True)
class Reading:
    """A volume as it was sent.

    Attributes:
        volume: in the sender's grid.
        kind: ``dicom`` or ``nifti``.
        series: pseudonym of the series, empty for NIfTI.
        instances: slices read.
        ignored: reason to number of files not used.
        measurements: of the headers, as acquisition takes them.
        images: headers of the slices as they were sent, without pixel data; where they were asked for, and of DICOM.
        patient: pseudonym; empty where none is named.
    """

    volume: Volume
    kind: str
    series: str
    instances: int
    ignored: dict[str, int]
    measurements: dict[str, Any]
    images: tuple[pydicom.Dataset, ...] = ()
    patient: str = ""


def read_upload(
    path: Path, kind: Kind, limits: Limits, only_largest_stack: bool = False, with_images: bool = False
) -> Reading:
    """Read a file whose kind is known from its content; ``with_images``: with the headers of its images.

    Raises:
        InputError: not exactly one CT series, damaged, or beyond ``limits``; the message names no path and no patient.
        UserError: from the readers: the series does not form a volume.
    """
    with tempfile.TemporaryDirectory(prefix="ctfoundry-") as scratch:
        if kind in ("zip", "tar", "files"):
            if kind == "zip":
                _check_directory(path, limits)
            members = _members(path, kind, Path(scratch) / "members", limits)
            return _read_members(members, kind, limits, only_largest_stack, with_images)
        check_nifti(path, kind, limits)
        # nibabel goes by the name, so the file gets the one its content deserves.
        named = Path(scratch) / f"volume.{kind}"
        named.symlink_to(path.resolve())
        try:
            volume = read_nifti(named)
        except zlib.error as error:
            raise InputError(f"NIfTI: the compressed data are damaged: {error}; send the file again") from None
        except UserError as error:
            said = str(error).replace(str(named), named.name)  # a name that was given here, and nobody sent
            raise InputError(f"NIfTI: {said.removeprefix(f'{named.name}: ')}") from None
        return Reading(volume, "nifti", "", 1, {}, {**measure_series([]), **measure_nifti(named)})


def check_size(shape: Sequence[int], affine: FloatArray, spacing_mm: Sequence[float], max_voxels: int) -> None:
    """Refuse a volume that would be too large on the model's grid: a header may claim voxels of any size.

    Raises:
        InputError: 422 for a voxel size that no scanner has, 413 for too many voxels, with the extent.
    """
    for mm in np.linalg.norm(affine[:3, :3], axis=0):
        if not VOXEL_MM[0] <= mm <= VOXEL_MM[1]:
            raise InputError(f"voxel size of {mm:g} mm is not allowed: {VOXEL_MM[0]:g} to {VOXEL_MM[1]:g} mm")
    extent = [float(n * mm) for n, mm in zip(shape, np.linalg.norm(affine[:3, :3], axis=0), strict=True)]
    voxels = math.prod(extent) / math.prod(spacing_mm)
    if voxels > max_voxels:
        size = " x ".join(f"{mm:.0f}" for mm in extent)
        raise InputError(f"volume of {size} mm: {voxels:.3g} voxels on the model's grid, at most {max_voxels}", 413)


def _members(path: Path, kind: Kind, folder: Path, limits: Limits) -> Iterator[tuple[Path, str]]:
    """The files of an archive, unpacked into ``folder``, or of a folder, and what their sender calls them."""
    bounds = ArchiveLimits(members=limits.files, unpacked_bytes=limits.unpacked_bytes, ratio=ARCHIVE_RATIO)
    if kind == "files":
        _require_parts(path)
        return ((file, MEMBER_NUMBER.sub("", file.name)) for file in sorted(path.iterdir()))
    return (unpack if kind == "zip" else unpack_tar)(path, folder, bounds)


def _require_parts(folder: Path) -> None:
    """Refuse files that are each a scan of its own: which of them is meant?"""
    kinds = []
    for file in sorted(folder.iterdir()):
        try:
            kinds.append(kind_of(file))
        except InputError:  # such as a DICOM file, or what lies beside
            return
    what = ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).items())
    raise InputError(f"files: {what}, each a scan of its own: send one of them, or the DICOM files of one series")


def _read_members(
    members: Iterator[tuple[Path, str]], kind: Kind, limits: Limits, only_largest_stack: bool, with_images: bool
) -> Reading:
    instances, files, ignored = _headers(members, kind, limits)
    damaged = min((i for i in instances if i.status == "unreadable"), key=lambda i: i.location, default=None)
    if damaged is not None:
        name, why = _short(PurePosixPath(damaged.location).name), f" ({damaged.detail})" if damaged.detail else ""
        raise InputError(f"{name}: damaged or cut-short DICOM file{why}; send the series again")
    with header_values():
        left_out = copies(instances, files)
        if left_out:
            ignored["duplicate"] += len(left_out)
        kept = [i for i in instances if i.location not in left_out]
        series = _only_series(kept, ignored, only_largest_stack, kind)
    for instance in series:
        if instance.truncated:
            name = PurePosixPath(instance.location).name
            raise InputError(f"{_short(name)}: the file ends before its pixel data do; send the series again")
    with header_values():
        _check_voxels(series, limits)
        key, named = series_key(series_identity(series[0])), series[0].tags.get("PatientID", "").strip()
        measured = measure_series(series, only_largest_stack)
    paths = [files[i.location] for i in series]
    volume = _decode(paths, only_largest_stack)
    with header_values():
        images = tuple(pydicom.dcmread(file, stop_before_pixels=True) for file in paths) if with_images else ()
    if measured["left_out"]:
        ignored["outside_the_largest_stack"] += measured["left_out"]
    patient, counted = patient_key(named) if named else "", dict(sorted(ignored.items()))
    return Reading(volume, "dicom", key, measured["instances"], counted, measured, images, patient)


@contextmanager
def header_values() -> Iterator[None]:
    """The boundary of a series: a header value that no code foresaw is its sender's, not the service's."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise
        what = f"series: a header value is not what it must be ({type(error).__name__})"
        raise InputError(f"{what}; see DICOM PS3.3 C.8.2.1") from None


def _decode(paths: list[Path], only_largest_stack: bool) -> Volume:
    try:
        return read_series(paths, only_largest_stack)
    except UserError as error:
        raise InputError(MEMBER_NUMBER.sub("", str(error))) from None
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise
        raise InputError(f"series: it cannot be read ({type(error).__name__}); send it again") from None


def _headers(
    members: Iterator[tuple[Path, str]], kind: Kind, limits: Limits
) -> tuple[list[Instance], dict[str, Path], Counter[str]]:
    """Read every member's header: instances, where each lies, and files ignored by reason."""
    instances: list[Instance] = []
    files: dict[str, Path] = {}
    ignored: Counter[str] = Counter()
    left = limits.unpacked_bytes  # for what deflated files inflate to, all together
    try:
        for file, name in members:
            location = f"{len(files):06d}/{name}" if name in files else name  # two members may share a name
            files[location] = file
            with file.open("rb") as stream:
                start = stream.read(4)
                stream.seek(0)
                if start.startswith(ZIP_MAGIC):
                    ignored["archive_within_archive"] += 1
                    continue
                allowed = min(left, INFLATED_BYTES)
                instance = read_instance(stream, location, file.stat().st_size, inflated_bytes=allowed)
            if instance.too_large:
                raise InputError(f"{_short(PurePosixPath(name).name)}: {instance.detail}", 413)
            left -= instance.unpacked
            if instance.status in ("not_dicom", "dicomdir"):
                ignored[instance.status] += 1
            else:
                instances.append(instance)
    except ArchiveError as error:
        raise InputError(str(error), 413 if "not allowed: at most" in str(error) else 422) from None
    except OSError as error:  # a member's name that no file system takes
        if error.errno in NO_ROOM:
            raise
        raise InputError(f"{kind}: a member cannot be unpacked: {error.strerror}") from None
    return instances, files, ignored


def _only_series(
    instances: list[Instance], ignored: Counter[str], only_largest_stack: bool, kind: Kind
) -> list[Instance]:
    """The one CT series among ``instances``; the files of others are added to ``ignored`` by reason."""
    found: list[list[Instance]] = []
    mixed: list[tuple[int, int]] = []
    for group in group_series(instances).values():
        measured = measure_series(group, only_largest_stack)
        images = [i for i in group if i.status == "image"]
        if len(images) < len(group):
            ignored["no_image"] += len(group) - len(images)
        if not images:
            continue
        if not measured["is_ct_image"]:
            others = sum(not is_ct(image.tags) for image in images)
            if others < len(images):
                mixed.append((others, len(images)))
            ignored["not_ct"] += len(images)
        elif measured["is_localizer"]:
            ignored["localizer"] += len(images)
        else:
            found.append(images)
    if not found and mixed:
        others, total = mixed[0]
        raise InputError(f"{kind}: {others} of the {total} images of its CT series are no CT, such as a dose page; "
                         "send the CT images alone")  # fmt: skip
    if not found:
        seen = ", ".join(f"{count} {reason}" for reason, count in sorted(ignored.items()))
        told = "archives within it are not opened; " if ignored["archive_within_archive"] else ""
        raise InputError(f"{kind}: no CT series in it ({seen or 'no file'}); {told}send one CT series")
    if len(found) > 1:
        sizes = ", ".join(str(n) for n in sorted((len(group) for group in found), reverse=True)[:8])
        raise InputError(f"{kind}: {len(found)} CT series in it (of {sizes} images); send one at a time")
    return found[0]


def _check_voxels(series: list[Instance], limits: Limits) -> None:
    total = 0
    for instance in series:
        name = _short(PurePosixPath(instance.location).name)
        rows, columns = (instance.whole(tag) or 0 for tag in ("Rows", "Columns"))
        if not (0 < rows <= MAX_MATRIX and 0 < columns <= MAX_MATRIX):
            raise InputError(f"{name}: {rows} x {columns} pixels are not allowed: 1 to {MAX_MATRIX} each")
        frames = instance.tags.get("NumberOfFrames", 1)
        if frames not in (1, len(instance.frames)):
            raise InputError(f"{name}: {str(frames)[:12]} frames in one file that is no enhanced CT are not supported")
        total += rows * columns * max(1, len(instance.frames))
    if total > limits.voxels:
        raise InputError(f"series of {total} voxels is too large: at most {limits.voxels}", 413)


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"...{name[-57:]}"


def _check_directory(path: Path, limits: Limits) -> None:
    """Refuse a zip whose directory alone would fill the memory, before it is read (APPNOTE 4.3.14, 4.3.16)."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(max(0, size - 65_536 - 98))
        tail = stream.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        raise InputError("zip: damaged or cut short: it has no directory at its end; send it again")
    directory = int.from_bytes(tail[end + 12 : end + 16], "little")
    if directory == 0xFFFFFFFF:
        large = tail.rfind(b"PK\x06\x06", 0, end)
        if large < 0:
            raise InputError("zip: damaged: its directory cannot be found; send it again")
        directory = int.from_bytes(tail[large + 40 : large + 48], "little")
    allowed = max(65_536, limits.files * DIRECTORY_BYTES_PER_FILE)
    if directory > allowed:
        raise InputError(f"zip: a directory of {directory} bytes is too large: at most {limits.files} files", 413)


def axes_of(affine: FloatArray) -> str:
    """Orientation of an array as three letters, such as SPL."""
    orientations: Any = nib.orientations
    return "".join(str(code) for code in orientations.aff2axcodes(affine))
