"""Odd headers cost themselves: every file is a row, every value one that a table holds, and readers agree.

Large: ``python -m tests.header_fuzz --files 10000``, or ``CTFOUNDRY_FUZZ_HEADERS=10000`` for this test."""

from __future__ import annotations

import io
import os
import resource
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas import DataFrame

from components.cohort.config import CohortConfig
from components.ct.dicom import DecodeError, read_series
from components.ct.elements import LARGEST, LONG, SHORT
from components.ct.headers import LISTED_TAGS, TAGS, group_series, measure_series, read_instance, read_with_pydicom
from components.ct.instance import Instance
from components.ct.values import is_several, normalised
from components.preprocess.stage import findable
from components.settings import load_stage
from components.sources.dicom_tree import list_tree
from components.tables import write_table
from tests import header_fuzz
from tests.header_fuzz import EXPLICIT, IMPLICIT, Element, File, written

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
FUZZED = int(os.environ.get("CTFOUNDRY_FUZZ_HEADERS", "300"))
GIB = 2**30
pytestmark = pytest.mark.filterwarnings("ignore")  # pytest puts its own filters before the product's


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[File]:
    return header_fuzz.sources(tmp_path_factory.mktemp("good"))


def instance_of(content: bytes, listing: bool = False) -> Instance:
    return read_instance(io.BytesIO(content), "odd", len(content), listing)


def test_fuzzed_headers_give_rows_and_nothing_else() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fates, faults = header_fuzz.run(20, FUZZED)
    assert faults == []
    assert sum(fates.values()) == FUZZED
    assert min(fates["image, a volume"], fates["image, refused"], fates["unreadable, refused"]) > FUZZED // 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GIB // 2**10 // 2, "half a gigabyte, in kB"


# Found by fuzzing: seed and number of the file.
@pytest.mark.parametrize(("seed", "number"), [(0, 40), (0, 110), (1, 1502), (1, 2468)])
def test_what_fuzzing_found(good: list[File], tmp_path: Path, seed: int, number: int) -> None:
    first = instance_of(written(good[0]))
    content = next(header_fuzz.odd_headers(good, seed, 1, start=number))
    header_fuzz.read(content, tmp_path, first)


SEVERAL = {
    "BodyPartExamined": "CHEST\\ABDOMEN", "KVP": "120\\140", "Manufacturer": "A\\B", "ManufacturerModelName": "C\\D",
    "PatientPosition": "HFS\\FFS", "PatientID": "p\\q", "StudyInstanceUID": "1.2.3\\1.2.4", "Modality": "CT\\MR",
    "SeriesInstanceUID": "1.2.5\\1.2.6", "SOPClassUID": "1.2.7\\1.2.8", "FrameOfReferenceUID": "1.2\\1.3",
    "BitsAllocated": b"\x10\0\x10\0", "Rows": b"\x10\0\x10\0", "AcquisitionNumber": "1\\2", "RescaleSlope": "1\\2",
    "PhotometricInterpretation": "MONOCHROME2\\RGB", "SeriesDescription": "one\\two", "SOPInstanceUID": "1.9\\1.8",
}  # fmt: skip


@pytest.mark.parametrize("keyword", sorted(SEVERAL))
def test_several_values_where_one_belongs(good: list[File], keyword: str, tmp_path: Path) -> None:
    """Listed, measured and written to the receipt's table beside a series like others."""
    raw = SEVERAL[keyword]
    value = raw.encode() if isinstance(raw, str) else raw
    tag = pydicom.datadict.tag_for_keyword(keyword)
    vr = pydicom.datadict.dictionary_VR(tag).encode()
    assert tag is not None
    assert not is_several(keyword)
    content = written(header_fuzz.with_element(good[0], Element(int(tag), vr, value + b"\0" * (len(value) % 2))))
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "odd.dcm").write_bytes(content)
    config = load_stage(CohortConfig, "wholebody", "cohort", PARAMS)
    listing = list_tree(tmp_path / "series", config, workers=1)
    assert len(DataFrame(listing.files)) == 1
    odd, other = instance_of(content), instance_of(written(good[1]))
    rows = [measure_series(group) for group in group_series([odd, other]).values()]
    write_table(tmp_path / "receipt.parquet", DataFrame(rows))
    if isinstance(raw, str):
        assert odd.tags[keyword] == raw


