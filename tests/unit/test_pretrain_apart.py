"""Volumes of a bucket, and a node's copies of them. The S3 itself is in tests/integration/test_cluster_apart.py."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pyarrow.fs
import pytest

from components.errors import UserError
from components.pretrain.apart import CACHE, CACHE_GB, STORAGE, Bucket, Distant, check_cache, here


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A folder in the place of S3; copies of this node go to ``cache``."""
    (tmp_path / "s3").mkdir()
    files = pyarrow.fs.SubTreeFileSystem(str(tmp_path / "s3"), pyarrow.fs.LocalFileSystem())
    monkeypatch.setattr(Bucket, "files", lambda self: files)
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    (tmp_path / "s3" / "b" / "lines" / "volumes").mkdir(parents=True)
    return Bucket("s3://b/lines")


def volume(tmp_path: Path, content: bytes) -> tuple[Path, str]:
    digest = hashlib.sha256(content).hexdigest()
    path = tmp_path / f"{digest[:8]}.b2nd"
    path.write_bytes(content)
    return path, digest


def test_a_volume_is_sent_once_and_fetched_when_it_is_wanted(bucket: Bucket, tmp_path: Path) -> None:
    path, digest = volume(tmp_path, b"voxels")
    bucket.send_all([path], [digest])
    stored = tmp_path / "s3" / "b" / "lines" / "volumes" / digest
    before = stored.stat().st_mtime_ns
    bucket.send_all([path], [digest])
    assert stored.stat().st_mtime_ns == before
    place = Distant(bucket, digest, path.name)
    assert not (tmp_path / "cache").exists()
    assert here(place).read_bytes() == b"voxels"
    stored.unlink()
    assert here(place).read_bytes() == b"voxels", "this node has a copy"
    assert here(path) == path, "a volume of this machine is where it is"


def test_what_is_not_the_file_of_its_digest_is_no_copy(bucket: Bucket, tmp_path: Path) -> None:
    path, digest = volume(tmp_path, b"voxels")
    bucket.send_all([path], [digest])
    (tmp_path / "s3" / "b" / "lines" / "volumes" / digest).write_bytes(b"others")
    with pytest.raises(OSError, match="not the file of that digest"):
        here(Distant(bucket, digest, path.name))
    assert list((tmp_path / "cache").iterdir()) == []


def test_beyond_the_bound_what_was_not_wanted_for_longest_goes(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_GB, "2e-8")  # 20 bytes
    places = []
    for number in range(3):
        path, digest = volume(tmp_path, bytes([number]) * 15)
        bucket.send_all([path], [digest])
        places.append(Distant(bucket, digest, path.name))
    for age, place in zip((200, 100), places, strict=False):
        os.utime(here(place), (age, age))
    here(places[0])  # wanted again
    os.utime(tmp_path / "cache" / places[1].sha256, (100, 100))
    here(places[2])
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {places[0].sha256, places[2].sha256}


def test_a_run_that_is_over_leaves_its_volumes_only(bucket: Bucket, tmp_path: Path) -> None:
    run = tmp_path / "s3" / "b" / "lines" / "runs" / "wholebody-1"
    for step in (10, 20):
        (run / f"checkpoint_{step:09d}").mkdir(parents=True)
        (run / f"checkpoint_{step:09d}" / "state.pt").touch()
    (run / "checkpoint_000000030").mkdir()  # begun, and not written
    assert bucket.newest("wholebody-1", "state.pt") == "checkpoint_000000020"
    assert bucket.newest("wholebody-2", "state.pt") == ""
    bucket.forget("wholebody-1")
    bucket.forget("wholebody-2")
    assert not run.exists()
    assert (tmp_path / "s3" / "b" / "lines" / "volumes").is_dir()


def test_encoders_that_were_kept_on_the_way_come_here(bucket: Bucket, tmp_path: Path) -> None:
    run = tmp_path / "wholebody-1"
    bucket.candidates_to(run)
    assert not run.exists()
    path, _ = volume(tmp_path, b"weights")
    bucket.files().create_dir("b/lines/runs/wholebody-1/candidates")
    bucket.send(path, "runs/wholebody-1/candidates/000000010.safetensors")
    bucket.candidates_to(run)
    assert (run / "candidates" / "000000010.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("wrong", ["ct-training", "s3://", "s3:///", "/mnt/share", "gs://bucket"])
def test_another_address_is_one_line(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORAGE, wrong)
    with pytest.raises(UserError, match=rf"^{STORAGE} '{wrong.rstrip('/')}' is not allowed: s3://bucket/prefix$"):
        Bucket.from_environment()


def test_settings_of_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STORAGE, raising=False)
    assert Bucket.from_environment() is None
    monkeypatch.setenv(STORAGE, "s3://b/lines/")
    assert Bucket.from_environment() == Bucket("s3://b/lines", None)
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    for wrong in ("much", "0", "-1", "nan", "inf"):
        monkeypatch.setenv(CACHE_GB, wrong)
        with pytest.raises(
            UserError, match=rf"^RAY_ADDRESS: node \S+: {CACHE_GB} '{wrong}' is not allowed: gigabytes above 0$"
        ):
            check_cache()
    monkeypatch.setenv(CACHE_GB, "1.5")
    check_cache()
    assert not list((tmp_path / "cache").iterdir())
    monkeypatch.setenv(CACHE, "/proc/none")
    with pytest.raises(UserError, match=rf"^RAY_ADDRESS: node \S+: {CACHE}: /proc/none: "):
        check_cache()
