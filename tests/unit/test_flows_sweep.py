"""Which folders a sweep takes for those of dead runs: nobody's checkout, and no run's that lives or begins."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from flows import sweep
from flows.lock import LOCK
from flows.sweep import YOUNG_SECONDS, _end_within, dead_workspaces

ORIGIN = "/somewhere/team.git"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def workspace(origin: str = ORIGIN, locked: bool = True, old: bool = False) -> Path:
    folder = Path(tempfile.mkdtemp(suffix="prefect"))  # as Prefect's worker
    clone = folder / "ctfoundry"
    clone.mkdir()
    for arguments in (["init", "-q"], ["remote", "add", "origin", origin]):
        subprocess.run(["git", *arguments], cwd=clone, check=True)
    if locked:
        (clone / LOCK).parent.mkdir()
        (clone / LOCK).touch()
    if old:
        then = time.time() - 2 * YOUNG_SECONDS
        os.utime(clone, (then, then))
        os.utime(folder, (then, then))
    return folder


def test_a_workspace_whose_lock_nobody_holds_is_dead(temporary: Path) -> None:
    dead = workspace()
    living = workspace()
    workspace(origin="/somewhere/else.git")
    workspace(locked=False)
    somebodys = temporary / "tmp_of_us_prefect"
    dead.rename(somebodys)  # no name that Python gives
    dead = workspace()
    killed_early = workspace(locked=False, old=True)
    with (living / "ctfoundry" / LOCK).open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert set(dead_workspaces(ORIGIN)) == {dead, killed_early}
    assert set(dead_workspaces(ORIGIN)) == {dead, killed_early, living}


def test_a_run_that_has_just_begun_is_not_taken_for_dead(temporary: Path) -> None:
    """Between the making of its lock file and the lock, it holds none."""
    folder = workspace() / "ctfoundry"
    wait = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(wait, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        run.stdout.readline()
        assert not set(dead_workspaces(ORIGIN))
        (folder / LOCK).write_text("the run that was killed, and what it has left running\n")
        assert set(dead_workspaces(ORIGIN)) == {folder.parent}
        run.communicate(b"\n", timeout=30)


def test_what_still_runs_in_a_dead_workspace_is_ended_and_nothing_else(temporary: Path) -> None:
    dead = workspace()
    wait = [sys.executable, "-c", "print(flush=True); input()"]
    left, ours = (
        subprocess.Popen(wait, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for folder in (dead / "ctfoundry", temporary)
    )
    for process in (left, ours):
        assert process.stdout is not None
        process.stdout.readline()
    _end_within(dead)
    assert not psutil.pid_exists(left.pid)
    assert psutil.Process(ours.pid).is_running()
    ours.communicate(b"\n", timeout=30)


def test_what_was_half_written_goes_an_hour_later_and_nothing_else(temporary: Path) -> None:
    state, now = temporary / "state", time.time()
    ours = "0123456789abcdef0123456789abcdef"
    half = [
        state / "published" / "head" / f".v0.0.1.host.{ours}.partial" / "report.html",
        state / "volumes" / f".volume.b2nd.host.{ours}.partial",
        state / "volumes" / f".s1.a.host.name.{ours}.old" / "row.json",
        state / "cache" / "files" / "md5" / "00" / ".Zx9-_bcdefghijklmnopqr.tmp",
        state / "cache" / "runs" / "aa" / "bb" / "cc.Zx9-_bcdefghijklmnopqr.tmp",
    ]
    whole = [state / "published" / "head" / "v0.0.1" / "report.html", state / "volumes" / "a.partial", state / "x.tmp"]
    for path in (*half, *whole):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = {next(p for p in (path, path.parent) if p.name[0] == "." or p.name.endswith(".tmp")) for path in half}
    assert set(sweep._half_written(state)) == found
    assert not any(sweep._is_old(path) for path in found)
    for path in found:
        os.utime(path, (now - 2 * YOUNG_SECONDS,) * 2)
    sweep._remove_half_written(state)
    assert sorted(path for path in state.rglob("*") if path.is_file()) == sorted(whole)


def test_rays_folder_is_found_where_tmpdir_is_too_long_for_its_sockets(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(sweep, "RAYS_PLACES", (str(elsewhere),))
    rays = Path(tempfile.mkdtemp(prefix="ray-", dir=elsewhere))
    rays.chmod(0o777)  # as Ray does
    tempfile.mkdtemp(prefix="ctfoundry-run-", dir=elsewhere)  # not where we put it
    (elsewhere / "ray-12345678").symlink_to(temporary)
    (temporary / "ctfoundry-run-12345678").mkdir(mode=0o755)  # not as we make it
    assert sweep._temporary(sweep.OTHERS) == [rays]
