"""Training on a cluster whose nodes share nothing: two network namespaces, each node without this checkout's code and
data, volumes and checkpoints in a bucket (moto's S3), and a token."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from pretrain_project import write_project
from test_pretrain_resume import CHANGES, COMMAND, EVERY, at_step, resumed_at

from components.files import sha256_tree
from tests.released import ROOT, free_port
from tests.s3 import S3, SIGNED

HEAD, SECOND, OUTSIDE = "10.77.91.1", "10.77.91.2", "10.77.91.254"
TOKEN = "0123456789abcdef0123456789abcdef"
BUCKET = "training"
HEAD_S, CLUSTER_S = 300, 900
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces of a network are made by root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="ip is not on the PATH: apt-get install iproute2"),
]


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


@pytest.fixture(scope="module")
def network() -> Iterator[dict[str, str]]:
    """Address of each node to the name of its namespace; a bridge joins them with the bucket's server outside."""
    bridge, spaces = f"ctfb{os.getpid() % 10000}", {HEAD: f"ctfa{os.getpid()}", SECOND: f"ctfc{os.getpid()}"}
    try:
        _ip(f"link add {bridge} type bridge")
        _ip(f"addr add {OUTSIDE}/24 dev {bridge}")
        _ip(f"link set {bridge} up")
        for number, (address, space) in enumerate(spaces.items()):
            ours, theirs = f"{bridge}{number}", f"{bridge}{number}n"
            _ip(f"netns add {space}")
            _ip(f"link add {ours} type veth peer name {theirs}")
            _ip(f"link set {ours} master {bridge} up")
            _ip(f"link set {theirs} netns {space} name eth0")
            _ip(f"-n {space} addr add {address}/24 dev eth0")
            _ip(f"-n {space} link set eth0 up")
            _ip(f"-n {space} link set lo up")
    except subprocess.CalledProcessError as error:
        _remove(bridge, spaces)
        pytest.skip(f"this machine does not let root make a network of its own: {error.stderr.decode().strip()}")
    yield spaces
    _remove(bridge, spaces)


def _remove(bridge: str, spaces: dict[str, str]) -> None:
    for words in (f"link del {bridge}", *(f"netns del {space}" for space in spaces.values())):
        subprocess.run(["ip", *words.split()], check=False, capture_output=True)


