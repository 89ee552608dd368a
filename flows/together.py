"""Stages side by side: those that wait for no other, as many at a time as a run has jobs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from components.settings import read_yaml

SPREADING = ("acquire", "screen", "preprocess")  # each over all cores by itself: one of a kind at a time
OPEN_SHARDS = 2  # one is transferred while the one before is preprocessed: no more raw bytes are on disk
MOST = 2  # by default: a stage takes up to two cores and 2 GB
SCANNING = ("locate", "saliency")  # kinds that run encoders over whole scans


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


def task_blocks(line: str) -> dict[str, Any]:
    """The line's tasks by name; none where it has none."""
    of_line = read_yaml().get(line)
    return (of_line.get("tasks") or {}) if isinstance(of_line, dict) else {}


def longest_first(stages: Sequence[PlacedT], blocks: Mapping[str, Any]) -> list[PlacedT]:
    """The same stages, of the tasks those first that train, then those that run encoders over scans: begun last, they
    would be waited for alone.

    Args:
        stages: in order, tasks by address: ``task@head-findings``.
        blocks: the line's tasks.
    """

    def rank(stage: PlacedT) -> int:
        block = blocks[stage.name.partition("-")[2]]
        trains = block["kind"] == "segment" or block.get("fine_tune") is not None
        return 0 if trains else 1 if block["kind"] in SCANNING else 2

    tasks = iter(sorted((stage for stage in stages if stage.name.startswith("task@")), key=rank))
    return [next(tasks) if stage.name.startswith("task@") else stage for stage in stages]


def _next(waiting: Sequence[PlacedT], running: Sequence[PlacedT]) -> PlacedT | None:
    """The first that comes after nothing that is still to end, and for which there is room."""
    to_end = {item.name for item in (*waiting, *running)}
    ready = (item for item in waiting if to_end.isdisjoint(item.upstream))
    return next((item for item in ready if _has_room(item.name, waiting, running)), None)


def _has_room(name: str, waiting: Sequence[PlacedT], running: Sequence[PlacedT]) -> bool:
    kind = name.partition("@")[0]
    if kind in SPREADING and any(item.name.startswith(f"{kind}@") for item in running):
        return False
    if kind != "acquire":
        return True
    to_begin, to_end = _shards("acquire", waiting), _shards("preprocess", (*waiting, *running))
    return len(to_end - to_begin) < OPEN_SHARDS


def _shards(stage: str, items: Sequence[Placed]) -> set[str]:
    return {item.name.removeprefix(f"{stage}@") for item in items if item.name.startswith(f"{stage}@")}
