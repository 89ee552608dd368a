"""Whatever befalls a training run, it ends in the same bytes: killed, short of a worker, a node or room on the disk."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pretrain_project import wait_for_checkpoint, write_project

from components.files import sha256_tree

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY = 150, 15


COMMAND = [sys.executable, "-m", "components.pretrain", "--line", "wholebody"]


def start(project: Path, **variables: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.Popen(COMMAND, cwd=project, env=environment, stderr=subprocess.PIPE, text=True)


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
def test_a_run_with_more_failures_than_are_tolerated_at_a_time_goes_on(undisturbed: str, tmp_path: Path) -> None:
    """Four workers die, one after the other, each after a new checkpoint: weeks on a cluster in a minute."""
    project = write_project(tmp_path, "wholebody", **CHANGES)
    process = start(project)
    assert process.stderr is not None
    said = ""
    for death in range(4):
        said += at_step(process.stderr, (2 * death + 2) * EVERY + 3)
        wait_for_checkpoint(project / ".ctfoundry/runs", process)
        workers = [pid for pid in descendants(process.pid) if "TrainWorker" in names(pid)]
        kill(workers[-1:])
    _, log = process.communicate(timeout=600)
    assert process.returncode == 0, log
    assert "there are new checkpoints: going on" in said + log
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


FULL_DISK = """
set -e
mkdir -p .ctfoundry/runs
mount -t tmpfs -o size=40m tmpfs .ctfoundry/runs
{command} 2> first.log & run=$!
until cat .ctfoundry/runs/*/checkpoint_manager_snapshot.json 2>/dev/null | grep -q checkpoint_00; do
    kill -0 $run; sleep 0.1
done
cat /dev/zero > .ctfoundry/runs/filler 2>/dev/null || true
if wait $run; then echo "ended well on a full disk"; exit 1; fi
find .ctfoundry/runs -type d -name 'checkpoint_*' -empty | (! grep .)
rm .ctfoundry/runs/filler
{command} 2> second.log
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_next_run_goes_on(undisturbed: str, tmp_path: Path) -> None:
    project = write_project(tmp_path, "wholebody", **CHANGES)
    own_mounts = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*own_mounts, "mount -t tmpfs tmpfs /mnt"], capture_output=True).returncode:
        pytest.skip("this machine does not let a process mount a small disk of its own (unshare --user --mount)")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    script = FULL_DISK.format(command=shlex.join(COMMAND))
    result = subprocess.run([*own_mounts, script], cwd=project, env=environment, capture_output=True, text=True)
    first, second = ((project / f"{name}.log").read_text() for name in ("first", "second"))
    assert result.returncode == 0, first + second + result.stdout + result.stderr
    last = first.splitlines()[-1]
    assert last.startswith("pretrain: disk: full while writing below ")
    assert last.endswith("free some and run again: what is finished is kept")
    assert "Traceback" not in first
    resumed_at(second)
    assert sha256_tree(project / "data/wholebody/pretrain") == undisturbed


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A Ray cluster of two nodes with room for one worker each; and the second node."""
    from ray.cluster_utils import Cluster

    room = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=room | {"include_dashboard": False})
    try:
        yield cluster, room, cluster.add_node(**room)
    finally:
        cluster.shutdown()


def at_step(lines: Iterator[str], step: int) -> str:
    """Read on until the run is at ``step`` or later; what was read."""
    read = ""
    for line in lines:
        read += line
        if "step " in line and "/" in line and int(line.split("step ")[1].split("/")[0].split()[0]) >= step:
            return read
    pytest.fail(f"the run ended before step {step}")


@pytest.mark.slow
def test_a_node_that_is_lost_is_waited_for(undisturbed: str, tmp_path: Path) -> None:
    project = write_project(tmp_path, "wholebody", **CHANGES)
    with two_nodes() as (cluster, room, second):
        process = start(project, RAY_ADDRESS=cluster.address, GLOO_SOCKET_IFNAME="lo")
        wait_for(process, 2 * EVERY + 5, project / ".ctfoundry/runs")
        cluster.remove_node(second, allow_graceful=False)
        time.sleep(5)
        assert process.poll() is None, "it waits"
        cluster.add_node(**room)
        _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    resumed_at(log)
    assert sha256_tree(project / "data/wholebody/pretrain") == undisturbed


@pytest.mark.slow
def test_an_elastic_run_goes_on_with_one_worker_and_takes_the_second_again(tmp_path: Path) -> None:
    steps = 1500
    project = write_project(tmp_path, "wholebody", **CHANGES | {"workers": [1, 2], "steps": steps, "log_every": 5})
    with two_nodes() as (cluster, room, second):
        process = start(project, RAY_ADDRESS=cluster.address, GLOO_SOCKET_IFNAME="lo")
        wait_for(process, 2 * EVERY + 5, project / ".ctfoundry/runs")
        cluster.remove_node(second, allow_graceful=False)
        assert process.stderr is not None
        for line in process.stderr:
            if "resuming" in line:
                break
        at_step(process.stderr, int(line.split("at step ")[1].split()[0]) + 2 * EVERY)
        cluster.add_node(**room)
        _, log = process.communicate(timeout=1200)
    assert process.returncode == 0, log
    history = pd.read_csv(project / "data/wholebody/pretrain/history.csv")
    counts = history["workers"].tolist()
    assert [n for n, before in zip(counts, [0, *counts], strict=False) if n != before] == [2, 1, 2]
    assert set(history["batch"]) == {2}
    assert history["step"].tolist() == [1, *range(5, steps + 1, 5)], "no step is lost or done twice"
