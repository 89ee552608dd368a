"""Tars are unpacked with limits; nothing leaves the destination, and damage is told."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from components.ct.archive import ArchiveError, ArchiveLimitError, ArchiveLimits
from components.ct.tar import unpack_tar

LIMITS = ArchiveLimits(members=3, unpacked_bytes=8 << 20, ratio=100.0)


def tarred(path: Path, members: dict[str, bytes], mode: str = "w:gz", **more: bytes) -> Path:
    """``more``: names to types of members without content."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, kind in more.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tars_files_are_unpacked_and_nothing_else(mode: str, tmp_path: Path) -> None:
    members = {"../../a": b"one", "/etc/b": b"two" * 999}
    path = tarred(tmp_path / "x", members, mode, link=tarfile.SYMTYPE, hard=tarfile.LNKTYPE, pipe=tarfile.FIFOTYPE,
                  folder=tarfile.DIRTYPE)  # fmt: skip
    roomy = ArchiveLimits(members=6, unpacked_bytes=3000, ratio=100.0)
    found = list(unpack_tar(path, tmp_path / "out", roomy))
    assert {name: file.read_bytes() for file, name in found} == members
    assert [file.name for file, _ in found] == ["000004-a", "000005-b"]
    assert sorted((tmp_path / "out").iterdir()) == [file for file, _ in found]
    with pytest.raises(ArchiveLimitError, match=r"at most 5$"):
        list(unpack_tar(path, tmp_path / "refused", ArchiveLimits(5, 3000, 1.0)))
    assert not (tmp_path / "refused").exists()


def test_a_tar_that_unpacks_to_too_much_is_refused_before_it_has(tmp_path: Path) -> None:
    path = tarred(tmp_path / "x", {"a": bytes(100 << 20)})
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ArchiveLimitError, match=r"at most 2999$"):
        list(unpack_tar(path, tmp_path / "refused", ArchiveLimits(6, 2999, 1.0)))
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("how", ["cut", "changed", "empty"])
def test_a_damaged_tar_is_told_and_nothing_stays(mode: str, how: str, tmp_path: Path) -> None:
    path = tarred(tmp_path / "x", {"a": bytes(range(256)) * 999}, mode)
    content = bytearray(path.read_bytes())
    if how == "changed":
        content[len(content) // 2 if mode == "w:gz" else 20] ^= 255
    path.write_bytes({"cut": content[: len(content) // 2], "changed": content, "empty": b""}[how])
    with pytest.raises(ArchiveError, match=r"^tar: [^\n]*; send it again$"):
        list(unpack_tar(path, tmp_path / "out", LIMITS))
    assert not (tmp_path / "out").exists()


def test_a_tar_whose_checksum_is_wrong_is_told(tmp_path: Path) -> None:
    path = tarred(tmp_path / "x", {"a": b"one"})
    content = bytearray(path.read_bytes())
    content[-8] ^= 255  # of gzip's checksum (RFC 1952)
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"^tar: damaged or cut short \(BadGzipFile\); send it again$"):
        list(unpack_tar(path, tmp_path / "out", LIMITS))
    assert not (tmp_path / "out").exists()
