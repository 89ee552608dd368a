"""Eight shards on four workers of two machines that share git and S3 and nothing else.

``TRANSFER_S`` in the environment is how long a transfer takes (default 8 s); ``-s`` prints both wall times.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from platform_of import RUN_S, START_S, Platform
from postgres import POSTGRES, postgresql
from sharded_graph import KINDS, made, one_after_another, sharded
from tiny_graph import wait_until

from flows.platform.automations import HEARTBEATS_LOST
from flows.shards.refs import ROOT
from tests.s3 import CLOSED, S3, SIGNED, serving

SHARDS, TRANSFER_S = 8, float(os.environ.get("TRANSFER_S", "8"))
WITHIN_S = RUN_S + 10 * TRANSFER_S
ALL = {f"{kind}-{shard}" for kind in KINDS for shard in range(SHARDS)}

pytestmark = pytest.mark.slow


class Team:
    """Machine ``a`` with the platform and two workers for shards, and machine ``b``, which has joined with two more."""

    def __init__(self, folder: Path, platform: Platform, s3: S3) -> None:
        self.folder, self.platform, self.s3 = folder, platform, s3
        self.shared = {
            "CTFOUNDRY_REMOTE": f"s3://{CLOSED}/ctfoundry", "AWS_ENDPOINT_URL": s3.url, "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test", "PREFECT_CLIENT_MAX_RETRIES": "8",
        }  # fmt: skip
        self.b: subprocess.Popen[bytes] | None = None

    def of_b(self) -> dict[str, str]:
        """The environment of machine ``b``."""
        own = {"CTFOUNDRY_STATE": str(self.folder / "b" / "state"), "TMPDIR": str(self.folder / "b" / "tmp"),
               "MADE": str(self.made("b")), "PREFECT_API_URL": self.platform.api}  # fmt: skip
        return self.platform.environment(**self.shared) | own

    def made(self, machine: str) -> Path:
        return self.folder / f"made-{machine}"

    def join(self) -> None:
        """Machine ``b``: a clone of its own, and the one command."""
        (self.folder / "b" / "tmp").mkdir(parents=True)
        clone, log = self.platform.clone("b/clone"), self.folder / "b" / "log"
        command = [sys.executable, "-m", "flows.cli", "platform", "join", "--shard-workers", "2"]
        with log.open("wb") as said:
            self.b = subprocess.Popen(command, cwd=clone, env=self.of_b(), stdout=said, stderr=said)

        def online() -> int:
            assert self.b is not None
            assert self.b.poll() is None, log.read_text()
            workers = self.platform.asked("POST", "work_pools/ctfoundry-shards/workers/filter", {})
            states = (self.folder / "b" / "state", self.platform.state)
            logs = [path.read_text() for state in states for path in state.glob("platform/shard-*.log")]
            return sum("started!" in text for text in logs) if workers else 0

        wait_until(lambda: online() == 4, START_S, "four workers are online")

    def transfer(self, seconds: float) -> None:
        """How long a shard's transfer takes from now on, here and there."""
        for machine in ("a", "b", "alone"):
            self.made(machine).mkdir(exist_ok=True)
            (self.made(machine) / "transfer_s").write_text(str(seconds))

    def ran(self) -> Counter[str]:
        """How often each stage has run since the last time, on both machines."""
        found: Counter[str] = Counter()
        for machine in "ab":
            found.update(made(self.made(machine)))
            for path in self.made(machine).glob("*-*-*"):
                path.unlink()
        return found

    def change(self) -> None:
        """The shards' code changes: all are to be made again."""
        clone = self.folder / "author"
        if not clone.exists():
            self.platform.clone("author")
        with (clone / "tiny_shard.py").open("a") as script:
            script.write("# changed\n")
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        for command in ([*identity, "commit", "-qam", "changed"], ["push", "-q"]):
            subprocess.run(["git", *command], cwd=clone, check=True)

    def seconds(self, run: str) -> float:
        """From the beginning of a run until its shards are collected: the release itself begins."""
        begun = self.platform.get(f"flow_runs/{run}")["start_time"]
        body = {"flows": {"name": {"any_": ["release"]}}, "sort": "START_TIME_DESC", "limit": 1}
        (release,) = self.platform.asked("POST", "flow_runs/filter", body)
        return (datetime.fromisoformat(release["start_time"]) - datetime.fromisoformat(begun)).total_seconds()


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    if not POSTGRES:
        pytest.skip("PostgreSQL is not installed: with SQLite five workers wait for each other")
    folder = tmp_path_factory.mktemp("team")
    (folder / "checkout").mkdir()
    with serving(folder) as s3, postgresql(folder / "database") as database:
        platform = Platform(folder, sharded(folder / "checkout", SHARDS))
        of = Team(folder, platform, s3)
        own = {"MADE": str(of.made("a")), "PREFECT_SERVER_DATABASE_CONNECTION_URL": database.url}
        with platform.up("--shard-workers", "2", **own, **of.shared):
            try:
                of.join()
                yield of
            finally:
                if of.b is not None:
                    of.b.terminate()
                    of.b.wait(timeout=120)
    assert of.b is not None
    assert of.b.returncode == 0, (folder / "b" / "log").read_text()


