"""Ray where people run it: below odd folders, without a home, and on a cluster of several nodes whose workers have none
of this machine's settings in their own environment."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from components import cluster, nodes
from components.errors import UserError
from components.isolation import GIB, Deadline
from components.pretrain.ray_driver import START_S
from tests.released import ROOT, free_port

# Seconds, on two busy cores. A local Ray that misses its deadlines is started twice; a cluster's workers may take
# START_S to import torch, before the first step.
LOCAL_S, HEAD_S, CLUSTER_S = 600, 300, int(START_S) + 1200
SECRET = "a site's own secret, which nobody logs"
MAP = """
import sys
from components.cluster import map_on_ray
from components.command import run_stage
def double(x): return 2 * x
def main(line): print(map_on_ray(double, [1, 2], "try", memory=lambda x: 10**8, max_memory=2**30))
if __name__ == "__main__":
    sys.argv = ["preprocess", "--line", "head"]
    run_stage("preprocess", "", main)
"""


def mapped(
    folder: Path, before: tuple[str, ...] = (), interpreter: str = sys.executable, **variables: str
) -> subprocess.CompletedProcess[str]:
    """What the stage's map says in ``folder``."""
    script = folder / "probe.py"
    script.write_text(MAP)
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "TMPDIR"}
    environment = {**kept, "PYTHONPATH": str(ROOT), **variables}
    command = [*before, interpreter, str(script)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LOCAL_S)


@pytest.mark.slow
def test_below_a_path_with_a_space(tmp_path: Path) -> None:
    """Ray does not quote the interpreter (ray 5288, 33047)."""
    place = tmp_path / "my scans"
    place.mkdir()
    (place / "venv").symlink_to(Path(sys.prefix))
    ran = mapped(place, interpreter=str(place / "venv" / "bin" / "python"))
    assert "[2, 4]" in ran.stdout, ran.stderr[-2000:]


@pytest.mark.slow
def test_with_a_long_tmpdir_and_no_home(tmp_path: Path) -> None:
    """SLURM's TMPDIR is too long for sockets (ray 7724); HOME of nobody cannot be written (ray 14155)."""
    long = tmp_path / ("slurm_jobdir_1355700_" + "x" * 60)
    long.mkdir()
    ran = mapped(tmp_path, TMPDIR=str(long), HOME="/nonexistent")
    assert "[2, 4]" in ran.stdout, ran.stderr[-2000:]
    assert not Path("/nonexistent").exists(), "not even by root"


def test_no_short_folder_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.tempfile, "gettempdir", lambda: "/" + "x" * 90)
    monkeypatch.setattr(cluster.os, "access", lambda place, mode: False)
    with pytest.raises(UserError, match=r"^TMPDIR: /x+ is too long for Ray's sockets"):
        cluster._short_folder()


def test_a_short_folder_leaves_room_for_rays_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.tempfile, "gettempdir", lambda: "/" + "x" * 90)
    folder = cluster._short_folder()
    Path(folder).rmdir()
    assert len(folder) + cluster.IN_SESSION <= 107


def test_an_address_where_nothing_listens_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    begin = time.monotonic()
    with pytest.raises(UserError, match="no Ray answers there: Connection refused"), cluster.ray_cluster(1):
        pass
    assert time.monotonic() - begin < 30


def test_work_on_files_stays_here_where_nodes_share_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    monkeypatch.setenv("CTFOUNDRY_TRAIN_STORAGE", "s3://training/lines")
    assert cluster.map_on_ray(abs, [-3], "numbers", max_memory=GIB, memory=lambda _: GIB) == [3]


def settings_of(name: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key.startswith(name)}


def test_a_worker_has_the_drivers_settings_and_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {**os.environ, "CTFOUNDRY_ROOT_DICOM": "the node's own"})
    settings = {"CTFOUNDRY_PSEUDONYM_KEY": SECRET}
    assert (
        cluster._limited(settings_of, "CTFOUNDRY_", str(tmp_path), settings, GIB, Deadline(tmp_path / "mark", 60))
        == settings
    )


def test_a_node_without_the_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not see this checkout"):
        cluster._limited(settings_of, "", str(tmp_path / "elsewhere"), {}, GIB, Deadline(tmp_path / "mark", 60))


def test_a_task_asks_for_no_more_than_a_node_has(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    found = [{"Alive": alive, "Resources": {"memory": gib * GIB}} for alive, gib in ((True, 3), (True, 2), (False, 9))]
    monkeypatch.setattr(ray, "nodes", lambda: found)
    assert nodes.room_of_a_node() == 3 * GIB


# A cluster of two nodes.

TOKEN = "0123456789abcdef0123456789abcdef"


class TwoNodes:
    """Two Ray nodes on this machine, started as an administrator does, without any setting of ours."""

    def __init__(self, folder: Path) -> None:
        self.port, self.folder = free_port(), folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "CTFOUNDRY_"))}
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        self._environment = {**kept, **quiet, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._add("--head", f"--port={self.port}", "--include-dashboard=false", f"--temp-dir={folder}")
        self._add(f"--address={self.address}")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _add(self, *options: str) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1",
                   "--memory=1600000000", "--object-store-memory=80000000", "--node-ip-address=127.0.0.1",
                   "--min-worker-port=0", "--max-worker-port=0", *options]  # fmt: skip
        said = (self.folder / f"node{len(self._nodes)}.log").open("wb")
        self._nodes.append(
            subprocess.Popen(command, env=self._environment, cwd="/", stdout=said, stderr=said, start_new_session=True)
        )
        deadline = time.monotonic() + HEAD_S
        while len(self._nodes) == 1 and self._nodes[0].poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.5)

    def stop(self) -> None:
        for node in self._nodes:
            node.terminate()
        for node in self._nodes:
            try:
                node.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, 9)


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[TwoNodes]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short, for the sockets' sake
    nodes = TwoNodes(folder)
    try:
        yield nodes
    finally:
        nodes.stop()
        shutil.rmtree(folder, ignore_errors=True)


