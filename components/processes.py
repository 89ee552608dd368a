"""Many items in several processes of this machine; :func:`components.cluster.map_on_ray` has more machines.

Both give results in the order of the items, show progress, and hold an item to its memory and time: one that breaks
its bounds, or its worker, costs itself only.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from components.errors import UserError
from components.isolation import MAX_SECONDS, Deadline, Lost, guarded
from components.progress import track

MAX_TMPDIR = 107 - len("/pymp-xxxxxxxx/listener-xxxxxxxx")  # unix(7): 108 characters, the last a zero
IN_FLIGHT = 2  # items per process: one is worked on, one is ready to be
DIED = "its worker process died, twice"
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
TaskT = TypeVar("TaskT")


def short_socket_paths() -> None:
    """Multiprocessing has its sockets below TMPDIR, and their paths a limit: where that is long, they lie in /tmp.

    Holds for this process and those that it starts. Files stay in TMPDIR.
    """
    ours = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # what `util.get_temp_dir` asks first
    if "tempdir" not in ours and len(tempfile.gettempdir()) > MAX_TMPDIR:
        folder = tempfile.mkdtemp(prefix="mp-", dir="/tmp")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        ours["tempdir"] = folder


def _start_worker(environment: dict[str, str]) -> None:
    """The fork server keeps the environment it was started with; and with one process per core, OpenCV's own threads
    would only contend."""
    import cv2

    os.environ.update(environment)
    cv2.setNumThreads(1)


def map_all(
    function: Callable[[ItemT], ResultT], items: list[ItemT], label: str, *, workers: int | None = None
) -> list[ResultT]:
    """``function`` over ``items``, each of which must give a result: any exception ends the run.

    Args:
        function, items: what to do; picklable.
        label: shown with the progress.
        workers: processes; None takes one per core.

    Raises:
        UserError: a worker died, at the second attempt too.
    """
    workers, ones = _workers(workers, len(items)), [1] * len(items)
    if workers <= 1:
        return list(track(map(function, items), ones, label))
    results = []
    for result in track(_in_processes(partial(_unbounded, function), items, workers), ones, label):
        if isinstance(result, Lost):
            raise UserError(f"{label}: {result.detail}")
        results.append(result)
    return results


def map_isolated(
    function: Callable[[ItemT], ResultT],
    items: list[ItemT],
    label: str,
    *,
    max_memory: int,
    max_seconds: float = MAX_SECONDS,
    workers: int | None = None,
    size: Callable[[ItemT], int],
) -> list[ResultT | Lost]:
    """``function`` over ``items``; one that gives no result is :class:`Lost`, and only a UserError ends the run.

    Args:
        function, items: what to do; picklable.
        label: shown with the progress.
        max_memory: bytes that a process may take for an item.
        max_seconds: that a process may work on an item.
        workers: processes; None takes one per core.
        size: bytes of an item, for the rate and the time left; where all are 0, every item counts alike.
    """
    sizes = [size(item) for item in items]
    in_bytes = sum(sizes) > 0
    work = partial(_bounded, function, max_memory, max_seconds)
    found = _in_processes(work, items, _workers(workers, len(items)))
    return list(track(found, sizes if in_bytes else [1] * len(items), label, in_bytes))


def in_flight(
    waiting: list[int],
    running: dict[TaskT, int],
    most: int,
    submit: Callable[[int], TaskT],
    ended: Callable[[dict[TaskT, int]], tuple[int, ResultT]],
) -> Iterator[tuple[int, ResultT]]:
    """Numbers of items and their results, as they come.

    Args:
        waiting: numbers of the items, the first one last; those that are submitted leave it.
        running: tasks and their numbers; what is still there after an exception gave no result.
        most: tasks at a time.
        submit: number to task.
        ended: waits for one of the running tasks, and takes it off them.
    """
    while waiting or running:
        while waiting and len(running) < most:
            running[submit(waiting[-1])] = waiting[-1]
            waiting.pop()
        yield ended(running)


def _workers(wanted: int | None, items: int) -> int:
    return min(items, wanted or os.cpu_count() or 1)


def _unbounded(function: Callable[[ItemT], ResultT], item: ItemT, _: Path) -> ResultT:
    return function(item)


def _bounded(
    function: Callable[[ItemT], ResultT], max_memory: int, max_seconds: float, item: ItemT, mark: Path
) -> ResultT | Lost:
    """``mark``: of this item's deadline, the same at every attempt."""
    return guarded(function, item, max_memory, Deadline(mark, max_seconds))


def _in_processes(
    work: Callable[[ItemT, Path], ResultT | Lost], items: list[ItemT], workers: int
) -> Iterator[ResultT | Lost]:
    """Results in the order of ``items``."""
    early: dict[int, ResultT | Lost] = {}
    found = _as_they_come(work, items, workers)
    for number in range(len(items)):
        while number not in early:
            index, result = next(found)
            early[index] = result
        yield early.pop(number)


def _as_they_come(
    work: Callable[[ItemT, Path], ResultT | Lost], items: list[ItemT], workers: int
) -> Iterator[tuple[int, ResultT | Lost]]:
    """Numbers and results. A process that dies takes the whole pool along: then each item that was on its way is tried
    in a process of its own, which tells the one that kills from those that were near."""
    waiting = list(range(len(items) - 1, -1, -1))
    with tempfile.TemporaryDirectory(prefix="ctfoundry-") as marks:

        def submit(pool: ProcessPoolExecutor, index: int) -> Future[ResultT | Lost]:
            return pool.submit(work, items[index], Path(marks, str(index)))

        while waiting:
            running: dict[Future[ResultT | Lost], int] = {}
            with _pool(workers) as pool, suppress(BrokenProcessPool):
                yield from in_flight(waiting, running, IN_FLIGHT * workers, partial(submit, pool), _first)
            for index in sorted(running.values()):
                try:
                    with _pool(1) as pool:
                        yield index, submit(pool, index).result()
                except BrokenProcessPool:
                    yield index, Lost(DIED)


def _first(running: dict[Future[ResultT], int]) -> tuple[int, ResultT]:
    done = next(iter(wait(running, return_when=FIRST_COMPLETED).done))
    result = done.result()
    return running.pop(done), result


def _pool(workers: int) -> ProcessPoolExecutor:
    short_socket_paths()
    # Fork would copy the locks of threads that torch, Arrow and OpenCV have started.
    context = multiprocessing.get_context("forkserver")
    return ProcessPoolExecutor(workers, context, _start_worker, (dict(os.environ),))