def test_columns_of_text_and_number_keep_their_kind(good: list[File]) -> None:
    """Whatever representation a writer chose."""
    rows = [measure_series([instance_of(written(good[1]))])]
    for keyword in TAGS:
        tag = pydicom.datadict.tag_for_keyword(keyword)
        for vr, value in ((b"US", b"\1\0"), (b"FD", bytes(8)), (b"UN", b"\1\0\2\0"), (b"OB", b"xy"), (b"PN", b"a^b=c"),
                          (b"SQ", header_fuzz.item(b"", False, EXPLICIT)), (b"IS", b"99999999999 ")):  # fmt: skip
            assert tag is not None
            read = instance_of(written(header_fuzz.with_element(good[0], Element(int(tag), vr, value))))
            found = read.tags.get(keyword)
            assert found is None or isinstance(found, (tuple if is_several(keyword) else (str, int)))
            assert not isinstance(found, int) or abs(found) < LARGEST
            rows.append(measure_series([read]))
    pa.Table.from_pandas(DataFrame(rows))


def test_normalised_values() -> None:
    assert normalised("KVP", ["120", "140"]) == "120\\140"
    assert normalised("ConvolutionKernel", "B30f") == ("B30f",), "the dictionary allows several"
    assert normalised("Rows", 512) == 512
    assert normalised("Rows", [512, 512]) == "512\\512"
    assert normalised("Rows", "512") == 512
    assert normalised("Rows", 10**12) == str(10**12)
    assert normalised("PixelPaddingValue", b"\x30\xf8") == 63536
    assert normalised("PatientID", 7) == "7"
    nothing = (None, "", [], pydicom.Sequence([pydicom.Dataset()]))
    assert [normalised("PatientID", empty) for empty in nothing] == [None] * 4


def test_an_image_without_a_size_is_missing_it(good: list[File]) -> None:
    """A column that is None passes every bound: what a volume's memory is told from must be there."""
    for keyword, value in (("Columns", b""), ("Columns", b"\1\0\1\0"), ("Rows", b"\1\0\1\0"), ("Rows", b"\0\0")):
        tag = pydicom.datadict.tag_for_keyword(keyword)
        assert tag is not None
        read = instance_of(written(header_fuzz.with_element(good[0], Element(int(tag), b"US", value))))
        assert (read.status, measure_series([read])["missing_tags"]) == ("image", keyword)


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("depth", [31, 33, 400, 3000])
def test_nested_sequences(good: list[File], depth: int, undefined: bool) -> None:
    value = b""
    length = header_fuzz.UNDEFINED if undefined else None
    for _ in range(depth):
        value = header_fuzz.item(value, undefined, EXPLICIT)
        value = header_fuzz.encoded(Element(0x00081115, b"SQ", value, length), EXPLICIT)
    top = Element(0x00081115, b"SQ", header_fuzz.item(value, undefined, EXPLICIT), length)
    read = instance_of(written(header_fuzz.with_element(good[0], top)))
    fates = [("image", ""), ("unreadable", "RecursionError"), ("unreadable", "OSError")]
    # pydicom reads far down where lengths are stated; the short reader, which would not, leaves it to pydicom.
    whole = depth < 100 or (depth == 400 and not undefined)
    assert (read.status, read.detail) in (fates[:1] if whole else fates[1:])


def test_a_long_value_is_no_reason_to_hang(good: list[File]) -> None:
    begin = time.monotonic()
    for tag in (0x00280030, 0x00200013, 0x00100010, 0x00080050):
        value = b"1" * 60_000 + b"xx"
        file = replace(header_fuzz.with_element(good[0], Element(tag, b"DS", value)), syntax=IMPLICIT, written=IMPLICIT)
        instance_of(written(file))
    assert time.monotonic() - begin < 5


def test_a_declared_length_allocates_nothing(good: list[File], tmp_path: Path) -> None:
    """Four gigabytes, of a file of 3 kB: a worker with a memory limit would die of asking for them."""
    content = written(header_fuzz.with_element(good[0], Element(0x00091001, b"OB", b"ab", 2**32 - 16)))
    (tmp_path / "a.dcm").write_bytes(content)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    used = int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + GIB, hard))
    try:
        with (tmp_path / "a.dcm").open("rb") as stream:
            read = read_instance(stream, "a", len(content))
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    assert (read.status, read.detail != "MemoryError") == ("unreadable", True)


