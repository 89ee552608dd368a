"""Room for raw files: what a shard may evict, and what two runs on one disk owe each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.errors import UserError
from components.sources import raw
from tests.released import ROOT

LINE = "wholebody"


def put(name: str, size: int, done: bool = True) -> Path:
    folder = raw.RAW / name
    folder.mkdir(parents=True)
    (folder / "0.dcm").write_bytes(bytes(size))
    if done:
        (folder / raw.PREPROCESSED).touch()
    return folder


def test_what_was_not_preprocessed_is_never_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(raw.BUDGET_VARIABLE, str(2500 / 1e9))
    done, waiting = put("head/s1-a", 1000), put("head/s2-a", 1000, done=False)
    with raw.reserved({raw.RAW / LINE / "s3-a": 1000}):
        assert not done.exists(), "nobody waits for it"
        assert waiting.exists()
    message = (
        r"0\.00 GB more .* of head still wait for `preprocess` and are not evicted: go shard by shard, as `ctfoundry"
    )
    with pytest.raises(UserError, match=message), raw.reserved({raw.RAW / LINE / "s3-a": 2000}):
        pass
    assert waiting.exists()


OTHER_RUN = """
import sys, time
from pathlib import Path
from components.sources import raw
with raw.reserved({raw.RAW / "head" / "s1-a": 1000}):
    print("ready", flush=True)
    sys.stdin.readline()
"""


def test_two_runs_never_evict_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines, checkouts' twins and hosts that share the folder: what one uses is the other's not to take."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(raw.BUDGET_VARIABLE, str(2500 / 1e9))
    used, partial = put("head/s1-a", 1000), raw.RAW / "head" / ".s1-a.otherhost.0123.partial"
    stale = raw.RAW / "head" / ".s9-a.otherhost.0123.partial"
    stale.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", OTHER_RUN]
    run = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert run.stdin is not None
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    os.utime(used, (1, 1))
    partial.mkdir()
    ours = {raw.RAW / LINE / "s3-a": 2000}
    with pytest.raises(UserError, match="in use by another run: wait for it"), raw.reserved(ours):
        pass
    with raw.reserved({raw.RAW / LINE / "s3-a": 1000}):
        assert used.exists()
        assert partial.exists()
        assert not stale.exists(), "its run is gone"
    theirs = {raw.RAW / "head" / "s1-a": 0, raw.RAW / "head" / "s4-a": 0}
    with pytest.raises(UserError, match="1 series of the shard are at work in another run"), raw.reserved(theirs):
        pass
    run.kill()
    run.wait()
    with raw.reserved(ours):
        assert not used.exists(), "a run that was killed holds nothing"
    assert not list(raw.RAW.glob(".*.use"))


def test_two_runs_count_each_others_bytes_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(raw.BUDGET_VARIABLE, str(2500 / 1e9))
    with raw.reserved({raw.RAW / "head" / "s1-a": 2000}):
        with pytest.raises(UserError, match="in use by another run"), raw.reserved({raw.RAW / LINE / "s3-a": 1000}):
            pass
        with raw.reserved({raw.RAW / LINE / "s3-a": 400}):
            pass


def test_what_another_run_has_of_a_series_is_not_counted_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(raw.BUDGET_VARIABLE, str(1500 / 1e9))
    with raw.reserved({raw.RAW / "head" / "s1-a": 1000}):
        put("head/.s1-a.otherhost.0123.partial", 900, done=False)
        with raw.reserved({raw.RAW / LINE / "s3-a": 100}):
            pass
        with pytest.raises(UserError, match="in use by another run"), raw.reserved({raw.RAW / LINE / "s3-a": 501}):
            pass


def test_the_disk_keeps_room_for_the_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(raw, "_free", lambda: 1500)
    with raw.reserved({raw.RAW / LINE / "s3-a": 700}):
        pass
    with pytest.raises(UserError, match="for the shard and its volumes"), raw.reserved({raw.RAW / LINE / "s3-a": 800}):
        pass


def test_another_version_of_a_series_goes_when_the_new_one_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    old, other = put(f"{LINE}/s1-a", 10, done=False), put(f"{LINE}/s2-a", 10, done=False)
    with raw.reserved({raw.RAW / LINE / "s1-b": 10}):
        assert not old.exists()
        assert other.exists()
