"""Sound uploads of every kind and route, each changed in a way that a number alone decides: bits flipped, ends cut off,
lengths that lie, members doubled, removed and exchanged, fields of headers and of forms exchanged."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import nibabel as nib
import numpy as np
from bodies import SYNTAXES, packed, slices
from pydicom.uid import ExplicitVRLittleEndian

AT = "point_mm=0,0,6"
# Every route that takes a scan, with what makes it answer, and with some that it refuses.
QUERIES = (
    "embed", "classify", f"classify?{AT}", "classify?form=dicom", "segment", "segment?form=nifti", "segment?form=dicom",
    "saliency?head=findings/ich&blocks=2", f"saliency?head=organs&{AT}&way=gradients", "retrieve?nearest=2", "preview",
    f"saliency?head=organs&{AT}&blocks=2&form=nifti", f"locate?{AT}", "classify?point_mm=1,2", "locate",
)  # fmt: skip
BOUNDARY = b"a-boundary"
Members = list[tuple[str, bytes]]


@dataclass(frozen=True)
class Upload:
    """A request: route and query, body, and headers; ``what`` was done to it."""

    query: str
    content: bytes
    headers: dict[str, str]
    what: str


@cache
def volume(kind: str) -> bytes:
    """A small NIfTI volume."""
    hu = np.full((28, 28, 16), -1000, dtype=np.int16)
    hu[1:27, 1:27] = 40
    made = nib.Nifti2Image if kind == "nii2" else nib.Nifti1Image
    return bytes(made(hu, np.diag([3.0, 3.0, 3.0, 1.0])).to_bytes())  # type: ignore[no-untyped-call]


def tarred(members: Members, compress: bool) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), 1, mtime=0) if compress else buffer.getvalue()


def form(parts: Members) -> bytes:
    """A form with a file in each part, by field."""
    lines = b""
    for number, (field, content) in enumerate(parts):
        said = f'Content-Disposition: form-data; name="{field}"; filename="f{number}.dcm"\r\n\r\n'.encode()
        lines += b"--" + BOUNDARY + b"\r\n" + said + content + b"\r\n"
    return lines + b"--" + BOUNDARY + b"--\r\n"


def upload(number: int) -> Upload:
    """Request ``number``; equal numbers give equal requests."""
    rng = random.Random(number)
    query, said = rng.choice(QUERIES), []
    members: Members = [(f"{n:03d}", content) for n, content in enumerate(slices(rng.choice(SYNTAXES)))]
    for change in rng.sample(MEMBERS, rng.choice((0, 1, 1, 2))):
        members = change(rng, members)
        said.append(change.__name__)
    kind = rng.choice(("zip", "tar", "tar.gz", "form", "nii", "nii2", "nii.gz"))
    content = _content(kind, members, rng)
    headers = {}
    if query.startswith("locate") or kind == "form":
        parts = [("file", one) for _, one in members] if kind == "form" else [("scan", content)]
        if query.startswith("locate"):
            parts += [("other", content if kind != "form" else members[0][1] if members else b"")]
        if rng.random() < 0.3:
            fields = [field for field, _ in parts]
            rng.shuffle(fields)
            parts = [(field, one) for field, (_, one) in zip(fields, parts, strict=True)]
            said.append("fields_exchanged")
        content, headers = form(parts), {"content-type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
    for alter in rng.sample(BYTES, rng.choice((0, 1, 1, 2) if said else (1, 2))):
        content = alter(rng, content)
        said.append(alter.__name__)
    return Upload(query, content, headers, f"{kind}: {', '.join(said)}")


def _content(kind: str, members: Members, rng: random.Random) -> bytes:
    if kind == "zip":
        return packed(dict(members))
    if kind in ("tar", "tar.gz"):
        return tarred(members, compress=kind == "tar.gz")
    if kind == "form":
        return b""
    return gzip.compress(volume("nii"), 1, mtime=0) if kind == "nii.gz" else volume(kind)


def doubled(rng: random.Random, members: Members) -> Members:
    """A member twice, under its own name or another."""
    if not members:
        return members
    name, content = rng.choice(members)
    return [*members, (rng.choice((name, f"{name}-copy", "../../etc/passwd", "")), content)]


def removed(rng: random.Random, members: Members) -> Members:
    """Without some members; without all, at times."""
    return rng.sample(members, rng.choice((max(0, len(members) - 1), min(1, len(members)), 0)))


def exchanged(rng: random.Random, members: Members) -> Members:
    """Ends of two members, with their pixels, change places."""
    if len(members) < 2:
        return members
    first, second = rng.sample(range(len(members)), 2)
    (one, a), (other, b) = members[first], members[second]
    at = rng.randrange(132, 1200)
    changed = list(members)
    changed[first], changed[second] = (one, a[:at] + b[at:]), (other, b[:at] + a[at:])
    return changed


def nested(rng: random.Random, members: Members) -> Members:
    """An archive, a volume or text among the members."""
    other = rng.choice((packed(dict(members[:1])), volume("nii"), b"text", b""))
    return [*members, ("other", other)]


def element_lies(rng: random.Random, members: Members) -> Members:
    """An element of a DICOM file says another length, or is of another type."""
    index = rng.randrange(len(members)) if members else None
    if index is None:
        return members
    name, content = members[index]
    changed = bytearray(content)
    for _ in range(rng.choice((1, 3))):
        at = rng.randrange(138, 1106, 2)
        changed[at : at + 2] = struct.pack("<H", rng.choice((0, 1, 2, 0x7FFF, 0xFFFE, 0xFFFF)))
    return [*members[:index], (name, bytes(changed)), *members[index + 1 :]]


def bits(rng: random.Random, content: bytes) -> bytes:
    """One bit, or many, anywhere."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 8, 200)) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def head_bits(rng: random.Random, content: bytes) -> bytes:
    """The same within the first bytes, where headers are."""
    first = rng.choice((64, 400))
    return bits(rng, content[:first]) + content[first:]