def test_a_lost_worker_costs_its_shard_and_a_missing_object_the_release(team: Team) -> None:
    team.transfer(20)
    run = team.platform.begin("retrain/wholebody")
    lost = _kill_one(team)
    gone = _lose_an_object(team, run, but=lost)
    state = team.platform.ended(run, WITHIN_S + HEARTBEATS_LOST)
    assert (state["type"], state["name"]) == ("FAILED", "NotCollected"), f"{state}\n{team.platform.logs()}"
    assert state["message"].startswith(
        f"stage preprocess@wholebody-{gone}: data/wholebody/preprocess/{gone}: an object"
    )
    assert "\n" not in state["message"]
    here, ran = _on(team, "a"), team.ran()
    assert ran == Counter(ALL) + Counter({f"acquire-{lost}": 1}), "the lost shard began again, no other"
    assert team.platform.git("tag", "--list") == ""
    assert team.platform.git("for-each-ref", ROOT) == ""

    run = team.platform.begin("retrain/wholebody")
    state = team.platform.ended(run, WITHIN_S)
    assert state["type"] == "COMPLETED", f"{state}\n{team.platform.logs()}"
    assert here.isdisjoint(int(name.rpartition("-")[2]) for name in team.ran()), "what is on this machine stays"


def test_eight_shards_on_two_machines_end_in_the_lock_file_of_one_after_another(team: Team) -> None:
    team.change()
    team.ran()
    team.transfer(TRANSFER_S)
    clone = team.platform.clone("scientist")
    alone = team.platform.environment() | {"PYTHONPATH": str(clone), "MADE": str(team.made("alone"))}
    with ThreadPoolExecutor() as pool:  # both mostly wait
        one = pool.submit(one_after_another, clone, alone)
        run = team.platform.begin("retrain/wholebody")
        state = team.platform.ended(run, WITHIN_S)
        assert state["type"] == "COMPLETED", f"{state}\n{team.platform.logs()}"
        tag = state["message"].partition(":")[0]
        assert one.result() == team.platform.git("show", f"{tag}:dvc.lock").encode() + b"\n"
    assert made(team.made("a")), "machine a has made some"
    assert made(team.made("b")), "machine b has made some"
    here, there = _seconds(team.made("alone")), _seconds(team.made("a"), team.made("b"))
    assert team.ran() == Counter(ALL), "each stage has run once"
    again = ["dvc", "repro", "bundle@wholebody"]
    done = subprocess.run(again, cwd=clone, env=alone, capture_output=True, text=True, check=True)
    assert "Running stage" not in done.stdout
    told = f"{here:.0f} s one after another, {there:.0f} s by four workers of two machines: {here / there:.2f}"
    print(f"\n{SHARDS} shards, each with {TRANSFER_S:.0f} s of transfer, from the first stage to the last: {told}")
    print(f"from the beginning of the run until they are collected: {team.seconds(run):.0f} s")


def _seconds(*folders: Path) -> float:
    times = [path.stat().st_mtime for folder in folders for path in folder.glob("*-*-*")]
    return max(times) - min(times)


def _on(team: Team, machine: str) -> set[int]:
    return {int(name.rpartition("-")[2]) for name in made(team.made(machine))}


def _kill_one(team: Team) -> int:
    """Kill a worker of machine ``b`` with all that it has begun, while it transfers; returns its shard."""
    found: list[tuple[int, list[psutil.Process]]] = []

    def transfers() -> bool:
        assert team.b is not None
        for worker in psutil.Process(team.b.pid).children():
            with suppress(psutil.Error):
                tree = [worker, *worker.children(recursive=True)]
                for process in tree:
                    words = process.cmdline()
                    if words[1:3] == ["tiny_shard.py", "acquire"] and int(words[3]) in _on(team, "b"):
                        found.append((int(words[3]), tree))
        return bool(found)

    wait_until(transfers, WITHIN_S, "machine b transfers a shard")
    shard, tree = found[0]
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return shard


def _lose_an_object(team: Team, run: str, but: int) -> int:
    """Delete an object of the first shard that machine ``b`` has handed in from the bucket; returns the shard."""

    def handed() -> list[int]:
        refs = team.platform.git("for-each-ref", "--format=%(refname:lstrip=4)", f"{ROOT}/{run}").splitlines()
        return sorted((_on(team, "b") - _on(team, "a") - {but}) & {int(ref) for ref in refs if ref.isdigit()})

    wait_until(lambda: bool(handed()), WITHIN_S, "machine b has handed a shard in")
    shard = handed()[0]
    lock = yaml.safe_load(team.platform.git("show", f"{ROOT}/{run}/{shard}:dvc.lock"))
    (out,) = lock["stages"][f"preprocess@wholebody-{shard}"]["outs"]
    key = f"ctfoundry/files/md5/{out['md5'][:2]}/{out['md5'][2:]}"
    assert httpx.head(f"{team.s3.url}/{CLOSED}/{key}", headers=SIGNED).status_code == 200
    httpx.delete(f"{team.s3.url}/{CLOSED}/{key}", headers=SIGNED).raise_for_status()
    return shard
