"""Zips are unpacked with limits; nothing leaves the destination; damage is told from a full disk."""

from __future__ import annotations

import bz2
import errno
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from components.ct.archive import (
    LOCAL_LIMITS,
    ArchiveError,
    ArchiveLimitError,
    ArchiveLimits,
    copy_member,
    obstacle,
    open_zip,
    unpack,
)

LIMITS = ArchiveLimits(members=3, unpacked_bytes=8 << 20, ratio=100.0)
DEFLATE64 = 9


def make(path: Path, members: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def declare(path: Path, local: int, central: int, value: bytes) -> Path:
    """Write ``value`` into the headers of every member: ``local`` and ``central`` are its places in them."""
    raw = bytearray(path.read_bytes())
    for magic, place in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        at = raw.find(magic)
        while at >= 0:
            raw[at + place : at + place + len(value)] = value
            at = raw.find(magic, at + 4)
    path.write_bytes(raw)
    return path


def add_link(path: Path, name: str, target: str) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo(name)
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, target)


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
        ({"a": bytes(5 << 20), "b": bytes(5 << 20)}, "10485760 bytes unpacked are not allowed"),
    ],
)
def test_limits(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    with pytest.raises(ArchiveLimitError, match=said):
        list(unpack(make(tmp_path / "a.zip", members), tmp_path / "out", LIMITS))
    assert not (tmp_path / "out").exists()


def test_no_more_is_unpacked_than_the_directory_declares(tmp_path: Path) -> None:
    """A directory that lies about a size cannot pass the limit: what is beyond is never written."""
    path = declare(make(tmp_path / "a.zip", {"a": bytes(range(256)) * 64}), 22, 24, struct.pack("<I", 100))
    with (tmp_path / "a").open("wb") as target, open_zip(path) as archive:
        with pytest.raises(ArchiveError, match="a member is damaged \\(its checksum is wrong\\)"):
            copy_member(archive, archive.infolist()[0], target)
        assert target.tell() <= 100
    with pytest.raises(ArchiveError):
        list(unpack(path, tmp_path / "out", LIMITS))
    assert not (tmp_path / "out").exists()


def test_a_packing_that_unpacks_at_once_is_refused(tmp_path: Path) -> None:
    """64 MiB of zeros are 80 bytes of bzip2: zipfile unpacks them whole, however few bytes the directory declares."""
    zeros = bytes(64 << 20)
    assert len(bz2.compress(zeros)) < 200
    path = make(tmp_path / "a.zip", {"a": zeros}, zipfile.ZIP_BZIP2)
    declare(path, 22, 24, struct.pack("<I", 1000))
    with pytest.raises(ArchiveError, match="packed by bzip2, 12"):
        list(unpack(path, tmp_path / "out", LIMITS))


def test_deflate64_is_named_and_not_called_damaged(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", {"a": b"1"}, zipfile.ZIP_STORED)
    declare(path, 8, 10, struct.pack("<H", DEFLATE64))
    with pytest.raises(
        ArchiveError, match=r"Deflate64, as Windows does.*pack the archive again.*Deflate64, 9"
    ) as caught:
        list(unpack(path, tmp_path / "out", LIMITS))
    assert "damaged" not in str(caught.value)


def test_an_encrypted_member_is_named(tmp_path: Path) -> None:
    path = declare(make(tmp_path / "a.zip", {"a": b"1"}), 6, 8, struct.pack("<H", 1))
    with pytest.raises(ArchiveError, match="is encrypted"):
        list(unpack(path, tmp_path / "out", LIMITS))


def test_a_link_costs_itself_only(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", {"a": b"1", "b": b"2"})
    add_link(path, "latest", "a")
    assert [name for _, name in unpack(path, tmp_path / "out", LIMITS)] == ["a", "b"]
    with open_zip(path) as archive:
        assert [obstacle(info, LOCAL_LIMITS) for info in archive.infolist()] == ["", "", "link"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is Linux's")
def test_a_full_disk_is_no_damage(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", {"a": bytes(range(256)) * 4096})
    with open_zip(path) as archive, Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError) as caught:
        copy_member(archive, archive.infolist()[0], full)
    assert caught.value.errno == errno.ENOSPC
    assert not isinstance(caught.value, ArchiveError)


def test_what_is_said_of_damage_holds_no_name(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", {"MEIER^ANNA.dcm": bytes(1000)}, zipfile.ZIP_STORED)
    raw = bytearray(path.read_bytes())
    raw[500] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ArchiveError, match="a member is damaged") as caught:
        list(unpack(path, tmp_path / "out", LIMITS))
    raw[34] ^= 1  # the name in the local header is now another than in the directory
    path.write_bytes(raw)
    with pytest.raises(ArchiveError, match="a member is damaged") as again:
        list(unpack(path, tmp_path / "out", LIMITS))
    assert "MEIER" not in f"{caught.value} {again.value}"


@pytest.mark.parametrize("content", [b"not a zip", b"PK\x03\x04 truncated"])
def test_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ArchiveError, match="zip: not readable as an archive"):
        list(unpack(tmp_path / "a.zip", tmp_path / "out", LIMITS))


def test_an_end_record_that_points_too_far_is_damage(tmp_path: Path) -> None:
    """Members then seem to begin before the file does, which the system calls an invalid argument."""
    path = make(tmp_path / "a.zip", {"a": b"1" * 100, "b": b"2" * 100})
    content = bytearray(path.read_bytes())
    at = content.rfind(b"PK\x05\x06") + 16  # where the directory begins (APPNOTE 4.3.16)
    content[at : at + 4] = struct.pack("<I", struct.unpack("<I", content[at : at + 4])[0] + 50)
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="a member is damaged"):
        list(unpack(path, tmp_path / "out", LIMITS))


def test_a_file_that_this_machine_cannot_open_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_zip(tmp_path / "gone.zip")
