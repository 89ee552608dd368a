"""Stages side by side: those that wait for no other, as many at a time as a run has jobs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

# Each spreads over all cores by itself; and one at a time keeps the raw bytes on disk to one shard's.
SPREADING = ("acquire@", "screen@", "preprocess@")
MOST = 2  # by default: a stage takes up to two cores and 2 GB


class Placed(Protocol):
    """What has a name and comes after others: a step of a run, a stage of the graph."""

    @property
    def name(self) -> str: ...

    @property
    def upstream(self) -> tuple[str, ...]: ...


class Begun(Protocol):
    """A future, of whichever library."""

    def add_done_callback(self, fn: Callable[[Any], None]) -> None: ...

    def result(self) -> Any: ...


PlacedT = TypeVar("PlacedT", bound=Placed)


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """The option ``--jobs`` of a command that runs stages."""
    parser.add_argument(
        "--jobs", type=_number, metavar="N",
        help="stages at a time, where they do not wait for each other (default: 2; 1 on one core or where there is a "
        "GPU, which they would share)",
    )  # fmt: skip


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: a whole number of stages at a time, at least 1")
    return int(text)


def default_jobs() -> int:
    """As many stages at a time as this machine bears: one where they would share a GPU's memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < MOST:
        return 1
    from torch import cuda  # takes a second

    return 1 if cuda.is_available() else MOST


def side_by_side(
    items: Sequence[PlacedT], jobs: int, begin: Callable[[PlacedT], Begun], ended: Callable[[PlacedT], None]
) -> None:
    """Run all of ``items``, each once what it comes after has ended; of those that may begin, the earliest does.

    Args:
        items: in an order in which they could run one after another; other names in ``upstream`` are taken as done.
        jobs: items at a time.
        begin: starts one.
        ended: called, in this thread, after each that ended well.

    Raises:
        Exception: the first failure, as it was; nothing is begun after it, and what was under way has ended.
    """
    waiting, running = list(items), dict[Begun, PlacedT]()
    finished: SimpleQueue[Begun] = SimpleQueue()
    failure: Exception | None = None
    while waiting or running:
        while not failure and len(running) < jobs and (item := _next(waiting, list(running.values()))):
            waiting.remove(item)
            future = begin(item)
            running[future] = item
            future.add_done_callback(finished.put)
        if not running:
            break
        future = finished.get()
        item = running.pop(future)
        try:
            future.result()
            ended(item)
        except Exception as error:
            failure = failure or error
    if failure:
        raise failure


def _next(waiting: Sequence[PlacedT], running: Sequence[PlacedT]) -> PlacedT | None:
    """The first that comes after nothing that is still to end, and whose cores are free."""
    to_end = {item.name for item in (*waiting, *running)}
    spreads = any(item.name.startswith(SPREADING) for item in running)
    for item in waiting:
        if to_end.isdisjoint(item.upstream) and not (spreads and item.name.startswith(SPREADING)):
            return item
    return None
