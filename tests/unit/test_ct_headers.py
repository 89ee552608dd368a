"""Headers are read, grouped and measured; the real traps of ``../shared/ct`` are measured as what they are."""

from __future__ import annotations

import io
import random
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian

from components.ct.elements import Irregular, read_header
from components.ct.headers import LISTED_TAGS, TAGS, group_series, measure_series, read_instance, read_with_pydicom
from components.ct.instance import Instance
from components.ct.privacy import Findings
from components.sources.config import PhantomConfig
from components.sources.phantom.dealing import plan_scans
from components.sources.phantom.scanner import scan


def in_memory(content: bytes, location: str) -> Instance:
    return read_instance(io.BytesIO(content), location, len(content))


def measured(folder: Path) -> list[dict[str, object]]:
    instances = [in_memory(p.read_bytes(), p.relative_to(folder).as_posix()) for p in sorted(folder.rglob("*.dcm"))]
    return [measure_series(group) for group in group_series(instances).values()]


def test_gantry_tilt_is_measured_from_positions(ct_root: Path) -> None:
    (head,) = measured(ct_root / "dicom" / "ge_head_tilted")
    assert head["tilt_degrees"] == pytest.approx(18.5, abs=0.01)
    assert head["gap_ratio"] == pytest.approx(1.75, abs=0.01)


def test_bad_geometry(ct_root: Path) -> None:
    (tilted,) = measured(ct_root / "bad_geometry" / "gantrytilting")
    assert tilted["tilt_degrees"] == pytest.approx(14.0, abs=0.1)
    (one_place,) = measured(ct_root / "bad_geometry" / "notavolume")
    assert (one_place["positions"], one_place["instances"]) == (1, 4)
    assert [s["gap_ratio"] for s in measured(ct_root / "bad_geometry" / "sliceincrement")] == [2.0, 2.0]


def test_truncation_is_seen_to_the_byte(ct_root: Path) -> None:
    content = (ct_root / "dicom" / "sts_001" / "000000.dcm").read_bytes()
    assert not in_memory(content, "a").truncated
    assert in_memory(content[:-1], "a").truncated
    assert in_memory(content[:600], "a").status == "unreadable"
    compressed = next((ct_root / "dicom" / "abdomen_jpeg2000").iterdir()).read_bytes()
    assert not in_memory(compressed, "a").truncated
    assert in_memory(compressed[:-2000], "a").truncated


def both(content: bytes, listing: bool) -> tuple[Instance, Instance]:
    """As it is read, and as pydicom alone reads it."""
    read = read_instance(io.BytesIO(content), "a", len(content), listing)
    return read, read_with_pydicom(io.BytesIO(content), "a", len(content), listing)


@pytest.mark.parametrize("listing", [False, True])
def test_every_real_file_reads_as_pydicom_reads_it(ct_root: Path, listing: bool) -> None:
    files = sorted(p for part in ("dicom", "bad_geometry", "labels") for p in (ct_root / part).rglob("*"))
    contents = [p.read_bytes() for p in files if p.is_file() and p.suffix != ".zip"]
    with zipfile.ZipFile(ct_root / "dicom" / "lidc_idri_0314.zip") as archive:
        contents += [archive.read(info) for info in archive.infolist()[:5]]
    contents = [content for content in contents if content[128:132] == b"DICM"]
    assert len(contents) > 800
    for content in contents:
        read, reference = both(content, listing)
        assert read == reference


