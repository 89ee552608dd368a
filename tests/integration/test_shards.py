"""Shards made at the same time by workers of their own, collected into one lock file: real Prefect, git and DVC."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from platform_of import RUN_S, Platform
from sharded_graph import KINDS, made, one_after_another, sharded
from tiny_graph import wait_until


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    (tmp_path / "checkout").mkdir()
    (tmp_path / "made").mkdir()
    of = Platform(tmp_path, sharded(tmp_path / "checkout", 2))
    # Each shard's transfer waits: neither ends before both have begun.
    with of.up("--shard-workers", "2", MADE=str(tmp_path / "made"), HOLDS="acquire-0"):
        yield of


def test_two_shards_are_made_at_once_and_end_in_the_lock_file_of_one_after_another(platform: Platform) -> None:
    folder = platform.folder / "made"
    run = platform.begin("retrain/wholebody")
    wait_until(lambda: "preprocess-1" in made(folder), RUN_S, "shard 1 is made while shard 0 is transferred")
    (folder / "go_on").touch()
    state = platform.ended(run)
    assert state["type"] == "COMPLETED", f"{state}\n{platform.logs()}"
    assert made(folder) == sorted(f"{kind}-{shard}" for kind in KINDS for shard in range(2)), "each has run once"

    locked = platform.git("show", "wholebody@v0.0.1:dvc.lock").encode() + b"\n"
    clone = platform.clone("scientist")
    alone = platform.environment() | {"MADE": str(platform.folder / "again"), "PYTHONPATH": str(clone)}
    assert one_after_another(clone, alone) == locked

    children = platform.asked("POST", "flow_runs/filter", {"flows": {"name": {"any_": ["shard"]}}})
    assert [child["state"]["type"] for child in children] == ["COMPLETED"] * 2
    assert platform.git("for-each-ref", "refs/ctfoundry") == "", "what was handed over has gone"
    costs = {path.parent.name for path in (platform.state / "costs").glob("*/*.json")}
    assert {f"{kind}@wholebody-{shard}" for kind in KINDS for shard in range(2)} <= costs
