"""Nothing half-written stays; equal content gives equal bytes."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from components import files
from components.errors import UserError
from components.files import DiskFullError, replacing, require_file_name, sha256_tree, write_json, write_text
from components.tables import read_table, write_table


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_keeps_who_may_read_and_write_it(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("old")
    path.chmod(0o640)
    write_text(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o640)


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "stale").touch()
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [p.name for p in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_never_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    (folder / "of").mkdir(parents=True)
    (folder / "of" / "years.txt").write_text("precious")
    with pytest.raises(UserError, match=r"results: a folder; allowed: the name of a file"):
        write_text(folder, "a picture")
    assert (folder / "of" / "years.txt").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_what_is_read_is_not_written_over(tmp_path: Path) -> None:
    scan, other = tmp_path / "scan.nii.gz", tmp_path / "link.nii.gz"
    scan.write_bytes(b"scan")
    other.symlink_to(scan)
    for output in (scan, other):
        with pytest.raises(UserError, match="is what is read, and would be replaced"):
            require_file_name(output, scan)
    with pytest.raises(UserError, match="a folder"):
        require_file_name(Path(), scan)
    assert require_file_name(tmp_path / "new.png", scan) == tmp_path / "new.png"


def test_tables_and_json_have_stable_bytes(tmp_path: Path) -> None:
    table = pd.DataFrame({"series": ["a", "b"], "value": [1.5, None]})
    for name in ("1", "2"):
        write_table(tmp_path / name / "t.parquet", table)
        write_json(tmp_path / name / "t.json", {"b": 1, "a": [1.25, None]})
    assert sha256_tree(tmp_path / "1") == sha256_tree(tmp_path / "2")
    pd.testing.assert_frame_equal(read_table(tmp_path / "1" / "t.parquet"), table)


def test_json_refuses_what_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "t.json", {"auc": float("nan")})
    assert not list(tmp_path.iterdir())


def folder_with(path: Path, name: str) -> Path:
    path.mkdir()
    (path / name).touch()
    return path


@pytest.mark.parametrize("exchanging", [True, False])
def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanging: bool
) -> None:
    path = folder_with(tmp_path / "out", "old")
    if not exchanging:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)

    def write() -> None:
        with replacing(path) as temporary:  # never made: neither exchange nor rename can succeed
            temporary.with_name("beside").touch()

    with pytest.raises(FileNotFoundError):
        write()
    assert [p.name for p in path.iterdir()] == ["old"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["beside", "out"]


def test_a_second_rename_that_fails_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder_with(tmp_path / "out", "old")
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    rename, calls = Path.rename, []

    def second_fails(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "a share that has gone for a moment")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(OSError, match="gone for a moment"), replacing(path) as temporary:
        folder_with(temporary, "new")
    assert [p.name for p in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_where_names_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder_with(tmp_path / "out", "old")
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    with replacing(path) as temporary:
        folder_with(temporary, "new")
    assert [p.name for p in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_two_hosts_with_one_pid_write_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers count their processes alike: each publishes its own folder, whole."""
    path = tmp_path / "out"
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with replacing(path) as first:
        folder_with(first, "a")
        monkeypatch.setattr(socket, "gethostname", lambda: "other")
        with replacing(path) as second:
            assert second != first
            folder_with(second, "b")
        assert [p.name for p in path.iterdir()] == ["b"]
        assert [p.name for p in first.iterdir()] == ["a"], "not what the other one wrote, nor gone"
    assert [p.name for p in path.iterdir()] == ["a"]


def test_the_bytes_are_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()).removeprefix(f"{tmp_path}/"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    with replacing(tmp_path / "out") as temporary:
        folder_with(temporary, "file")
    partial = temporary.name
    assert synced == [f"{partial}/file", partial, str(tmp_path)]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a disk of one's own is not allowed here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_told_and_leaves_what_was_there(tiny_disk: Path) -> None:
    path = tiny_disk / "table.parquet"
    write_table(path, pd.DataFrame({"a": [1]}))
    before = path.read_bytes()
    with pytest.raises(DiskFullError, match=f"disk: full while writing below {tiny_disk}; free some"):
        write_table(path, pd.DataFrame({"a": [os.urandom(4 << 20)]}))
    assert path.read_bytes() == before
    assert list(tiny_disk.iterdir()) == [path]


def test_a_full_disk_ends_a_stage_with_one_line(tiny_disk: Path) -> None:
    """Also where nothing of ours was writing, as a library that unpacks into the temporary folder."""
    script = f"""
import sys
from pathlib import Path
from components.command import run_stage
def stage(line):
    (Path({str(tiny_disk)!r}) / "spool").write_bytes(bytes(4 << 20))
sys.argv = ["stage", "--line", "head"]
run_stage("curate", "", stage)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.startswith("curate: disk: full")
    assert ran.stderr.count("\n") == 1
