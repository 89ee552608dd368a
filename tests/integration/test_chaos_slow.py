"""Whatever is killed while scheduled runs go on, each ends in the bytes of an undisturbed run, and nothing is left.

``CTFOUNDRY_CHAOS_KILLS`` says how many kills there are, ``CTFOUNDRY_CHAOS_CANCELS`` how many cancellations, and
``CTFOUNDRY_CHAOS_SEED`` draws the same again; the seed is printed.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chaos import (
    BUSY_S,
    LINES,
    Chaotic,
    Killer,
    an_hour_later,
    chaos_graph,
    locks_left,
    salted,
    temporary_files,
    unchanged_shared_memory,
)
from checkout import Checkout
from postgres import POSTGRES, postgresql
from tiny_graph import wait_until

from components.files import sha256_tree
from flows.sweep import RUNNERS

KILLS = int(os.environ.get("CTFOUNDRY_CHAOS_KILLS", "60"))
CANCELS = int(os.environ.get("CTFOUNDRY_CHAOS_CANCELS", "10"))
KINDS = ("worker", "server", "database", "ray head", "ray worker", "stage", "run")
WORKERS = int(os.environ.get("CTFOUNDRY_CHAOS_WORKERS", "2"))  # runs at a time, of two lines
EVERY_S = 90.0  # between the scheduled runs of a line; a run that takes longer is waited for
KILLS_A_RUN = 2  # on average: Prefect tries a run three times
CANCELLED_S = 30.0  # the promise
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not POSTGRES, reason="no PostgreSQL server on this machine"),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of a short name: below it lie Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="chaos-", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextmanager
def kept_on_failure(of: Chaotic) -> Iterator[None]:
    """What the platform said, where somebody will look for it."""
    try:
        yield
    except BaseException:
        if kept := os.environ.get("CTFOUNDRY_CHAOS_LOGS"):
            shutil.copytree(of.state / "platform", Path(kept) / of.folder.name, dirs_exist_ok=True)
            shutil.copy(of.folder / "log", Path(kept) / of.folder.name / "log")
        raise


def seed() -> int:
    found = int(os.environ.get("CTFOUNDRY_CHAOS_SEED") or random.SystemRandom().randrange(10**6))
    print(f"CTFOUNDRY_CHAOS_SEED={found}", flush=True)
    return found


def test_whatever_is_killed_each_run_ends_in_the_same_bytes_and_nothing_is_left(folder: Path) -> None:
    chance = random.Random(seed())
    kinds = [KINDS[number % len(KINDS)] for number in range(KILLS)]
    chance.shuffle(kinds)
    (folder / "checkout").mkdir()
    of = Chaotic(folder, chaos_graph(folder / "checkout", EVERY_S))
    with (
        unchanged_shared_memory(),
        postgresql(folder / "database") as database,
        of.up("--workers", str(WORKERS), PREFECT_SERVER_DATABASE_CONNECTION_URL=database.url) as platform,
        kept_on_failure(of),
    ):
        wait_until(lambda: any(ended(run) for run in of.runs()), BUSY_S, "a run that nothing befalls")
        first = next(run for run in of.runs() if ended(run))
        assert first["state"]["type"] == "COMPLETED", f"{first['state']}\n{of.logs()}"
        takes = first["total_run_time"]
        print(f"a run takes {takes:.0f} s", flush=True)
        killer, begun = Killer(of, platform.pid, database, chance), time.monotonic()
        for number, kind in enumerate(kinds):
            time.sleep(chance.uniform(0, 2 * takes / KILLS_A_RUN / WORKERS))
            salted(of.checkout, number + 1)  # or nothing would be left to do, and no Ray be there
            of.push()
            print(f"{time.monotonic() - begun:6.0f} s  {kind}: {killer.kill(kind)}", flush=True)
            assert platform.poll() is None, of.said()
        of.pause()
        wait_until(lambda: all(ended(run) for run in of.runs()), BUSY_S, f"all runs end\n{of.logs()}")
        runs = of.runs()
        print(Counter((run["state"]["type"], run["state"]["name"], run["run_count"]) for run in runs), flush=True)
        lost = [(run["name"], run["state"]["message"]) for run in runs if run["state"]["type"] != "COMPLETED"]
        assert not lost, f"{lost}\n{of.logs()}"
        assert of.git("tag", "--list"), "something was published"
        nothing_is_left(of)
        same_bytes_as_undisturbed(of)


def ended(run: dict[str, object]) -> bool:
    state = run["state"]
    assert isinstance(state, dict)
    return state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def left_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path != folder / RUNNERS]


def nothing_is_left(of: Chaotic) -> None:
    """After a sweep, an hour later."""
    wait_until(lambda: not of.processes(), BUSY_S, f"no run has a process: {of.processes()}")
    an_hour_later(of)
    state = of.ended(of.begin("sweep/machine"), BUSY_S)
    assert state["type"] == "COMPLETED", f"{state}\n{of.logs()}"
    wait_until(lambda: not left_in(of.tmp), BUSY_S, "the sweep's own workspace goes")
    assert of.processes() == []
    assert temporary_files(of) == []
    assert locks_left(of) == []
    wait_until(lambda: of.slots_taken() == 0, BUSY_S, "the slots are given back")
    subprocess.run(["git", "fsck", "--strict"], cwd=of.bare, check=True, capture_output=True)


def same_bytes_as_undisturbed(of: Chaotic) -> None:
    """Each published version beside what a clone of its own makes of the same commit, without any cache but its own."""
    clone = of.clone("undisturbed")
    environment = {**of.checkout.environment(), "PYTHONPATH": str(clone), "CTFOUNDRY_STATE": str(clone / ".ctfoundry")}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    tags = of.git("tag", "--list").splitlines()
    for tag in tags:
        line = tag.partition("@")[0]
        run("git", "checkout", "-q", "--force", f"{tag}~")
        run("dvc", "repro", f"bundle@{line}")
        assert (clone / "dvc.lock").read_text() == of.git("show", f"{tag}:dvc.lock") + "\n", tag
        made = sha256_tree(clone / "releases" / line)
        shutil.rmtree(clone / "releases" / line)
        shutil.rmtree(clone / ".dvc" / "cache")
        run("git", "checkout", "-q", "--force", tag)
        run("dvc", "remote", "add", "--local", "--force", "--default", "store", str(of.remote))
        run("dvc", "pull", "--force", f"releases/{line}")
        assert sha256_tree(clone / "releases" / line) == made, tag
        (clone / "dvc.lock").unlink()
        shutil.rmtree(clone / "data")
    print(f"{len(tags)} versions in the bytes of undisturbed runs", flush=True)


def test_a_cancelled_run_has_no_process_within_its_bound(folder: Path) -> None:
    chance = random.Random(seed())
    (folder / "checkout").mkdir()
    checkout: Checkout = chaos_graph(folder / "checkout", None)
    of = Chaotic(folder, checkout)
    with (
        unchanged_shared_memory(),
        postgresql(folder / "database") as database,
        of.up(PREFECT_SERVER_DATABASE_CONNECTION_URL=database.url) as platform,
        kept_on_failure(of),
    ):
        killer = Killer(of, platform.pid, database, chance)
        begin = time.monotonic()
        state = of.ended(of.begin("retrain/wholebody"), BUSY_S)
        assert state["type"] == "COMPLETED", f"{state}\n{of.logs()}"
        takes = time.monotonic() - begin
        for number in range(CANCELS):
            salted(of.checkout, number + 1)
            of.push()
            run = of.begin(f"retrain/{LINES[number % 2]}")
            if number % 3 == 0:
                wait_until(lambda: bool(killer.victims("ray worker")), BUSY_S, "the stage on Ray")
            else:
                time.sleep(chance.uniform(0, takes))
            if number % 5 == 4:  # the run goes on, and nobody watches it
                killer.kill("worker")
            had = len(of.processes(run))
            body = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
            of.asked("POST", f"flow_runs/{run}/set_state", body)
            at = time.monotonic()
            while (alive := of.processes(run)) and time.monotonic() - at < CANCELLED_S:
                time.sleep(0.2)
            took = time.monotonic() - at
            print(f"cancelled with {had} processes, {len(alive)} of them left after {took:.1f} s", flush=True)
            assert alive == [], f"{[process.cmdline() for process in alive]}\n{of.logs()}"
            state = of.ended(run, BUSY_S)
            assert state["type"] in ("CANCELLED", "COMPLETED"), state
        state = of.ended(of.begin("retrain/wholebody"), BUSY_S)
        assert state["type"] == "COMPLETED", f"{state}\n{of.logs()}"
        nothing_is_left(of)
