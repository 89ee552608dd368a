"""One item in a process that it may lose: memory limited, and any error of its own turned into :class:`Lost`."""

from __future__ import annotations

import logging
import resource
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from components.files import disk_full
from components.params import UserError

log = logging.getLogger(__name__)

GIB = 2**30
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Lost:
    """What is left of an item that gave no result. ``detail``: why, for people; no value of the data is in it."""

    detail: str


def guarded(function: Callable[[ItemT], ResultT], item: ItemT, max_memory: int) -> ResultT | Lost:
    """``function(item)`` within ``max_memory`` bytes more than this process has; an error is the item's own loss.

    The log says where an error came from, without its text, which may quote what a header holds.

    Raises:
        UserError: as ``function`` does; a full disk is one.
    """
    import cv2

    try:
        with memory_limit(max_memory):
            return function(item)
    except UserError:
        raise
    except MemoryError:
        return Lost(f"needs more than {max_memory / GIB:g} GiB of memory")
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            return Lost(f"needs more than {max_memory / GIB:g} GiB of memory")
        return _lost(error)
    except Exception as error:
        full = disk_full(error, Path(error.filename or tempfile.gettempdir())) if isinstance(error, OSError) else None
        if full is not None:
            raise full from None
        return _lost(error)


def _lost(error: Exception) -> Lost:
    at = traceback.extract_tb(error.__traceback__)[-1]
    log.warning("an error that nobody foresaw: %s in %s, line %s", type(error).__name__, at.filename, at.lineno)
    return Lost(f"an error that nobody foresaw ({type(error).__name__})")


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
