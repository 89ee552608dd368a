"""Nodes of a cluster whose processors differ: one that cannot compute as the line promises is named, and idle."""

from __future__ import annotations

import mmap
import os
import platform
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from pretrain_project import block

from components import arithmetic, cluster
from components.errors import UserError
from components.isolation import GIB, Deadline, Lost
from components.pretrain import ray_driver
from components.pretrain.workers import World

OLD = ("x86_64", ("GenuineIntel", frozenset({"sse4_2", "avx"})))
ARM = ("aarch64", ("", frozenset()))
ARM_PART = "CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"
NEW = ("x86_64", ("AuthenticAMD", frozenset({"avx2", "fma"})))


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """This process as a worker on a node with such a processor, in such a mode."""
    monkeypatch.chdir(Path.cwd())  # a worker enters the driver's folder
    monkeypatch.setattr(os, "environ", os.environ.copy())

    def become(processor: tuple[str, tuple[str, frozenset[str]]], mode: str) -> None:
        monkeypatch.setattr(platform, "machine", lambda: processor[0])
        monkeypatch.setattr(arithmetic, "_processor", lambda: processor[1])
        monkeypatch.setattr(arithmetic, "_cpuinfo", lambda: ARM_PART if processor is ARM else "")
        monkeypatch.setattr(socket, "gethostname", lambda: "gpu7")
        monkeypatch.setenv(arithmetic.VARIABLE, mode)

    return become


@pytest.mark.parametrize(("processor", "has"), [(OLD, "x86_64 GenuineIntel"), (ARM, "aarch64 0x41 0xd0c")])
def test_a_node_that_cannot_be_portable_is_named(
    node: Callable[..., None], processor: Any, has: str, tmp_path: Path
) -> None:
    node(processor, "machine")  # the mode comes with the item
    with pytest.raises(UserError) as caught:
        cluster._limited(
            abs, -3, str(tmp_path), {arithmetic.VARIABLE: arithmetic.PORTABLE}, GIB, Deadline(tmp_path / "mark", 60)
        )
    assert str(caught.value).startswith("RAY_ADDRESS: node gpu7 (")
    assert f"portable is not possible on this processor ({has}): it needs x86-64 with AVX2 and FMA" in str(caught.value)
    assert cluster._limited(abs, -3, str(tmp_path), {}, GIB, Deadline(tmp_path / "mark", 60)) == 3, (
        "nobody promised anything"
    )


def test_a_node_that_can_be_portable_works(node: Callable[..., None], tmp_path: Path) -> None:
    node(NEW, "portable")
    assert (
        cluster._limited(
            abs, -3, str(tmp_path), {arithmetic.VARIABLE: arithmetic.PORTABLE}, GIB, Deadline(tmp_path / "mark", 60)
        )
        == 3
    )


class Context:
    def get_world_rank(self) -> int:
        return 1

    def get_world_size(self) -> int:
        return 2


def test_training_ends_where_one_node_cannot_be_portable(
    monkeypatch: pytest.MonkeyPatch, node: Callable[..., None], tmp_path: Path
) -> None:
    """Every worker hears of it before the first step: else the others wait for ever."""
    heard: list[tuple[World, UserError | None]] = []
    trained: list[World] = []

    def agree(world: World, mistake: UserError | None) -> None:
        heard.append((world, mistake))
        if mistake is not None:
            raise mistake

    monkeypatch.setattr(ray.train, "get_context", Context)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(ray_driver, "agree", agree)
    monkeypatch.setattr(ray_driver, "train", lambda config, volumes, world, *_: trained.append(world))
    shared = {"bucket": None, "run": "wholebody-1", "start": None, "lines": None}
    job = {"folder": str(tmp_path), "config": block("wholebody", workers=2), "volumes": [], **shared}
    node(OLD, "portable")
    assert ray_driver._work(job).startswith("RAY_ADDRESS: node gpu7 (")
    assert [str(mistake) for _, mistake in heard] == [ray_driver._work(job)]
    assert not trained
    heard.clear()
    node(NEW, "portable")
    assert ray_driver._work(job) == ""
    assert heard == [(World(1, 2, torch.device("cpu")), None)], "one that can asks the others"
    assert len(trained) == 1


class Ended:
    """In the place of ``ray.wait`` and ``ray.get``: tasks are their own references, and end as is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ends: dict[str, Any]) -> None:
        self.ends = ends
        monkeypatch.setattr(ray, "wait", lambda tasks, num_returns: (tasks[-num_returns:], tasks[:-num_returns]))
        monkeypatch.setattr(ray, "get", self.get)

    def get(self, task: str) -> Any:
        if isinstance(self.ends[task], Exception):
            raise self.ends[task]
        return self.ends[task]


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.\nLots of advice"),
        ray.exceptions.WorkerCrashedError(),
        ray.exceptions.NodeDiedError("node 1234 is dead"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_worker_that_died_twice_costs_its_item_only(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    Ended(monkeypatch, {"first": 11, "second": error, "third": 33})
    running: dict[Any, int] = {"first": 0, "second": 1, "third": 2}
    found = [cluster._next(running) for _ in range(3)]
    assert found == [(2, 33), (1, Lost(f"its worker process died, twice ({type(error).__name__})")), (0, 11)]
    assert running == {}


def test_what_a_task_raises_itself_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    mistake = UserError("RAY_ADDRESS: node gpu7 does not see this checkout")
    Ended(monkeypatch, {"first": ray.exceptions.RayTaskError("_limited", "a traceback", mistake)})
    with pytest.raises(UserError) as raised:
        cluster._next({"first": 0})
    assert raised.value is mistake


def test_a_task_that_ray_kills_for_its_memory_is_tried_once_more() -> None:
    """Ray's own number is without end, and a setting that Ray does not know would say nothing."""
    assert cluster.SETTINGS["RAY_task_oom_retries"] == "1"
    binary = Path(ray.__file__).parent / "core" / "src" / "ray" / "raylet" / "raylet"
    with binary.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        assert content.find(b"task_oom_retries") >= 0
