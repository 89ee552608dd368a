"""Bodies that no honest client sends, each made from a number alone: odd headers, codestreams, zips, NIfTI, forms."""

from __future__ import annotations

import gzip
import io
import random
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from client import ct_slice
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

SLICES = 5
SYNTAXES = (ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless)
NUMBERS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
TEXTS = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept",
    "NumberOfFrames", "SliceThickness", "KVP", "InstanceNumber", "ImageType", "Modality", "SeriesInstanceUID",
    "SOPClassUID", "FrameOfReferenceUID", "GantryDetectorTilt", "ConvolutionKernel", "StudyDate",
)  # fmt: skip
ODD_NUMBERS = (0, 1, 2, 7, 8, 12, 15, 16, 17, 31, 32, 64, 127, 128, 129, 255, 256, 4096, 4097, 65535)
ODD_TEXTS = (
    b"", b"0", b"-1", b"1e308", b"-1e400", b"nan", b"inf", b"1\\2", b"1\\2\\3", b"0\\0\\0\\0\\0\\0", b"1,5", b"text",
    b"\\\\", b"9" * 60, b"1\\nan", b"\xff\xfe", b" ", b"1\\" * 200, b"-0", b"1e-320",
)  # fmt: skip
Body = tuple[bytes, dict[str, str]]


def body(number: int) -> Body:
    """Content and headers of request ``number``; equal numbers give equal bodies."""
    rng = random.Random(number)
    makers: tuple[Callable[[random.Random], Body], ...] = (
        _odd_values, _odd_values, _flipped_header, _flipped_pixels, _flipped_pixels, _cut_zip, _nifti, _nifti, _form,
    )  # fmt: skip
    return rng.choice(makers)(rng)


@cache
def slices(syntax: UID) -> tuple[bytes, ...]:
    """A short series in a transfer syntax."""
    files = []
    for index in range(SLICES):
        dataset = pydicom.dcmread(io.BytesIO(ct_slice(index, "1.2.3.4", BitsStored=16)))
        if syntax.is_encapsulated:
            dataset.compress(syntax, generate_instance_uid=False)
        dataset.file_meta.TransferSyntaxUID = syntax
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        files.append(buffer.getvalue())
    return tuple(files)


def packed(members: dict[str, bytes]) -> bytes:
    """A zip without a clock in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, 1)
    return buffer.getvalue()


def with_values(content: bytes, **values: Any) -> bytes:
    """A file under another header: numbers of 16 bits, or bytes as they shall lie in it, whatever they mean."""
    dataset = pydicom.dcmread(io.BytesIO(content))
    for keyword, value in values.items():
        if isinstance(value, bytes):
            tag, padded = pydicom.tag.Tag(keyword), value + b" " * (len(value) % 2)
            kind = pydicom.datadict.dictionary_VR(tag)
            dataset[tag] = pydicom.dataelem.RawDataElement(tag, kind, len(padded), padded, 0, False, True)
        else:
            setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def deflate(content: bytes) -> bytes:
    """An explicit little endian file as a deflated one (PS3.5 A.5)."""
    meta = pydicom.dcmread(io.BytesIO(content)).file_meta
    start = 144 + meta.FileMetaInformationGroupLength
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head = io.BytesIO()
    pydicom.filewriter.write_file_meta_info(head, meta, enforce_standard=True)
    packer = zlib.compressobj(wbits=-15)
    return bytes(128) + b"DICM" + head.getvalue() + packer.compress(content[start:]) + packer.flush()


def _series(rng: random.Random, change: Callable[[bytes], bytes]) -> Body:
    files = list(slices(rng.choice(SYNTAXES)))
    for index in rng.sample(range(SLICES), rng.choice((1, SLICES))):
        files[index] = change(files[index])
    return packed({f"{n:03d}": content for n, content in enumerate(files)}), {}


def _odd_values(rng: random.Random) -> Body:
    values: dict[str, Any] = {}
    for _ in range(rng.choice((1, 1, 2, 4))):
        if rng.random() < 0.5:
            values[rng.choice(NUMBERS)] = rng.choice(ODD_NUMBERS)
        else:
            values[rng.choice(TEXTS)] = rng.choice(ODD_TEXTS)
    return _series(rng, lambda content: with_values(content, **values))


def _flipped(rng: random.Random, content: bytes, first: int, last: int) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 8, 64))):
        changed[rng.randrange(first, max(first + 1, min(last, len(changed))))] = rng.randrange(256)
    return bytes(changed[: rng.randrange(first, len(changed))]) if rng.random() < 0.1 else bytes(changed)


def _flipped_header(rng: random.Random) -> Body:
    return _series(rng, lambda content: _flipped(rng, content, 132, 1200))


def _flipped_pixels(rng: random.Random) -> Body:
    def change(content: bytes) -> bytes:
        at = content.rfind(b"\xe0\x7f\x10\x00")
        reach = rng.choice((120, len(content)))  # the codestream's header, or anything
        return _flipped(rng, content, max(at, 132), max(at, 132) + reach)

    return _series(rng, change)


def _cut_zip(rng: random.Random) -> Body:
    whole, headers = _series(rng, lambda content: content)
    if rng.random() < 0.3:
        return whole[: rng.randrange(4, len(whole))], headers
    directory = whole.rfind(b"PK\x01\x02", 0, len(whole) - 100)
    first = rng.choice((4, max(4, directory), max(4, len(whole) - 60)))
    return _flipped(rng, whole, first, len(whole)), headers


def _nifti(rng: random.Random) -> Body:
    hu = np.full((24, 20, 16), -1000, dtype=rng.choice(("<i2", "<f4", "<f8", "<i4")))
    hu[6:18, 5:15] = 40
    kind: Any = rng.choice((nib.Nifti1Image, nib.Nifti2Image))
    content = kind(hu, np.diag([3.0, 3.0, 3.0, 1.0])).to_bytes()
    changed = _flipped(rng, content, 0, rng.choice((60, 352, 540)))
    if rng.random() < 0.5:
        changed = gzip.compress(changed, mtime=0)
        if rng.random() < 0.3:
            changed = _flipped(rng, changed, 2, len(changed))
    return changed, {}


def _form(rng: random.Random) -> Body:
    boundary = b"x" * rng.choice((1, 20, 69))
    part = b"--" + boundary + b'\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    content = part + packed({"a": slices(ExplicitVRLittleEndian)[0]}) + b"\r\n--" + boundary + b"--\r\n"
    changed = _flipped(rng, content, 0, rng.choice((len(part) + 8, len(content))))
    return changed, {"content-type": "multipart/form-data; boundary=" + boundary.decode()}
