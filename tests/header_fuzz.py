"""Headers that no writer should write, and what must not happen when they are read.

    python -m tests.header_fuzz [--files 10000] [--seed 0]

Each file is a good one of the phantom scanner, spoilt in one to three ways. Whatever it is, reading it gives one row:
no exception, no hang, no memory without bound, the same from the short reader as from pydicom, and a value for every
column that the receipt's table can hold. Prints what was not so, and how the files fared.
"""

from __future__ import annotations

import argparse
import io
import random
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pydicom

from components.ct.dicom import read_series
from components.ct.elements import LONG, SHORT
from components.ct.headers import (
    LISTED_TAGS,
    TAGS,
    group_series,
    measure_series,
    read_instance,
    read_with_pydicom,
    series_identity,
)
from components.ct.instance import Instance
from components.errors import UserError
from components.sources.config import PhantomConfig
from components.sources.phantom.dealing import plan_scans
from components.sources.phantom.scanner import scan

UNDEFINED = 0xFFFFFFFF
SECONDS = 5.0  # for one file; a good one takes a millisecond
EXPLICIT, IMPLICIT, BIG, DEFLATED = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2",
                                     "1.2.840.10008.1.2.1.99")  # fmt: skip
VRS = sorted(SHORT | LONG)
WANTED = [int(tag) for keyword in dict.fromkeys((*TAGS, *LISTED_TAGS, "SpecificCharacterSet"))
          if (tag := pydicom.datadict.tag_for_keyword(keyword)) is not None]  # fmt: skip
VALUES = (
    b"", b" ", b"\\", b"A\\B", b"1\\2", b"CHEST\\ABDOMEN", b"1.2.3\\1.2.4", b"0", b"-1", b"1", b"65535",
    b"1e400", b"nan",
    b"inf", b"1,5", b"-1024 HU", b"9" * 40, b"1" * 5000 + b"x", b"\xff\xfe", b"\0\0", b"\xe4\xf6", b"\x1b$B;3ED",
    b"1.2.840.10008.5.1.4.1.1.2", b"1.2.840.10008.5.1.4.1.1.2.1", b"1.2.840.10008.5.1.4.1.1.481.3", b"CT\0", b"CT\\MR",
    b"0\\0\\0", b"1\\0\\0\\0\\1\\0", b"1e300\\0\\0", b"0\\0\\0\\0\\0\\0", b"LOCALIZER", b"ISO_IR 192",
    b"\x01\x00\x02\x00",
)  # fmt: skip


@dataclass(frozen=True)
class Element:
    """One element of a data set: tag, representation, value, and what its length field says where that is a lie."""

    tag: int
    vr: bytes
    value: bytes
    length: int | None = None


@dataclass(frozen=True)
class File:
    """A file before it is written. ``syntax``: as its meta information states it, which ``written`` may contradict."""

    elements: tuple[Element, ...]
    syntax: str = EXPLICIT
    written: str = EXPLICIT
    bare: bool = False


Spoiler = Callable[[File, random.Random], File]


def sources(folder: Path) -> list[File]:
    """Good files: slices of both lines' scanners."""
    found = []
    for line in ("head", "wholebody"):
        sizes = {"pretrain_patients": 2, "evaluation_patients": 4, "retest_patients": 0, "fault_share": 0.0}
        plan = replace(
            plan_scans(PhantomConfig(anatomy="head" if line == "head" else "trunk", seed=3, **sizes))[0],
            matrix=16,
            slices=1,
            fault="",
        )
        scan(plan, folder / line)
        found.append(File(tuple(_elements(pydicom.dcmread(next((folder / line).glob("*.dcm")))))))
    return found


def _elements(dataset: pydicom.Dataset) -> Iterator[Element]:
    for tag in sorted(dataset.keys()):
        element = dataset.get_item(tag)
        if element.VR != "SQ" and isinstance(element.value, bytes):
            vr = str(element.VR or pydicom.datadict.dictionary_VR(tag)).encode()
            yield Element(int(tag), vr if len(vr) == 2 else b"US", element.value)


def written(file: File) -> bytes:
    """The file's bytes; lies are written as they are."""
    body = b"".join(encoded(element, file.written) for element in file.elements)
    if file.syntax == DEFLATED:
        engine = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
        body = engine.compress(body) + engine.flush()
    if file.bare:
        return body
    uid = file.syntax.encode() + b"\0" * (len(file.syntax) % 2)
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
    return bytes(128) + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta)) + meta + body


