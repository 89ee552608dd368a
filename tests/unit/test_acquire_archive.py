"""Zips are unpacked with limits; nothing leaves the destination."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from components.acquire.archive import ArchiveError, ArchiveLimits, unpack

LIMITS = ArchiveLimits(members=3, unpacked_bytes=8 << 20, ratio=100.0)


def make(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_members_are_unpacked_under_numbered_names(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", {"../../evil.dcm": b"1", "/etc/x": b"2", "b/c.dcm": b"3"})
    files = [file for file, _ in unpack(path, tmp_path / "out", LIMITS)]
    assert sorted(p.parent for p in files) == [tmp_path / "out"] * 3
    assert {p.read_bytes() for p in files} == {b"1", b"2", b"3"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "out"]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({f"{i}": b"x" for i in range(4)}, "4 members are not allowed: at most 3"),
        ({"bomb": bytes(4 << 20)}, "to 1 is not allowed: at most 100 to 1"),
        ({"a": bytes(9 << 20)}, "9437184 bytes unpacked are not allowed"),
    ],
)
def test_limits(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    with pytest.raises(ArchiveError, match=said):
        list(unpack(make(tmp_path / "a.zip", members), tmp_path / "out", LIMITS))
    assert not (tmp_path / "out").exists()


def test_a_lying_directory_is_caught_while_unpacking(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", {"a": bytes(range(256)) * 64})
    raw = bytearray(path.read_bytes())
    at = raw.rfind(b"PK\x01\x02") + 24  # uncompressed size in the central directory
    raw[at : at + 4] = (100).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(ArchiveError):
        list(unpack(path, tmp_path / "out", LIMITS))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"not a zip", b"PK\x03\x04 truncated"])
def test_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ArchiveError, match="zip: not readable as an archive"):
        list(unpack(tmp_path / "a.zip", tmp_path / "out", LIMITS))
