"""Killed in the middle and started again, a training run ends in the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pretrain_project import wait_for_checkpoint, write_project

from components.files import sha256_tree

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY = 150, 15


def start(project: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "components.pretrain", "--line", "wholebody"]
    return subprocess.Popen(command, cwd=project, env=environment, stderr=subprocess.PIPE, text=True)


def descendants(pid: int) -> list[int]:
    """The process and all below it, read from /proc."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents.setdefault(parent, []).append(int(folder.name))
    found = [pid]
    for process in found:
        found += parents.get(process, [])
    return found


def kill_at(process: subprocess.Popen[str], step: int, runs: Path) -> None:
    """Wait for the line of ``step`` and for a checkpoint that counts, then kill -9 the driver and all below it."""
    assert process.stderr is not None
    for line in process.stderr:
        if f"step {step}/" in line:
            break
    else:
        pytest.fail(f"the run ended with {process.wait()} before step {step}")
    wait_for_checkpoint(runs, process)
    for pid in descendants(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.stderr.close()
    process.wait()


@pytest.mark.slow
def test_killed_and_resumed_is_byte_identical_to_undisturbed(tmp_path: Path) -> None:
    changes = {"workers": 2, "steps": STEPS, "checkpoint_every": EVERY}
    undisturbed = write_project(tmp_path / "undisturbed", "wholebody", **changes)
    _, log = (process := start(undisturbed)).communicate(timeout=300)
    assert process.returncode == 0, log
    assert "resuming" not in log

    killed = write_project(tmp_path / "killed", "wholebody", **changes)
    kill_at(start(killed), 2 * EVERY + 5, killed / ".ctfoundry/runs")
    assert not (killed / "data/wholebody/pretrain").exists(), "nothing is half-finished in the outputs' place"
    assert list((killed / ".ctfoundry/runs").iterdir())
    time.sleep(1)
    _, log = (process := start(killed)).communicate(timeout=300)
    assert process.returncode == 0, log
    step = int(log.split("resuming from the checkpoint at step ")[1].split()[0])
    assert 0 < step < STEPS
    assert step % EVERY == 0

    assert sha256_tree(killed / "data/wholebody/pretrain") == sha256_tree(undisturbed / "data/wholebody/pretrain")
    assert not list((killed / ".ctfoundry/runs").iterdir()), "resume state is dropped after success"
