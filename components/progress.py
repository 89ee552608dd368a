"""Progress on standard error for long work: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import cv2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_SECONDS = 15.0
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def track(items: Iterable[ItemT], total: int, label: str) -> Iterator[ItemT]:
    """Yield ``items``, showing how many of ``total`` are done and the time left."""
    if sys.stderr.isatty():
        columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            yield from progress.track(items, total=total)
        return
    start = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown > LOG_SECONDS and done < total:
            left = (now - start) / done * (total - done)
            print(f"{label}: {done}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)
            shown = now
    print(f"{label}: {total}/{total} in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def _start_worker(environment: dict[str, str]) -> None:
    """The fork server keeps the environment it was started with; and with one process per core, OpenCV's own threads
    would only contend."""
    os.environ.update(environment)
    cv2.setNumThreads(1)


def map_series(function: Callable[[ItemT], ResultT], items: list[ItemT], label: str) -> list[ResultT]:
    """``function`` over ``items`` in one process per core, results in the order of ``items``, with progress.

    ``function`` and ``items`` are picklable. An exception in one item ends the run: a function that may fail on bad
    data returns that as its result.
    """
    workers = min(len(items), os.cpu_count() or 1)
    if workers <= 1:
        return list(track(map(function, items), len(items), label))
    # Fork would copy the locks of threads that torch, Arrow and OpenCV have started.
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, context, _start_worker, (dict(os.environ),)) as pool:
        return list(track(pool.map(function, items), len(items), label))
