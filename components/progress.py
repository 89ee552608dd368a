"""Progress on standard error for long work: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from components.errors import UserError
from components.isolation import MAX_SECONDS, Deadline, Lost, guarded

LOG_SECONDS = 15.0
MAX_TMPDIR = 107 - len("/pymp-xxxxxxxx/listener-xxxxxxxx")  # unix(7): 108 characters, the last a zero
LOG_WIDTH = 140  # of tables in a log, so that a digest stays on one line
IN_FLIGHT = 2  # items per process: one is worked on, one is ready to be
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def wide_console() -> Console:
    """The terminal at its own width; a log or a pipe at a width that folds no digest."""
    return Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)


def track(items: Iterable[ItemT], sizes: Sequence[int], label: str, in_bytes: bool = False) -> Iterator[ItemT]:
    """Yield ``items``, showing how many are done, the time left and, ``in_bytes``, bytes per second.

    Args:
        items: as many as ``sizes``.
        sizes: share of each item in the whole, such as its bytes; the time left follows from them.
        label: what is going on.
        in_bytes: the sizes are bytes.
    """
    total, whole = len(sizes), max(1, sum(sizes))
    if sys.stderr.isatty():
        rate = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)
        columns = (TextColumn(label), BarColumn(), *rate, TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(label, total=whole)
            for item, size in zip(items, sizes, strict=True):
                yield item
                progress.advance(task, size)
        return
    start = shown = time.monotonic()
    done = 0
    for number, (item, size) in enumerate(zip(items, sizes, strict=True), 1):
        yield item
        done += size
        now = time.monotonic()
        if now - shown > LOG_SECONDS and number < total and done:
            left = (now - start) / done * (whole - done)
            speed = f", {done / (now - start) / 1e6:.1f} MB/s" if in_bytes else ""
            print(f"{label}: {number}/{total}{speed}, {left:.0f} s left", file=sys.stderr, flush=True)
            shown = now
    speed = f", {done / max(1e-3, time.monotonic() - start) / 1e6:.1f} MB/s" if in_bytes else ""
    print(f"{label}: {total}/{total} in {time.monotonic() - start:.0f} s{speed}", file=sys.stderr, flush=True)


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


def map_series(
    function: Callable[[ItemT], ResultT],
    items: list[ItemT],
    label: str,
    *,
    workers: int | None = None,
    size: Callable[[ItemT], int] | None = None,
    max_memory: int | None = None,
    max_seconds: float = MAX_SECONDS,
    lost: Callable[[ItemT, Lost], ResultT] | None = None,
) -> list[ResultT]:
    """``function`` over ``items`` in several processes, results in the order of ``items``, with progress.

    ``function`` and ``items`` are picklable. With ``lost`` an item costs itself only, whatever it does to the process
    that works on it; only a UserError ends the run. Without, any exception does.

    Args:
        function, items: what to do.
        label: shown with the progress.
        workers: processes; None takes one per core.
        size: bytes of an item, for the rate and the time left; None counts every item alike.
        max_memory: bytes that a process may take for an item; only with ``lost``.
        max_seconds: that a process may work on an item, where ``max_memory`` is given.
        lost: makes the result of an item that gave none.
    """
    workers = min(len(items), workers or os.cpu_count() or 1)
    sizes = [size(item) for item in items] if size else []
    in_bytes = sum(sizes) > 0
    sizes = sizes if in_bytes else [1] * len(items)
    if not items or (workers <= 1 and lost is None):
        return list(track(map(function, items), sizes, label, in_bytes))
    found = _in_order(_in_processes(_Work(function, max_memory, max_seconds), items, workers), len(items))
    results = []
    for item, result in zip(items, track(found, sizes, label, in_bytes), strict=True):
        if isinstance(result, Lost):
            if lost is None:
                raise UserError(f"{label}: {result.detail}")
            result = lost(item, result)
        results.append(result)
    return results


@dataclass(frozen=True)
class _Work(Generic[ItemT, ResultT]):
    """``function``, guarded where it may not take more than ``max_memory``."""

    function: Callable[[ItemT], ResultT]
    max_memory: int | None
    max_seconds: float

    def __call__(self, item: ItemT, mark: Path) -> ResultT | Lost:
        """``mark``: of this item's deadline, the same at every attempt."""
        if self.max_memory is None:
            return self.function(item)
        return guarded(self.function, item, self.max_memory, Deadline(mark, self.max_seconds))


def _in_processes(
    work: _Work[ItemT, ResultT], items: list[ItemT], workers: int
) -> Iterator[tuple[int, ResultT | Lost]]:
    """Numbers and results, as they come. A process that dies takes the whole pool along: then each item that was on its
    way is tried in a process of its own, which tells the one that kills from those that were near."""
    waiting = list(range(len(items) - 1, -1, -1))
    with tempfile.TemporaryDirectory(prefix="ctfoundry-") as marks:

        def submit(pool: ProcessPoolExecutor, index: int) -> Future[ResultT | Lost]:
            return pool.submit(work, items[index], Path(marks, str(index)))

        while waiting:
            on_its_way: dict[Future[ResultT | Lost], int] = {}
            with _pool(workers) as pool:
                try:
                    while waiting or on_its_way:
                        while waiting and len(on_its_way) < IN_FLIGHT * workers:
                            on_its_way[submit(pool, waiting[-1])] = waiting[-1]
                            waiting.pop()
                        for future in wait(on_its_way, return_when=FIRST_COMPLETED).done:
                            result = future.result()
                            yield on_its_way.pop(future), result
                except BrokenProcessPool:
                    pass
            for index in sorted(on_its_way.values()):
                try:
                    with _pool(1) as pool:
                        yield index, submit(pool, index).result()
                except BrokenProcessPool:
                    yield index, Lost("its worker process died, twice")


def _pool(workers: int) -> ProcessPoolExecutor:
    short_socket_paths()
    # Fork would copy the locks of threads that torch, Arrow and OpenCV have started.
    context = multiprocessing.get_context("forkserver")
    return ProcessPoolExecutor(workers, context, _start_worker, (dict(os.environ),))


def _in_order(found: Iterator[tuple[int, ResultT]], count: int) -> Iterator[ResultT]:
    early: dict[int, ResultT] = {}
    for number in range(count):
        while number not in early:
            index, result = next(found)
            early[index] = result
        yield early.pop(number)