def cut(rng: random.Random, content: bytes) -> bytes:
    """Without its end, or its beginning."""
    at = rng.randrange(len(content) + 1)
    return content[at:] if rng.random() < 0.2 else content[:at]


def length_lies(rng: random.Random, content: bytes) -> bytes:
    """A length in the header of a zip, its directory, a tar or a NIfTI says something else."""
    changed = bytearray(content)
    number = struct.pack("<I", rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 10**6)))
    places = [at + behind for mark, behind in ZIP_LENGTHS for at in _all(content, mark)]
    places += [40, 42, 70, 76, 108, 112, *range(124, 136)]  # dim, pixdim, vox_offset; a tar's octal size
    at = rng.choice(places)
    changed[at : at + 4] = number
    return bytes(changed[: max(len(content), 4)])


def repeated(rng: random.Random, content: bytes) -> bytes:
    """A piece of it twice, or what is no part of it behind it."""
    first, last = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content + rng.choice((content[first : min(last, first + 4096)], b"\0" * 1024, content[:600]))


# Marks of a zip's member, its directory's entry and the directory's end, with the places of lengths behind them.
ZIP_LENGTHS = (
    (b"PK\x03\x04", 18), (b"PK\x03\x04", 22), (b"PK\x03\x04", 26), (b"PK\x01\x02", 20), (b"PK\x01\x02", 24),
    (b"PK\x01\x02", 28), (b"PK\x01\x02", 42), (b"PK\x05\x06", 8), (b"PK\x05\x06", 12), (b"PK\x05\x06", 16),
)  # fmt: skip
MEMBERS: tuple[Callable[[random.Random, Members], Members], ...] = (doubled, exchanged, nested, element_lies, removed)
BYTES: tuple[Callable[[random.Random, bytes], bytes], ...] = (bits, head_bits, cut, length_lies, repeated)


def _all(content: bytes, mark: bytes) -> list[int]:
    found, at = [], content.find(mark)
    while at >= 0 and len(found) < 16:
        found.append(at)
        at = content.find(mark, at + 1)
    return found


def sound() -> dict[str, bytes]:
    """A body of each kind that is as it should be; all but the form are of one scan."""
    members = [(f"{n:03d}", content) for n, content in enumerate(slices(ExplicitVRLittleEndian))]
    return {"zip": packed(dict(members)), "tar": tarred(members, False), "tar.gz": tarred(members, True),
            "nii": volume("nii")}  # fmt: skip