def encoded(element: Element, syntax: str) -> bytes:
    end = ">" if syntax == BIG else "<"
    length = len(element.value) if element.length is None else element.length
    head = struct.pack(f"{end}HH", element.tag >> 16, element.tag & 0xFFFF)
    if syntax == IMPLICIT:
        return head + struct.pack("<L", length & 0xFFFFFFFF) + element.value
    if element.vr in LONG:
        return head + element.vr + b"\0\0" + struct.pack(f"{end}L", length & 0xFFFFFFFF) + element.value
    return head + element.vr + struct.pack(f"{end}H", length & 0xFFFF) + element.value


def with_element(file: File, element: Element) -> File:
    """``file`` with the element in its place, instead of any of the same tag."""
    others = [e for e in file.elements if e.tag != element.tag]
    return replace(file, elements=tuple(sorted([*others, element], key=lambda e: e.tag)))


def _changed(file: File, rng: random.Random, **values: Any) -> File:
    number = rng.randrange(len(file.elements))
    elements = list(file.elements)
    elements[number] = replace(elements[number], **values)
    return replace(file, elements=tuple(elements))


def other_value(file: File, rng: random.Random) -> File:
    """A wanted attribute with a value of another kind, or several."""
    tag = rng.choice(WANTED)
    vr = pydicom.datadict.dictionary_VR(tag).encode()[:2]
    return with_element(file, Element(tag, vr, rng.choice(VALUES)))


def other_representation(file: File, rng: random.Random) -> File:
    return _changed(file, rng, vr=rng.choice(VRS))


def other_length(file: File, rng: random.Random) -> File:
    return _changed(file, rng, length=rng.choice((0, 1, 3, 0xFFFE, 0xFFFF, 2**31, 2**32 - 2, 2**32 - 1)))


def missing(file: File, rng: random.Random) -> File:
    kept = list(file.elements)
    del kept[rng.randrange(len(kept))]
    return replace(file, elements=tuple(kept))


def out_of_order(file: File, rng: random.Random) -> File:
    shuffled = list(file.elements)
    first, second = rng.randrange(len(shuffled)), rng.randrange(len(shuffled))
    shuffled[first], shuffled[second] = shuffled[second], shuffled[first]
    return replace(file, elements=tuple(shuffled))


def nested(file: File, rng: random.Random) -> File:
    """Sequences in sequences, of stated lengths or of none, public or private, instead of a value or beside it."""
    undefined, tag = rng.random() < 0.5, rng.choice((0x00081115, 0x00091001, 0x52009230, 0x00101002, *WANTED))
    value = encoded(Element(0x00100010, b"PN", b"DOE^JANE"), file.written)
    for _ in range(rng.choice((1, 2, 10, 33, 100, 400))):
        value = item(value, undefined, file.written)
        value = encoded(Element(0x00081115, b"SQ", value, UNDEFINED if undefined else None), file.written)
    return with_element(
        file, Element(tag, b"SQ", item(value, undefined, file.written), UNDEFINED if undefined else None)
    )


def item(value: bytes, undefined: bool, syntax: str) -> bytes:
    end = ">" if syntax == BIG else "<"
    head = struct.pack(f"{end}HHL", 0xFFFE, 0xE000, UNDEFINED if undefined else len(value))
    tails = [struct.pack(f"{end}HHL", 0xFFFE, number, 0) for number in (0xE00D, 0xE0DD)]
    return head + value + (b"".join(tails) if undefined else b"")


def other_syntax(file: File, rng: random.Random) -> File:
    """Written in another transfer syntax, with the meta information that says so, or another, or none."""
    syntax = rng.choice((EXPLICIT, IMPLICIT, BIG, DEFLATED))
    stated = syntax if rng.random() < 0.7 else rng.choice((EXPLICIT, IMPLICIT, BIG, DEFLATED, "", "1.2.3", "x\\y"))
    body = EXPLICIT if syntax == DEFLATED else syntax
    return replace(file, syntax=stated, written=body, bare=rng.random() < 0.2)


def other_charset(file: File, rng: random.Random) -> File:
    odd = rng.choice(
        (b"ISO_IR 13", b"ISO 2022 IR 87", b"\\ISO 2022 IR 87", b"latin", b"UTF-8\\x", b"\xff", b"ISO_IR 192")
    )
    return with_element(
        with_element(file, Element(0x00080005, b"CS", odd)), Element(0x00100020, b"LO", rng.choice(VALUES))
    )