def driver(nodes: TwoNodes, folder: Path, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A script run beside the cluster, with settings in its own environment only."""
    path = folder / "driver.py"
    path.write_text(script)
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    known = {"RAY_ADDRESS": nodes.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    search = os.pathsep.join([str(folder), str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "integration")])
    environment = {**kept, **known, "PYTHONPATH": search, **variables}
    return subprocess.run(
        [sys.executable, str(path)], cwd=folder, env=environment, capture_output=True, text=True, timeout=CLUSTER_S
    )


SETTINGS = """
import os, sys, time
from components.cluster import map_on_ray
from components.ct.keys import patient_key
from components.command import run_stage
def asked(item):
    import ray
    time.sleep(3)
    return patient_key("X"), os.environ.get("CTFOUNDRY_IDC_ENDPOINT"), ray.get_runtime_context().get_node_id()
def main(line):
    # each asks for more than a node has beside it, and the last for more than any node has
    found = map_on_ray(asked, [1, 1, 4], "try", memory=lambda x: x * 10**9, max_memory=8 * 10**9)
    assert {f[0] for f in found} == {patient_key("X")}, "the same patient has the same name everywhere"
    assert {f[1] for f in found} == {"http://mirror.local:9000"}
    assert len({f[2] for f in found}) == 2, "both nodes work"
    print("same")
if __name__ == "__main__":
    sys.argv = ["preprocess", "--line", "head"]
    run_stage("preprocess", "", main)
"""


@pytest.mark.slow
def test_workers_of_two_nodes_have_this_machines_settings(two_nodes: TwoNodes, tmp_path: Path) -> None:
    variables = {"CTFOUNDRY_PSEUDONYM_KEY": SECRET, "CTFOUNDRY_IDC_ENDPOINT": "http://mirror.local:9000"}
    ran = driver(two_nodes, tmp_path, SETTINGS, **variables)
    assert ran.stdout.strip().endswith("same"), ran.stderr[-3000:]
    logs = [path for path in two_nodes.folder.rglob("*") if path.is_file() and "logs" in path.parts]
    assert logs
    assert not any(SECRET.encode() in path.read_bytes() for path in logs)


@pytest.mark.slow
def test_a_wrong_or_missing_token_is_one_line(two_nodes: TwoNodes, tmp_path: Path) -> None:
    for wrong in ({"RAY_AUTH_TOKEN": "f" * 32}, {"RAY_AUTH_MODE": "disabled"}):
        ran = driver(two_nodes, tmp_path, MAP, **wrong)
        last = ran.stderr.strip().splitlines()[-1]
        assert ran.returncode == 1
        assert last.startswith(f"preprocess: RAY_ADDRESS '{two_nodes.address}'")
        assert "RAY_AUTH_TOKEN_PATH=<file with that cluster's token>" in last
        assert "Traceback" not in ran.stderr


PREPROCESS = """
import sys
import test_preprocess_stage as t
from components.command import run_stage
def main(line):
    t.acquired(4)
    for raw in list(t.Path(".ctfoundry/raw/wholebody").glob("s*")):
        t.shutil.rmtree(raw)  # as after eviction: the workers fetch
    catalogue = t.preprocessed()
    assert catalogue["decoded"].all(), catalogue["detail"].tolist()
    print("made", len(catalogue))
if __name__ == "__main__":
    sys.argv = ["preprocess", "--line", "wholebody"]
    run_stage("preprocess", "", main)
"""
PRETRAIN = """
import sys
from pathlib import Path
from pretrain_project import write_project
import os
root = write_project(Path.cwd() / "project", "wholebody", workers=2)
os.chdir(root)
if __name__ == "__main__":
    from components.pretrain.__main__ import pretrain
    pretrain("wholebody")
    print("trained", sorted(p.name for p in Path("data/wholebody/pretrain/encoder").iterdir()))
"""


@pytest.mark.slow
def test_preprocess_and_pretrain_on_two_nodes(two_nodes: TwoNodes, tmp_path: Path) -> None:
    ran = driver(two_nodes, tmp_path, PREPROCESS, CTFOUNDRY_PSEUDONYM_KEY=SECRET)
    assert ran.stdout.strip().endswith("made 4"), ran.stderr[-3000:]
    (tmp_path / "project").mkdir()
    ran = driver(two_nodes, tmp_path, PRETRAIN, GLOO_SOCKET_IFNAME="lo")
    assert "trained" in ran.stdout, ran.stderr[-3000:]
    assert "encoder.safetensors" in ran.stdout


def test_a_node_without_the_checkout_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "touch", lambda self, **_: None)  # a file that no node finds
    with pytest.raises(UserError, match=r"node \S+ does not see this checkout"), cluster.ray_cluster(1):
        nodes.check_checkout()
