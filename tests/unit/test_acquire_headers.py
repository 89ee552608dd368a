"""Headers are read, grouped and measured; the real traps of ``../shared/ct`` are measured as what they are."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from components.acquire.headers import group_series, measure_series, read_instance_bytes
from components.acquire.sources.dicom import list_tree


def measured(folder: Path) -> list[dict[str, object]]:
    instances = [
        read_instance_bytes(p.read_bytes(), p.relative_to(folder).as_posix()) for p in sorted(folder.rglob("*.dcm"))
    ]
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
    assert not read_instance_bytes(content, "a").truncated
    assert read_instance_bytes(content[:-1], "a").truncated
    assert read_instance_bytes(content[:600], "a").status == "unreadable"
    compressed = next((ct_root / "dicom" / "abdomen_jpeg2000").iterdir()).read_bytes()
    assert not read_instance_bytes(compressed, "a").truncated
    assert read_instance_bytes(compressed[:-2000], "a").truncated


def test_every_file_of_a_mess_is_accounted_for(ct_root: Path, tmp_path: Path) -> None:
    slices = sorted((ct_root / "dicom" / "abdomen_3slices").iterdir())
    nameless = sorted((ct_root / "dicom" / "abdomen_jpeg2000").iterdir())[:4]
    for place, files in {"a": slices[:1], "a/deep": slices[1:2], "b": nameless[:2], "c": nameless[2:]}.items():
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        for file in files:
            (tmp_path / place / file.name).write_bytes(file.read_bytes())
    (tmp_path / "a" / "readme.txt").write_text("not DICOM")
    (tmp_path / "a" / "cut.dcm").write_bytes(slices[0].read_bytes()[:300])
    with zipfile.ZipFile(tmp_path / "rest.zip", "w") as archive:
        archive.write(slices[2], "x/y.dcm")
    (tmp_path / "broken.zip").write_bytes((tmp_path / "rest.zip").read_bytes()[:-30])
    listing = list_tree(tmp_path)
    # One series over two folders and a zip; two series without a UID, told apart by their folders.
    assert sorted(s.files for s in listing.series) == [2, 2, 4]
    statuses = {row["location"]: row["status"] for row in listing.files}
    assert len(statuses) == 10
    assert statuses["broken.zip"] == "unreadable"
    assert statuses["a/readme.txt"] == "not_dicom"
    assert statuses["a/cut.dcm"] == "unreadable"
    by_location = {row["location"]: row["series"] for row in listing.files}
    assert by_location["a/cut.dcm"] == by_location["rest.zip!/x/y.dcm"] != ""