def damaged(sources: list[bytes], seed: int, files: int) -> Iterator[bytes]:
    """Files cut short, with bytes changed, lost or repeated within the header."""
    rng = random.Random(seed)
    for number in range(files):
        content, at = bytearray(rng.choice(sources)), rng.randrange(132, 3000)
        if number % 4 == 0:
            content = content[: rng.randrange(132, 6000)]
        elif number % 4 == 1:
            content[at] = rng.randrange(256)
        elif number % 4 == 2:
            del content[at : at + rng.choice((1, 2, 4, 8, 16))]
        else:
            other = rng.randrange(132, 3000)
            content[at : at + rng.choice((2, 4, 8))] = content[other : other + 8]
        yield bytes(content)


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_read_as_pydicom_reads_them(ct_root: Path) -> None:
    folders = ("sts_001", "ge_head_tilted", "abdomen_jpeg2000", "abdomen_3slices")
    sources = [min((ct_root / "dicom" / name).iterdir()).read_bytes() for name in folders]
    seen: Counter[str] = Counter()
    for content in damaged(sources, 1, 160):
        for listing in (False, True):
            read, reference = both(content, listing)
            assert read == reference
            seen[read.status] += 1
    assert min(seen["image"], seen["unreadable"]) > 40


def test_phantoms_read_as_pydicom_reads_them(tmp_path: Path) -> None:
    sizes = {"pretrain_patients": 6, "evaluation_patients": 4, "retest_patients": 0, "fault_share": 0.0}
    config = PhantomConfig(anatomy="head", seed=1, **sizes)
    for plan in plan_scans(config)[:3]:
        folder = tmp_path / plan.series_uid
        folder.mkdir()
        scan(plan, folder)
        for path in sorted(folder.glob("*.dcm"))[::8]:
            read, reference = both(path.read_bytes(), False)
            assert read == reference


@pytest.mark.parametrize("listing", [False, True])
def test_what_one_file_taught_holds_for_the_next(ct_root: Path, listing: bool) -> None:
    """Elements are remembered by their first bytes, which tell no size where the length is undefined."""
    for length in (2, 40, 6):
        dataset = pydicom.dcmread(min((ct_root / "dicom" / "sts_001").iterdir()))
        item = Dataset()
        item.add_new(0x00091002, "LO", "x" * length)
        dataset.add_new(0x00090010, "LO", "SITE")
        dataset.add_new(0x00091001, "SQ", Sequence([item]))
        dataset[0x00091001].is_undefined_length = True
        buffer = io.BytesIO()
        dataset.save_as(buffer, implicit_vr=True, little_endian=True)
        read, reference = both(buffer.getvalue(), listing)
        assert (read.status, read) == ("image", reference)
        keywords, findings = (LISTED_TAGS, None) if listing else (TAGS, Findings())
        assert read_header(buffer.getvalue(), keywords, findings).values == read.tags, "without pydicom's help"


def test_deflated_files_are_whole(ct_root: Path) -> None:
    dataset = pydicom.dcmread(ct_root / "dicom" / "ge_head_tilted" / "01.dcm")
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    read = in_memory(buffer.getvalue(), "a")
    assert (read.status, read.truncated) == ("image", False)


def test_what_is_no_image_counts_as_unreadable_in_a_series(ct_root: Path) -> None:
    content = min((ct_root / "dicom" / "sts_001").iterdir()).read_bytes()
    series = [in_memory(part, str(n)) for n, part in enumerate((content, content[:96], b"", content[:-1]))]
    assert measure_series(series)["unreadable_files"] == 3


def test_elements_out_of_order_are_left_to_pydicom(tmp_path: Path) -> None:
    plan = next(p for p in plan_scans(PhantomConfig(anatomy="head",
        pretrain_patients=1, evaluation_patients=4, retest_patients=0, fault_share=0.0, seed=1)))  # fmt: skip
    scan(plan, tmp_path)
    content = next(tmp_path.glob("*.dcm")).read_bytes()
    assert read_header(content, TAGS, None).values["Modality"] == "CT"
    at = content.index(b"\x08\x00\x60\x00CS\x02\x00CT")
    behind = at + 10
    length = 8 + int.from_bytes(content[behind + 6 : behind + 8], "little")
    swapped = content[:at] + content[behind : behind + length] + content[at:behind] + content[behind + length :]
    with pytest.raises(Irregular):
        read_header(swapped, TAGS, None)
