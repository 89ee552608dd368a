"""One item in a process that it may lose: memory and time limited, any error of its own turned into :class:`Lost`."""

from __future__ import annotations

import faulthandler
import logging
import resource
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from components.errors import UserError
from components.files import disk_full

log = logging.getLogger(__name__)

GIB = 2**30
MAX_SECONDS = 900.0  # of one item, transfers not counted; the largest series takes a minute or two
OUT_OF_MEMORY = ("can't allocate memory", "Insufficient memory", "bad_alloc")  # as torch, OpenCV and C++ put it
OPENCV_NO_MEMORY = -4  # cv2.Error.StsNoMem, for those who have not loaded OpenCV
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Lost:
    """What is left of an item that gave no result. ``detail``: why, for people; no value of the data is in it."""

    detail: str


@dataclass(frozen=True)
class Deadline:
    """How long this process works on one item.

    A decoder that never lets go runs no Python, not even a signal's handler. So a thread of faulthandler's, which needs
    no interpreter, writes where the work was into ``mark`` and ends the process. To whoever waits for it, that is a
    worker that died; whoever tries the item once more sees the mark, and does not wait as long again.

    Attributes:
        mark: a file of this item alone, seen by every process that may work on it.
        seconds: by the clock on the wall.
    """

    mark: Path
    seconds: float

    @property
    def missed(self) -> bool:
        """At an earlier attempt."""
        return self.mark.exists() and self.mark.stat().st_size > 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """The block, which ends in time or takes this process along."""
        with self.mark.open("w") as stream:

            def start() -> None:
                faulthandler.dump_traceback_later(self.seconds, exit=True, file=stream)

            start()
            _restart.append(start)
            try:
                yield
            finally:
                _restart.pop()
                faulthandler.cancel_dump_traceback_later()


_restart: list[Callable[[], None]] = []  # of the deadline that this process is under


@contextmanager
def untimed() -> Iterator[None]:
    """A block that has time limits of its own, as a transfer has. Behind it, the item has all its seconds again."""
    if not _restart:
        yield
        return
    faulthandler.cancel_dump_traceback_later()
    try:
        yield
    finally:
        _restart[-1]()


def guarded(
    function: Callable[[ItemT], ResultT], item: ItemT, max_memory: int, deadline: Deadline | None = None
) -> ResultT | Lost:
    """``function(item)`` within ``max_memory`` bytes more than this process has; an error is the item's own loss.

    The log says where an error came from, without its text, which may quote what a header holds.

    Args:
        function, item: what to do.
        max_memory: bytes.
        deadline: this process does not outlive it; an item that missed it at an earlier attempt is lost at once. None:
            the item may take as long as it likes.

    Raises:
        UserError: as ``function`` does; a full disk is one.
    """
    if deadline is not None and deadline.missed:
        return Lost(f"took longer than {deadline.seconds:g} s")
    try:
        with deadline.held() if deadline else nullcontext(), memory_limit(max_memory):
            return function(item)
    except UserError:
        raise
    except Exception as error:
        if out_of_memory(error):
            return Lost(f"needs more than {max_memory / GIB:g} GiB of memory")
        full = disk_full(error, Path(error.filename or tempfile.gettempdir())) if isinstance(error, OSError) else None
        if full is not None:
            raise full from None
        return _lost(error)


def _lost(error: Exception) -> Lost:
    at = traceback.extract_tb(error.__traceback__)[-1]
    log.warning("an error that nobody foresaw: %s in %s, line %s", type(error).__name__, at.filename, at.lineno)
    return Lost(f"an error that nobody foresaw ({type(error).__name__})")


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory was refused, in the words of any library that is used here."""
    opencv = type(error).__module__ == "cv2" and getattr(error, "code", None) == OPENCV_NO_MEMORY
    return opencv or isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


@contextmanager
def memory_limit(max_memory: int) -> Iterator[None]:
    """At most ``max_memory`` bytes more than this process has now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (capped(data_bytes() + max_memory, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def capped(most: int, hard: int) -> int:
    """``most``, or the machine's own hard limit where that is lower."""
    return most if hard == resource.RLIM_INFINITY else min(most, hard)


def data_bytes() -> int:
    """What RLIMIT_DATA counts: private, writable memory of this process, its threads' stacks included."""
    status = Path("/proc/self/status").read_text().partition("VmData:")[2]
    return int(status.split()[0]) * 1024


def check_unexpected(stage: str, details: Iterable[str], allowed: int) -> None:
    """Raise UserError where more series than ``allowed`` ended in :class:`Lost`, whose ``details`` these are."""
    found = sorted(details)
    if len(found) > allowed:
        named = ", ".join(f"{found.count(detail)} x {detail}" for detail in dict.fromkeys(found))
        raise UserError(
            f"{stage}: {len(found)} series of the shard gave no result ({named}); acquire.max_unexpected allows "
            f"{allowed}; what is finished is kept"
        )
