"""Whose turn it is on a state folder that several checkouts share."""

from __future__ import annotations

import fcntl
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import pytest

from flows.lock import LOCK, checkout_lock, every_slot, is_held, line_slot, slot_lent, turn

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 60.0
HOLD = """
import sys
from flows.lock import line_slot
line, shared = sys.argv[1], sys.argv[2:] == ["shared"]
with line_slot(line, f"release {line}", shared), line_slot(line, "and within it"):
    print("has it", flush=True)
    sys.stdin.readline()
"""


class Other:
    """Another checkout's process on the same state folder."""

    def __init__(self, folder: Path, which: str, *how: str) -> None:
        folder.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, which, *how], cwd=folder, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def has_it(self) -> str:
        return self._line(self.process.stdout)

    def waits(self) -> str:
        return self._line(self.process.stderr)

    def _line(self, stream: IO[str] | None) -> str:
        assert stream is not None
        ready, _, _ = select.select([stream], [], [], WITHIN_S)
        if not ready:
            self.process.kill()
        return stream.readline().strip()

    def end(self) -> None:
        self.process.communicate("\n", timeout=60)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CTFOUNDRY_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("flows.lock.SLOTS", tmp_path / "state" / "slots")
    return tmp_path


def test_two_lines_have_their_turn_at_once_and_two_runs_of_one_after_each_other(state: Path) -> None:
    one, two = Other(state / "a", "head"), Other(state / "b", "wholebody")
    assert one.has_it() == two.has_it() == "has it"
    three = Other(state / "c", "head")
    assert "release head waits for its turn" in (told := three.waits())
    assert f"`release head`, process {one.process.pid} " in told
    one.end()
    assert three.has_it() == "has it"
    for other in (two, three):
        other.end()


def test_a_release_lends_its_turn_to_those_who_make_its_shards_and_to_nobody_else(state: Path) -> None:
    with line_slot("head", "retrain head"):
        shards = [Other(state / name, "head", "shared") for name in "ab"]
        assert "`retrain head`" in shards[0].waits()
        with slot_lent("head", "retrain head"):
            assert [shard.has_it() for shard in shards] == ["has it", "has it"]
            release = Other(state / "c", "head")
            assert "waits for its turn" in release.waits()
            with every_slot("sweep") as free:
                assert not free
            for shard in shards:
                shard.end()
        assert not is_free(state, "head"), "it is back"
    assert release.has_it() == "has it"
    release.end()


def is_free(state: Path, line: str) -> bool:
    return not is_held(state / "state" / "slots" / line)


def test_two_stages_of_a_kind_wait_for_each_other(state: Path) -> None:
    with turn("preprocess", "preprocess@head-0"):
        assert is_held(state / "state" / "slots" / ".preprocess")
    assert not is_held(state / "state" / "slots" / ".preprocess")


def test_a_sweep_has_it_alone(state: Path) -> None:
    line = Other(state / "a", "head")
    line.has_it()
    with every_slot("sweep") as free:
        assert not free
    line.end()
    with every_slot("sweep") as free:
        assert free
        waiting = Other(state / "b", "head")
        assert "`sweep`" in waiting.waits()
    assert waiting.has_it() == "has it"
    waiting.end()


def test_a_look_at_a_lock_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    LOCK.parent.mkdir()
    with LOCK.open("a+") as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_EX)
        end = threading.Timer(0.1, lambda: fcntl.flock(looked_at, fcntl.LOCK_UN))
        end.start()
        with checkout_lock("release"):
            assert is_held(LOCK)
        end.join()