SPOILERS: tuple[Spoiler, ...] = (
    other_value, other_value, other_representation, other_length, missing, out_of_order, nested, other_syntax,
    other_charset,
)  # fmt: skip


def odd_headers(good: Sequence[File], seed: int, files: int, start: int = 0) -> Iterator[bytes]:
    """``files`` files from ``good`` ones; every one of its own seed, so that any can be made again alone."""
    for number in range(start, start + files):
        rng = random.Random(f"{seed}/{number}")
        file = rng.choice(good)
        for spoiler in rng.choices(SPOILERS, k=rng.choice((1, 1, 2, 3))):
            file = spoiler(file, rng)
        content = bytearray(written(file))
        kind = rng.random()
        if kind < 0.15:
            for _ in range(rng.choice((1, 1, 4, 30))):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        elif kind < 0.25:
            content = content[: rng.randrange(len(content) + 1)]
        elif kind < 0.3:
            at = rng.randrange(len(content))
            content[at:at] = content[rng.randrange(len(content)) :][: rng.choice((1, 2, 8, 200))]
        yield bytes(content)


def read(content: bytes, scratch: Path, good: Instance) -> tuple[str, dict[str, Any]]:
    """What the product makes of a file: how it fared, and the receipt's columns of a series that holds it.

    Raises:
        Exception: what must not happen.
    """
    begin = time.monotonic()
    found = []
    for listing in (True, False):
        read = read_instance(io.BytesIO(content), "odd", len(content), listing)
        reference = read_with_pydicom(io.BytesIO(content), "odd", len(content), listing)
        # What a damaged file makes pydicom raise depends on how deep the stack is.
        same = replace(read, detail="") == replace(reference, detail="")
        if not same and read.status != "not_dicom":
            raise AssertionError(f"listing {listing}: ours is not pydicom's: {_difference(read, reference)}")
        if not isinstance(series_identity(read), str):
            raise AssertionError("the identity of its series is no text")
        found.append(read)
    groups = group_series([good, found[1]])
    for group in groups.values():
        measure_series(group, only_largest_stack=True)
    if sum(map(len, groups.values())) != 1 + (found[1].status in ("image", "object")):
        raise AssertionError("it is not in the series it names")
    path = scratch / "odd.dcm"
    path.write_bytes(content)
    fate = found[1].status
    if fate != "not_dicom":
        try:
            read_series([path])
            fate += ", a volume"
        except UserError as error:
            fate += ", refused"
            if "\n" in str(error) or len(str(error)) > 300:
                raise AssertionError(f"not one line: {str(error)[:400]!r}") from None
    if (seconds := time.monotonic() - begin) > SECONDS:
        raise AssertionError(f"took {seconds:.1f} s")
    return fate, measure_series([good, found[1]])


def _difference(read: Instance, reference: Instance) -> str:
    return "; ".join(f"{name}: {value!r:.200} / {getattr(reference, name)!r:.200}" for name, value in vars(read).items()
                     if value != getattr(reference, name))  # fmt: skip


def run(seed: int, files: int) -> tuple[Counter[str], list[str]]:
    """How many files fared how; and what must not happen, with the number of the file."""
    fates, faults, rows = Counter[str](), list[str](), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        good = sources(scratch)
        content = written(good[0])
        first = read_instance(io.BytesIO(content), "good", len(content))
        if first.status != "image":
            raise AssertionError("the fuzzer's own file is not read")
        for number, content in enumerate(odd_headers(good, seed, files)):
            try:
                fate, measured = read(content, scratch, first)
            except Exception as error:
                faults.append(f"seed {seed} file {number}: {type(error).__name__}: {str(error)[:400]}")
                continue
            fates[fate] += 1
            rows.append(measured)
        try:
            pa.Table.from_pandas(pd.DataFrame(rows))
        except (pa.ArrowException, OverflowError) as error:
            faults.append(f"the receipt's table: {error}")
    return fates, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    fates, faults = run(arguments.seed, arguments.files)
    for fault in faults:
        print(fault)
    told = ", ".join(f"{count} {fate}" for fate, count in fates.most_common())
    print(f"{arguments.files} files, seed {arguments.seed}: {told}")
    sys.exit(len(faults) > 0)


if __name__ == "__main__":
    main()
