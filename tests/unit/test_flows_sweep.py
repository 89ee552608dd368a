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
