"""What a file is, read from its first bytes. Names and declared types prove nothing."""

from __future__ import annotations

import zlib
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import nibabel as nib

from components.errors import UserError
from serving.limits import Limits

Kind = Literal["zip", "tar", "files", "nii", "nii.gz"]  # tar: gzipped or not; files: a folder of them

# Header extensions are read into memory whole; real ones are a few hundred kilobytes.
MAX_NIFTI_OFFSET = 16 * 1024**2
HEADER_BYTES = 544  # NIfTI-2, the longer of the two, with its extension flag
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
GZIP_MAGIC = b"\x1f\x8b"
TAR_MAGIC, TAR_MAGIC_AT = b"ustar", 257  # POSIX and GNU
HOW = "send one CT series as a zip, a tar or several files of a form, or a NIfTI volume (.nii, .nii.gz)"
UNREADABLE: tuple[type[Exception], ...] = (
    ValueError, KeyError, OverflowError, nib.spatialimages.HeaderDataError, nib.wrapstruct.WrapStructError,
)  # fmt: skip


class InputError(UserError):
    """What was sent cannot be embedded; ``status`` is the HTTP status that says so (RFC 9110)."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


def kind_of(path: Path) -> Kind:
    """The kind of a file by its content.

    Raises:
        InputError: 415 where it is neither an archive nor a NIfTI volume, saying what it looks like.
    """
    if path.is_dir():
        return "files"
    start = _start(path)
    if start.startswith(ZIP_MAGIC):
        return "zip"
    if start.startswith(GZIP_MAGIC):
        inflated = _inflated(start)
        if _is_nifti(inflated):
            return "nii.gz"
        if _is_tar(inflated):
            return "tar"
        raise InputError(f"gzip without a NIfTI volume or a tar in it: {HOW}", 415)
    if _is_nifti(start):
        return "nii"
    if _is_tar(start):
        return "tar"
    raise InputError(f"{_likeness(start)}: {HOW}", 415)


def check_nifti(path: Path, kind: Kind, limits: Limits) -> None:
    """Refuse a NIfTI by its header alone, before anything is inflated or allocated.

    Raises:
        InputError: 413 where it holds more voxels or bytes than ``limits`` allow, 422 where the header makes no sense.
    """
    start = _start(path)
    head = _inflated(start) if kind == "nii.gz" else start
    header_class: Any = nib.Nifti2Header if head[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Header
    try:
        header = header_class.from_fileobj(BytesIO(head), check=False)
        shape = tuple(int(n) for n in header.get_data_shape())
        item_bytes = int(header.get_data_dtype().itemsize)
        offset = float(header["vox_offset"])
    except UNREADABLE as error:
        raise InputError(f"NIfTI header not readable: {' '.join(str(error).split())[:120]}") from None
    voxels = 1
    for size in shape:
        if size < 1:
            raise InputError(f"NIfTI of shape {shape} is not allowed: every axis at least 1")
        voxels *= size
    if voxels > limits.voxels:
        raise InputError(f"NIfTI of shape {shape}: {voxels} voxels are too many: at most {limits.voxels}", 413)
    if not 0 <= offset <= MAX_NIFTI_OFFSET:
        raise InputError(f"NIfTI voxel offset {offset:g} is not allowed: 0 to {MAX_NIFTI_OFFSET} bytes")
    size = int(offset) + voxels * item_bytes
    if size > limits.unpacked_bytes:
        raise InputError(f"NIfTI of {size} bytes unpacked is too large: at most {limits.unpacked_bytes}", 413)


def _start(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(64 * 1024)


def _inflated(start: bytes) -> bytes:
    """The first bytes of a gzip stream, never more than a header's worth."""
    try:
        return zlib.decompressobj(wbits=31).decompress(start, HEADER_BYTES)
    except zlib.error:
        return b""


def _is_nifti(head: bytes) -> bool:
    """NIfTI-1 single file (magic at byte 344) or NIfTI-2 (magic at byte 4)."""
    first = head[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c") and head[344:348] == b"n+1\0"
    second = head[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") and head[4:8] == b"n+2\0"
    return first or second


def _is_tar(head: bytes) -> bool:
    return head[TAR_MAGIC_AT:].startswith(TAR_MAGIC)


def _likeness(start: bytes) -> str:
    if not start:
        return "empty file"
    if start[128:132] == b"DICM":
        return "a single DICOM file"
    text = start[:512].lstrip().lower()
    if text.startswith((b"http://", b"https://", b"ftp://", b"file://", b"s3://")):
        return "an address instead of a file (addresses are not fetched)"
    if text.startswith((b"{", b"[", b'"')):
        return "JSON instead of a file (addresses are not fetched)"
    return "neither a zip nor a NIfTI volume nor a tar"
