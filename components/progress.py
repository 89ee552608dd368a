"""Progress on standard error for long work: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

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

LOG_SECONDS = 15.0
LOG_WIDTH = 140  # of tables in a log, so that a digest stays on one line
ItemT = TypeVar("ItemT")


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
