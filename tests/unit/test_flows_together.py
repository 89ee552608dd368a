"""Stages side by side: what may begin when, and what a failure ends."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from flows import together
from flows.together import add_jobs, default_jobs, longest_first, side_by_side


@dataclass(frozen=True)
class Item:
    name: str
    upstream: tuple[str, ...] = ()


GRAPH = [
    Item("cohort@x"),
    Item("acquire@x-0", ("cohort@x",)),
    Item("preprocess@x-0", ("acquire@x-0",)),
    Item("acquire@x-1", ("cohort@x",)),
    Item("preprocess@x-1", ("acquire@x-1",)),
    Item("cases@x", ("preprocess@x-0", "preprocess@x-1")),
    Item("pretrain@x", ("cases@x",)),
    Item("features@x", ("pretrain@x",)),
    Item("untrained@x", ("cases@x",)),
    Item("task@x-organs", ("features@x", "untrained@x")),
    Item("task@x-lesions", ("features@x", "untrained@x")),
    Item("evaluate@x", ("task@x-organs", "task@x-lesions")),
]


class Machine:
    """Runs items when told to, so that the order of their ends is the test's."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.under_way: dict[str, Future[None]] = {}
        self.beside: list[list[str]] = []  # what was under way at each beginning
        self.open_shards: list[int] = []
        self.most = 0

    def begin(self, item: Item) -> Future[None]:
        future: Future[None] = Future()
        self.begun.append(item.name)
        self.under_way[item.name] = future
        self.most = max(self.most, len(self.under_way))
        self.beside.append(list(self.under_way))
        done = [name for name in self.begun if name.startswith("preprocess@") and name not in self.under_way]
        self.open_shards.append(sum(name.startswith("acquire@") for name in self.begun) - len(done))
        return future

    def end(self, name: str, error: Exception | None = None) -> None:
        future = self.under_way.pop(name)
        if error:
            future.set_exception(error)
        else:
            future.set_result(None)


def run(
    jobs: int, choose: Callable[[list[str]], str], failing: tuple[str, ...] = (), graph: list[Item] = GRAPH
) -> tuple[Machine, list[str]]:
    """Run the graph; ``choose`` names which of those under way ends next."""
    machine, ended = Machine(), list[str]()
    real = together.SimpleQueue

    class Queue(real):  # type: ignore[valid-type,misc]
        def get(self, *_: object) -> object:
            name = choose(sorted(machine.under_way))
            machine.end(name, ValueError(name) if name in failing else None)
            return super().get()

    together.SimpleQueue = Queue  # type: ignore[misc]
    try:
        side_by_side(graph, jobs, machine.begin, lambda item: ended.append(item.name))
    except ValueError as error:
        ended.append(f"failed {error}")
    finally:
        together.SimpleQueue = real  # type: ignore[misc]
    return machine, ended


def test_one_job_runs_them_one_after_another_in_their_order() -> None:
    machine, ended = run(1, lambda names: names[0])
    assert machine.begun == ended == [item.name for item in GRAPH]
    assert machine.most == 1


@pytest.mark.parametrize("choose", [min, max])
@pytest.mark.parametrize("jobs", [2, 3, 9])
def test_each_begins_once_what_it_comes_after_has_ended(jobs: int, choose: Callable[[list[str]], str]) -> None:
    machine, ended = run(jobs, choose)
    assert sorted(machine.begun) == sorted(ended) == sorted(item.name for item in GRAPH)
    for item in GRAPH:
        assert all(ended.index(name) < ended.index(item.name) for name in item.upstream)
    assert machine.most == 2, "no more than two wait for nothing"


def shards(number: int) -> list[Item]:
    stages = ("acquire", "screen", "preprocess")
    return [
        Item(f"{stage}@x-{shard}", (f"{before}@x-{shard}",) if before else ())
        for shard in range(number)
        for before, stage in zip((None, *stages), stages, strict=False)
    ]


@pytest.mark.parametrize("choose", [min, max])
def test_a_shard_is_transferred_while_the_one_before_is_preprocessed(choose: Callable[[list[str]], str]) -> None:
    """None has another of its kind beside it, and the raw bytes of two shards are on disk at most."""
    machine, ended = run(4, choose, graph=shards(5))
    assert sorted(ended) == sorted(item.name for item in shards(5))
    kinds = [[name.partition("@")[0] for name in beside] for beside in machine.beside]
    assert all(len(set(names)) == len(names) for names in kinds)
    assert any(len(names) > 1 for names in kinds)
    assert max(machine.open_shards) == 2


def test_one_job_ends_a_shard_before_it_begins_the_next() -> None:
    machine, _ = run(1, lambda names: names[0], graph=shards(3))
    assert machine.begun == [item.name for item in shards(3)]
    assert max(machine.open_shards) == 1


def test_tasks_that_train_begin_first_and_all_else_stays_where_it_is() -> None:
    blocks = {
        "a": {"kind": "classify"}, "b": {"kind": "locate"}, "c": {"kind": "classify", "fine_tune": None},
        "d-e": {"kind": "segment"}, "f": {"kind": "classify", "fine_tune": {"steps": 9}}, "g": {"kind": "saliency"},
    }  # fmt: skip
    stages = [Item("untrained@x"), *(Item(f"task@x-{name}") for name in blocks), Item("evaluate@x")]
    names = [stage.name.removeprefix("task@x-") for stage in longest_first(stages, blocks)]
    assert names == ["untrained@x", "d-e", "f", "b", "g", "a", "c", "evaluate@x"]


def test_a_training_has_what_does_not_wait_for_it_beside_it() -> None:
    machine, _ = run(2, lambda names: "untrained@x" if "untrained@x" in names else names[0])
    assert machine.begun.index("untrained@x") == machine.begun.index("pretrain@x") + 1
    assert machine.begun.index("features@x") > machine.begun.index("untrained@x")


def test_after_a_failure_nothing_is_begun_and_what_is_under_way_ends() -> None:
    first = ["untrained@x", "pretrain@x"]
    machine, ended = run(2, lambda names: next((n for n in first if n in names), names[0]), ("untrained@x",))
    assert machine.begun[-2:] == ["pretrain@x", "untrained@x"]
    assert ended[-2:] == ["pretrain@x", "failed untrained@x"]
    _, ended = run(2, lambda names: next((n for n in first if n in names), names[0]), ("untrained@x", "pretrain@x"))
    assert ended[-1] == "failed untrained@x", "the first one is told"


def test_real_threads_end_all_of_it() -> None:
    lock, ended = threading.Lock(), list[str]()

    def work(item: Item) -> None:
        with lock:
            ended.append(item.name)

    with ThreadPoolExecutor(3) as pool:
        side_by_side(GRAPH, 3, lambda item: pool.submit(work, item), lambda item: None)
    assert sorted(ended) == sorted(item.name for item in GRAPH)


@pytest.mark.parametrize(("cores", "gpu", "jobs"), [(1, False, 1), (2, False, 2), (64, False, 2), (64, True, 1)])
def test_stages_do_not_share_a_gpu_by_default(
    cores: int, gpu: bool, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(together.os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert default_jobs() == jobs


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "²", ""])
def test_a_number_of_jobs_that_is_none_is_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser(prog="ctfoundry release")
    add_jobs(parser)
    assert parser.parse_args(["--jobs", "3"]).jobs == 3
    assert parser.parse_args([]).jobs is None
    with pytest.raises(SystemExit):
        parser.parse_args(["--jobs", text])
    assert f"{text!r} is not allowed: a whole number" in capsys.readouterr().err