def test_the_machines_own_failure_is_not_the_files(good: list[File]) -> None:
    class Broken(io.BytesIO):
        def read(self, count: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        read_instance(Broken(written(good[0])), "a", 1)


TEXTS = st.text(st.characters(codec="ascii"), max_size=12)
NUMBERS = st.one_of(st.integers(-(10**12), 10**12).map(str), st.floats().map(str), st.decimals().map(str), TEXTS)


@st.composite
def elements(draw: Callable[[Any], Any]) -> Element:
    """An element that is looked at, with a value that may be anything of its representation, or of none."""
    keyword = draw(st.sampled_from(sorted({*TAGS, *LISTED_TAGS})))
    tag = pydicom.datadict.tag_for_keyword(keyword)
    assert tag is not None
    own = pydicom.datadict.dictionary_VR(tag).encode()[:2]
    vr = draw(st.one_of(st.just(own), st.sampled_from(sorted(SHORT | LONG))))
    numbers = st.lists(st.integers(0, 65535), max_size=3).map(lambda v: struct.pack(f"<{len(v)}H", *v))
    texts = st.lists(NUMBERS if own in (b"DS", b"IS") else TEXTS, max_size=4).map(lambda v: "\\".join(v).encode())
    value = draw(st.one_of(texts, numbers, st.binary(max_size=12)))
    return Element(int(tag), vr, value)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(changes=st.lists(elements(), max_size=4), implicit=st.booleans(), listing=st.booleans())
def test_our_reading_is_pydicoms(good: list[File], changes: list[Element], implicit: bool, listing: bool) -> None:
    syntax = IMPLICIT if implicit else EXPLICIT
    file = replace(good[0], syntax=syntax, written=syntax)
    for element in changes:
        file = header_fuzz.with_element(file, element)
    content = written(file)
    reference = read_with_pydicom(io.BytesIO(content), "odd", len(content), listing)
    assert replace(instance_of(content, listing), detail="") == replace(reference, detail="")


def test_a_number_that_is_none_is_named_without_its_value(good: list[File], tmp_path: Path) -> None:
    """Headers count it as missing, so that training rejects before it decodes; nobody repeats what stands there."""
    file = header_fuzz.with_element(good[0], Element(0x00281052, b"DS", b"-1024 HU"))
    (tmp_path / "a.dcm").write_bytes(written(file))
    assert measure_series([instance_of(written(file))])["rescale_missing"] == 1
    with pytest.raises(DecodeError, match=r"^a\.dcm: RescaleIntercept is no number$"):
        read_series([tmp_path / "a.dcm"])


def test_details_name_files_that_can_be_found() -> None:
    """The raw cache's numbers are nobody's names; a file that came under its own keeps it."""
    members = ["f0a", "f1b"]
    assert findable("000001.dcm: RescaleSlope is no number", members) == "file f1b: RescaleSlope is no number"
    assert findable("000007.dcm: cut", members) == findable("000007.dcm: cut", []) == "a file: cut"
    assert findable("5e1f2d.dcm: cut", members) == "5e1f2d.dcm: cut"


@pytest.mark.parametrize("value", [None, b"", b"  "])
def test_no_intercept_is_zero(good: list[File], value: bytes | None, tmp_path: Path) -> None:
    """As SimpleITK and dcm2niix read it. Training rejects the series by ``rescale``, the service warns of the same."""
    file = header_fuzz.with_element(good[0], Element(0x00281052, b"DS", value or b""))
    if value is None:
        file = replace(file, elements=tuple(e for e in file.elements if e.tag != 0x00281052))
    zero = header_fuzz.with_element(good[0], Element(0x00281052, b"DS", b"0 "))
    for name, content in (("a.dcm", written(file)), ("b.dcm", written(zero))):
        (tmp_path / name).write_bytes(content)
    np.testing.assert_array_equal(read_series([tmp_path / "a.dcm"]).hu, read_series([tmp_path / "b.dcm"]).hu)
    assert measure_series([instance_of(written(file))])["rescale_missing"] == 1
    assert measure_series([instance_of(written(zero))])["rescale_missing"] == 0


def test_one_series_uid_of_two_patients_is_two_series(good: list[File]) -> None:
    other = header_fuzz.with_element(good[0], Element(0x00100020, b"LO", b"another "))
    assert len(group_series([instance_of(written(good[0])), instance_of(written(other))])) == 2
