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


def names(pid: int) -> str:
    """The command line of a process, or nothing where it is gone."""
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_for(process: subprocess.Popen[str], step: int, runs: Path) -> None:
    """Wait for the line of ``step`` and for a checkpoint that counts."""
    assert process.stderr is not None
    for line in process.stderr:
        if f"step {step}/" in line:
            break
    else:
        pytest.fail(f"the run ended with {process.wait()} before step {step}")
    wait_for_checkpoint(runs, process)


def kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def resumed_at(log: str) -> int:
    """The step that the run says it went on from."""
    step = int(log.split("resuming from the checkpoint at step ")[1].split()[0])
    assert 0 < step < STEPS
    assert step % EVERY == 0
    return step


CHANGES = {"workers": 2, "steps": STEPS, "checkpoint_every": EVERY}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Hash of the outputs of a run that nothing befell."""
    project = write_project(tmp_path_factory.mktemp("undisturbed"), "wholebody", **CHANGES)
    _, log = (process := start(project)).communicate(timeout=300)
    assert process.returncode == 0, log
    assert "resuming" not in log
    return sha256_tree(project / "data/wholebody/pretrain")


@pytest.mark.slow
def test_killed_and_resumed_is_byte_identical_to_undisturbed(undisturbed: str, tmp_path: Path) -> None:
    killed = write_project(tmp_path, "wholebody", **CHANGES)
    process = start(killed)
    wait_for(process, 2 * EVERY + 5, killed / ".ctfoundry/runs")
    kill(descendants(process.pid))
    assert process.stderr is not None
    process.stderr.close()
    process.wait()
    assert not (killed / "data/wholebody/pretrain").exists(), "nothing is half-finished in the outputs' place"
    assert list((killed / ".ctfoundry/runs").iterdir())
    time.sleep(1)
    _, log = (process := start(killed)).communicate(timeout=300)
    assert process.returncode == 0, log
    resumed_at(log)
    assert sha256_tree(killed / "data/wholebody/pretrain") == undisturbed
    assert not list((killed / ".ctfoundry/runs").iterdir()), "resume state is dropped after success"


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_the_weights_are_the_same(undisturbed: str, tmp_path: Path) -> None:
    project = write_project(tmp_path, "wholebody", **CHANGES)
    process = start(project)
    wait_for(process, 2 * EVERY + 5, project / ".ctfoundry/runs")
    workers = [pid for pid in descendants(process.pid) if "ray::" in names(pid) and "TrainWorker" in names(pid)]
    assert len(workers) == 2, [names(pid) for pid in descendants(process.pid)]
    kill(workers[1:])
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    resumed_at(log)
    assert sha256_tree(project / "data/wholebody/pretrain") == undisturbed


@pytest.mark.slow
def test_a_checkpoint_that_was_cut_short_is_not_read(undisturbed: str, tmp_path: Path) -> None:
    """What Ray was still copying when it was killed: not in the run's snapshot, so that the one before it counts."""
    killed = write_project(tmp_path, "wholebody", **CHANGES)
    process = start(killed)
    runs = killed / ".ctfoundry/runs"
    wait_for(process, 2 * EVERY + 5, runs)
    kill(descendants(process.pid))
    assert process.stderr is not None
    process.stderr.close()
    process.wait()
    kept = sorted(runs.rglob("checkpoint_*/state.pt"))
    later = kept[-1].parent.with_name("checkpoint_2099-01-01_00-00-00.000000")
    later.mkdir()
    (later / "state.pt").write_bytes(kept[-1].read_bytes()[:1000])
    _, log = (process := start(killed)).communicate(timeout=300)
    assert process.returncode == 0, log
    resumed_at(log)
    assert sha256_tree(killed / "data/wholebody/pretrain") == undisturbed
