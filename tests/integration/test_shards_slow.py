"""Eight shards on four workers of two machines that share git and S3 and nothing else.

``TRANSFER_S`` in the environment is how long a shard's transfer takes (default 8 s); ``-s`` prints both wall times.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from platform_of import RUN_S, START_S, Platform
from sharded_graph import KINDS, made, one_after_another, sharded
from tiny_graph import wait_until

from flows.platform.automations import HEARTBEATS_LOST
from flows.shards.refs import ROOT
from tests.s3 import CLOSED, S3, SIGNED, serving

SHARDS, TRANSFER_S = 8, os.environ.get("TRANSFER_S", "8")
WITHIN_S = RUN_S + 10 * float(TRANSFER_S)
ALL = {f"{kind}-{shard}" for kind in KINDS for shard in range(SHARDS)}

pytestmark = pytest.mark.slow


class Team:
    """Machine ``a`` with the platform and two workers for shards, and machine ``b``, which has joined with two more."""

    def __init__(self, folder: Path, platform: Platform, s3: S3) -> None:
        self.folder, self.platform, self.s3 = folder, platform, s3
        self.shared = {
            "CTFOUNDRY_REMOTE": f"s3://{CLOSED}/ctfoundry", "AWS_ENDPOINT_URL": s3.url, "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test", "TRANSFER_S": TRANSFER_S,
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
            logs = [
                *(self.folder / "b/state/platform").glob("shard-*.log"),
                *self.platform.state.glob("platform/shard-*.log"),
            ]
            started = [path for path in logs if "started!" in path.read_text()]
            return len(started) if workers else 0

        wait_until(lambda: online() == 4, START_S, "four workers are online")

    def ran(self) -> Counter[str]:
        """How often each stage has run since the last time, on both machines."""
        found: Counter[str] = Counter()
        for machine in "ab":
            found.update(made(self.made(machine)))
            for path in self.made(machine).glob("*"):
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
        """From the beginning of a run until its shards are made: the stage after them begins."""
        body = {"flow_runs": {"id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
        begun = datetime.fromisoformat(self.platform.get(f"flow_runs/{run}")["start_time"])
        body = {"task_runs": {"name": {"any_": ["curate@wholebody"]}}, "sort": "EXPECTED_START_TIME_DESC"}
        curated = self.platform.asked("POST", "task_runs/filter", body)[0]["start_time"]
        return (datetime.fromisoformat(curated) - begun).total_seconds()


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    (folder / "checkout").mkdir()
    with serving(folder) as s3:
        platform = Platform(folder, sharded(folder / "checkout", SHARDS))
        of = Team(folder, platform, s3)
        with platform.up("--shard-workers", "2", MADE=str(of.made("a")), **of.shared):
            try:
                of.join()
                yield of
            finally:
                if of.b is not None:
                    of.b.terminate()
                    of.b.wait(timeout=120)
    assert of.b is not None
    assert of.b.returncode == 0, (folder / "b" / "log").read_text()


def test_eight_shards_on_two_machines_end_in_the_lock_file_of_one_after_another(team: Team) -> None:
    run = team.platform.begin("retrain/wholebody")
    state = team.platform.ended(run, WITHIN_S)
    assert state["type"] == "COMPLETED", f"{state}\n{team.platform.logs()}"
    spread = team.seconds(run)
    assert made(team.made("a")), "machine a has made some"
    assert made(team.made("b")), "machine b has made some"
    assert team.ran() == Counter(ALL), "each stage has run once"
    locked = team.platform.git("show", "wholebody@v0.0.1:dvc.lock").encode() + b"\n"
    clone = team.platform.clone("scientist")
    alone = team.platform.environment() | {"PYTHONPATH": str(clone), "MADE": str(team.folder / "again")}
    begin = time.monotonic()
    assert one_after_another(clone, alone) == locked
    print(f"\ndvc repro, one after another, no transfer time: {time.monotonic() - begin:.0f} s")
    done = subprocess.run(
        ["dvc", "repro", "bundle@wholebody"], cwd=clone, env=alone, capture_output=True, text=True, check=True
    )
    assert "Running stage" not in done.stdout

    team.change()
    run = team.platform.begin("retrain/wholebody", shards_here=True)
    state = team.platform.ended(run, WITHIN_S)
    assert state["type"] == "COMPLETED", f"{state}\n{team.platform.logs()}"
    here = team.seconds(run)
    assert team.ran() == Counter(ALL)
    print(
        f"{SHARDS} shards of {TRANSFER_S} s: one machine {here:.0f} s, four workers {spread:.0f} s: {here / spread:.2f}"
    )


def test_a_lost_worker_costs_its_shard_and_a_missing_object_the_release(team: Team) -> None:
    team.change()
    tags = team.platform.git("tag", "--list")
    run = team.platform.begin("retrain/wholebody")
    lost = _kill_one(team)
    gone = _lose_an_object(team, run, but=lost)
    state = team.platform.ended(run, WITHIN_S + HEARTBEATS_LOST)
    assert (state["type"], state["name"]) == ("FAILED", "NotCollected"), f"{state}\n{team.platform.logs()}"
    assert state["message"].startswith(
        f"stage preprocess@wholebody-{gone}: data/wholebody/preprocess/{gone}: an object"
    )
    assert "\n" not in state["message"]
    ran = team.ran()
    assert ran == Counter(ALL) + Counter({f"acquire-{lost}": 1}), "the lost shard began again, no other"
    assert team.platform.git("tag", "--list") == tags
    assert team.platform.git("for-each-ref", ROOT) == ""

    run = team.platform.begin("retrain/wholebody")
    state = team.platform.ended(run, WITHIN_S)
    assert state["type"] == "COMPLETED", f"{state}\n{team.platform.logs()}"
    assert not any(name.endswith(f"-{shard}") for name in team.ran() for shard in _on(team, "a")), "what is here stays"


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
                    if words[1:3] == ["tiny_shard.py", "acquire"]:
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
