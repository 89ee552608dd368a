"""A Ray that does not start here, or does not answer at RAY_ADDRESS: one line that says so, and nothing left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from components import cluster, nodes
from components.errors import PassingError, UserError

NO_GCS = (
    """Failed to start GCS.  Last 1 lines of error files:
[2026-11-28 01:10:39,615 C 11231 11231] (gcs_server) grpc_server.cc:134:  An unexpected system state has occurred.
You have likely discovered a bug. Check failed: server_ Failed to start the grpc server. The specified port is 45671.
.Please check /tmp/ray/logs/gcs_server.out for details. Last connection error: Traceback (most recent call last):
  File "node.py", line 1006, in _init_gcs_client
"""
    + 20 * "    client = GcsClient(address=self.gcs_address)\n"
)
NO_RAYLET = "The current node timed out during startup. This could happen because some of the raylet failed to startup"
SLEEP = "import time; time.sleep(600)"
SMALL_SHM = "The configured object store size (9.5 GB) exceeds /dev/shm size (0.06 GB). This will harm performance."


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    yield
    for child in psutil.Process().children():
        if SLEEP in child.cmdline():  # of a test that failed
            child.kill()


class Starts:
    """In the place of ``ray.init`` and ``ray.shutdown``: each start but those after the errors fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> None:
        self.errors, self.did, self.folders = list(errors), list[str](), list[Path]()
        self.children: list[subprocess.Popen[bytes]] = []
        monkeypatch.setattr(ray, "init", self.init)
        monkeypatch.setattr(ray, "shutdown", lambda: self.did.append("shutdown"))

    def init(self, **options: Any) -> None:
        self.did.append("init")
        if "_temp_dir" in options:
            self.folders.append(Path(options["_temp_dir"]))
            logs = self.folders[-1] / f"session_2026-{len(self.did)}" / "logs"
            logs.mkdir(parents=True)
            (logs / "gcs_server.out").write_text("said")
            sleeps = [sys.executable, "-c", SLEEP, f"--session-dir={logs.parent}"]
            self.children.append(subprocess.Popen(sleeps))
        if self.errors:
            raise self.errors.pop(0)


def message(kind: type[UserError] = PassingError) -> str:
    with pytest.raises(UserError) as caught, cluster.ray_cluster(1):
        raise AssertionError("there is no Ray to work with")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    return str(caught.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError(NO_GCS), "Failed to start GCS. Failed to start the grpc server. The specified port is 45671"),
        (Exception(NO_RAYLET), NO_RAYLET),
        (TimeoutError("Timed out after 30 seconds while waiting for node to startup."), "Timed out after 30 seconds"),
        (ConnectionError("Could not read 'CLUSTER_METADATA' from GCS."), "Could not read 'CLUSTER_METADATA' from GCS"),
        (ray.exceptions.RpcError("Deadline Exceeded", rpc_code=4), "Deadline Exceeded"),
    ],
)
def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    starts = Starts(monkeypatch, error, error)
    line = message()
    assert line.startswith(f"Ray did not start on this machine, tried twice: {said}")
    assert line.endswith("its logs are in .ctfoundry/ray-logs; free memory, processors and /dev/shm and try again, or "
                         "set RAY_ADDRESS=<a cluster>")  # fmt: skip
    assert len(list(cluster.LOGS.glob("session_*/gcs_server.out"))) == 2
    assert not starts.folders[0].exists()
    assert starts.did[:3] == ["init", "shutdown", "init"]


def test_a_second_start_finds_nothing_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray forgets the processes of a start that failed."""
    starts = Starts(monkeypatch, Exception(NO_RAYLET))
    with cluster.ray_cluster(1):
        first, second = starts.children
        assert not psutil.pid_exists(first.pid)
        assert second.poll() is None
    second.kill()
    second.wait()
    assert starts.did == ["init", "shutdown", "init", "shutdown"]
    assert not cluster.LOGS.exists()


def test_what_a_second_start_would_find_again_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch, ValueError(SMALL_SHM))
    assert message(UserError).startswith(f"Ray did not start on this machine: {SMALL_SHM[:-1]}; its logs")
    assert starts.did.count("init") == 1


def test_an_interrupt_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch)
    starts.errors = [KeyboardInterrupt()]  # type: ignore[list-item]
    with pytest.raises(KeyboardInterrupt), cluster.ray_cluster(1):
        pass
    assert not psutil.pid_exists(starts.children[0].pid)
    assert not starts.folders[0].exists()


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where something listens that is no Ray, or one that is too busy to answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", there)
        yield there


def not_connected(cause: Exception) -> Exception:
    """As Ray chains them."""
    error = ConnectionError("Failed to connect to Ray cluster at 127.0.0.1:6379")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ray.exceptions.AuthenticationError("Token is wrong."), UserError, "Token is wrong.*; has it a token?"),
        (not_connected(RuntimeError("Version mismatch: Ray: 2.9.0")), UserError,
         "Failed to connect to Ray cluster at 127.0.0.1:6379: Version mismatch: Ray: 2.9.0; has it a token?"),
        (TimeoutError(), PassingError, "TimeoutError; try again when it is less busy"),
        (RuntimeError("No node info found"), PassingError, "No node info found; try again"),
        (Exception("Head node temp_dir not found in NodeInfo"), PassingError, "Head node temp_dir not found in"),
        (ray.exceptions.RpcError("Deadline Exceeded", rpc_code=4), PassingError, "Deadline Exceeded; try again"),
        (ValueError("Malformed address"), UserError, "Malformed address; try again"),
    ],
)  # fmt: skip
def test_a_cluster_that_does_not_answer_is_one_line(
    monkeypatch: pytest.MonkeyPatch, address: str, error: Exception, kind: type[UserError], said: str
) -> None:
    starts = Starts(monkeypatch, error)
    line = message(kind)
    before, _, after = said.partition(".*")
    assert line.startswith(f"RAY_ADDRESS '{address}': {before}".removesuffix("."))
    assert after in line
    assert nodes.ITS_LOGS in line
    assert starts.did == ["init", "shutdown"], "once: whose the cluster is, is to see to it"


def test_a_node_that_dies_when_asked_is_one_line(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    Starts(monkeypatch)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "NodeID": "ab" * 28, "Resources": {"CPU": 1.0}}])

    def dies(*_: Any, **__: Any) -> None:
        raise ray.exceptions.TaskUnschedulableError("The node specified via NodeAffinitySchedulingStrategy is gone.")

    monkeypatch.setattr(ray, "get", dies)
    monkeypatch.setattr(ray, "remote", lambda **_: lambda function: Task())
    assert message().startswith(f"RAY_ADDRESS '{address}': a node did not answer: The task is not schedulable")
    assert not list(Path(".ctfoundry").glob("seen-*"))


class Task:
    def options(self, **_: Any) -> Task:
        return self

    def remote(self, *_: Any) -> None:
        """Nothing is asked."""