@pytest.fixture(scope="module")
def bucket(network: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    server = S3(tmp_path_factory.mktemp("s3"), host=OUTSIDE)
    try:
        httpx.put(f"{server.url}/{BUCKET}", headers=SIGNED).raise_for_status()
        yield server
    finally:
        server.stop()


class Nodes:
    """A head and a second node, each in a namespace of its own; the second sees neither code nor data."""

    def __init__(self, spaces: dict[str, str], folder: Path, hidden: Path) -> None:
        self.spaces, self.folder, self.hidden, self.port = spaces, folder, hidden, free_port()
        self._started: list[subprocess.Popen[bytes]] = []
        self._add(HEAD, "--head", f"--port={self.port}", "--include-dashboard=false", f"--temp-dir={folder}")
        self.second = self.add_second()

    @property
    def environment(self) -> dict[str, str]:
        """Of whoever works there: credentials and token, and no setting of ours."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "CTFOUNDRY_", "AWS_", "PYTHONPATH"))}
        return kept | {
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "HOME": str(self.folder),
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    def within(self, address: str, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.spaces[address], *command]

    def add_second(self, **settings: str) -> subprocess.Popen[bytes]:
        return self._add(SECOND, f"--address={HEAD}:{self.port}", **settings)

    def _add(self, address: str, *options: str, **settings: str) -> subprocess.Popen[bytes]:
        node = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--memory=1600000000",
                "--object-store-memory=80000000", f"--node-ip-address={address}", *options]  # fmt: skip
        hide = 'for f in "$1" "$2"; do mount -t tmpfs none "$f" || exit 9; done; shift 2; exec "$@"'
        blind = ["unshare", "--mount", "sh", "-c", hide, "sh", str(ROOT / "components"), str(self.hidden)]
        command = self.within(address, *(node if address == HEAD else [*blind, *node]))
        own = self.environment | {"CTFOUNDRY_NODE_CACHE": str(self.folder / f"cache-{address}")} | settings
        with (self.folder / f"{address}-{len(self._started)}.log").open("wb") as log:
            started = subprocess.Popen(command, env=own, cwd="/", stdout=log, stderr=log, start_new_session=True)
        self._started.append(started)
        if address == HEAD:
            self._wait_for_head(started)
        return started

    def _wait_for_head(self, head: subprocess.Popen[bytes]) -> None:
        reach = f"import socket; socket.create_connection(('{HEAD}', {self.port}), 1)"
        deadline = time.monotonic() + HEAD_S
        while head.poll() is None and time.monotonic() < deadline:
            probe = self.within(HEAD, sys.executable, "-c", reach)
            if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.5)
        pytest.fail((self.folder / f"{HEAD}-0.log").read_text()[-2000:])

    def lose(self, node: subprocess.Popen[bytes]) -> None:
        """The machine is gone, with all that ran there."""
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()
        self._kill_all(self.spaces[SECOND])

    @staticmethod
    def _kill_all(space: str) -> None:
        listed = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False)
        for pid in listed.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def stop(self) -> None:
        for node in reversed(self._started):
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGTERM)
        for space in self.spaces.values():
            time.sleep(2)
            self._kill_all(space)

    def pretrain(self, project: Path, bucket: S3, **variables: str) -> subprocess.Popen[str]:
        """The stage, on the head's machine, where the checkout is."""
        own = {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": f"{HEAD}:{self.port}", "AWS_ENDPOINT_URL": bucket.url,
               "CTFOUNDRY_TRAIN_STORAGE": f"s3://{BUCKET}/lines", "GLOO_SOCKET_IFNAME": "eth0"}  # fmt: skip
        return subprocess.Popen(
            self.within(HEAD, *COMMAND), cwd=project, env=self.environment | own | variables,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("projects")


@pytest.fixture(scope="module")
def nodes(network: dict[str, str], projects: Path) -> Iterator[Nodes]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short, for the sockets' sake
    made = Nodes(network, folder, projects)
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def here(projects: Path) -> str:
    """What one machine makes of the project."""
    project = write_project(projects / "here", "wholebody", **CHANGES)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(COMMAND, cwd=project, env=environment, check=True, capture_output=True)
    return sha256_tree(project / "data/wholebody/pretrain")


def test_two_nodes_without_a_shared_folder_make_the_same_weights(
    nodes: Nodes, bucket: S3, projects: Path, here: str
) -> None:
    project = write_project(projects / "apart", "wholebody", **CHANGES)
    process = nodes.pretrain(project, bucket)
    _, log = process.communicate(timeout=CLUSTER_S)
    assert process.returncode == 0, log
    assert "step " in log, "what the workers say is heard here"
    assert sha256_tree(project / "data/wholebody/pretrain") == here
    for address in (HEAD, SECOND):
        kept = list((nodes.folder / f"cache-{address}").iterdir())
        assert kept, f"{address} has copies of its own"
    listed = httpx.get(f"{bucket.url}/{BUCKET}?list-type=2&prefix=lines/", headers=SIGNED).text
    assert "lines/volumes/" in listed
    assert "checkpoint_" not in listed, "what a run needs to go on goes with its end"


def test_a_node_that_is_lost_is_waited_for_and_the_weights_are_the_same(
    nodes: Nodes, bucket: S3, projects: Path, here: str
) -> None:
    project = write_project(projects / "lost", "wholebody", **CHANGES)
    process = nodes.pretrain(project, bucket)
    assert process.stderr is not None
    read = at_step(process.stderr, 2 * EVERY + 5)
    nodes.lose(nodes.second)
    time.sleep(5)
    assert process.poll() is None, "it waits"
    nodes.second = nodes.add_second()
    _, log = process.communicate(timeout=CLUSTER_S)
    assert process.returncode == 0, read + log
    resumed_at(log)
    assert sha256_tree(project / "data/wholebody/pretrain") == here


def test_too_few_cores_are_a_line(nodes: Nodes, bucket: S3, projects: Path) -> None:
    project = write_project(projects / "many", "wholebody", **CHANGES | {"workers": 4, "volumes_per_step": 4})
    process = nodes.pretrain(project, bucket, CTFOUNDRY_TRAIN_ROOM_S="2")
    _, log = process.communicate(timeout=CLUSTER_S)
    assert process.returncode == 1
    said = "2 CPUs in the cluster, 4 wanted, one for each worker, also after 2 s (CTFOUNDRY_TRAIN_ROOM_S)"
    assert said in log.splitlines()[-1]


def test_a_wrong_setting_of_one_node_is_a_line(nodes: Nodes, bucket: S3, projects: Path) -> None:
    project = write_project(projects / "wrong", "wholebody", **CHANGES)
    nodes.lose(nodes.second)
    nodes.second = nodes.add_second(CTFOUNDRY_NODE_CACHE_GB="much")
    for _ in range(5):  # until the node that was lost no longer counts as there
        process = nodes.pretrain(project, bucket)
        _, log = process.communicate(timeout=CLUSTER_S)
        if process.returncode != 75:
            break
    nodes.lose(nodes.second)
    nodes.second = nodes.add_second()
    assert process.returncode == 1, log
    assert "CTFOUNDRY_NODE_CACHE_GB 'much' is not allowed: gigabytes above 0" in log.splitlines()[-1]
    assert "Traceback" not in log


def test_a_training_beyond_its_deadline_is_a_line(nodes: Nodes, bucket: S3, projects: Path) -> None:
    project = write_project(projects / "late", "wholebody", **CHANGES)
    process = nodes.pretrain(project, bucket, CTFOUNDRY_TRAIN_DEADLINE_S="1")
    _, log = process.communicate(timeout=CLUSTER_S)
    assert process.returncode == 75, "what may pass the next time"
    assert "training did not end within 1 s (CTFOUNDRY_TRAIN_DEADLINE_S)" in log.splitlines()[-1]
    assert "Traceback" not in log
