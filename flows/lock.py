"""Who works where: one run at a time in a checkout, one of a line at a time on a state folder, and nobody while a sweep
removes what nobody uses. The kernel gives a lock back when its holder ends, however that was."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from components.errors import UserError
from components.files import STATE

LOCK = Path(".ctfoundry/lock")  # the checkout's own, wherever its state lies
SLOTS = STATE / "slots"
SWEEP = "sweep"  # every line shares it, a sweep has it alone; no line has this name with a dot
POLL_SECONDS = 1.0
LOOK_SECONDS = 0.5  # a look at a lock is over by then
_held = False  # by this process
_lines: dict[str, IO[str]] = {}  # whose slots this process holds
_until_the_end = ExitStack()


@contextmanager
def checkout_lock(what: str) -> Iterator[None]:
    """Hold the checkout for ``what``, such as ``release --line head``. Within this process it may be taken again.

    Raises:
        UserError: another process holds it, here or on another host of the same file system; says which.
    """
    global _held
    if _held:
        yield
        return
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("a+") as file:
        if not _taken_soon(file):
            raise UserError(f"this checkout is in use: {_holder(LOCK)}; wait for it to end, or stop it")
        _sign(file, what)
        _held = True
        try:
            yield
        finally:
            _held = False
            file.truncate(0)


def hold_checkout(what: str) -> None:
    """As :func:`checkout_lock`, until this process ends: a workspace that nobody holds is, to a sweep, a dead run's."""
    _until_the_end.enter_context(checkout_lock(what))


@contextmanager
def line_slot(line: str, what: str, shared: bool = False) -> Iterator[None]:
    """The line's turn on the state folder, which several checkouts may share: of two runs of one line each would remove
    the volumes that the other keeps. Waits for it, and says once for whom. This process may take it again.

    Args:
        line: model line.
        what: has it, for those who wait.
        shared: with others that ask so: they make other shards of the same release.
    """
    if line in _lines:
        yield
        return
    SLOTS.mkdir(parents=True, exist_ok=True)
    with (SLOTS / f".{SWEEP}").open("a+") as sweep, (SLOTS / line).open("a+") as own:
        for file, kind in ((sweep, fcntl.LOCK_SH), (own, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)):
            _wait(file, kind, what)
        if not shared:
            _sign(own, what)
        _lines[line] = own
        try:
            yield
        finally:
            del _lines[line]
            if not shared:
                own.truncate(0)


@contextmanager
def slot_lent(line: str, what: str) -> Iterator[None]:
    """Within it the line's turn, which this process has, is shared with those that make shards for it."""
    fcntl.flock(_lines[line], fcntl.LOCK_SH)
    yield
    _wait(_lines[line], fcntl.LOCK_EX, what)  # not after an error: who is told to end waits for nobody


@contextmanager
def turn(kind: str, what: str) -> Iterator[None]:
    """One stage of a kind at a time on this state folder. Waits for it."""
    SLOTS.mkdir(parents=True, exist_ok=True)
    with (SLOTS / f".{kind}").open("a+") as file:
        _wait(file, fcntl.LOCK_EX, what)
        _sign(file, what)
        try:
            yield
        finally:
            file.truncate(0)


@contextmanager
def every_slot(what: str) -> Iterator[bool]:
    """The turn of every line at once; False, at once, where a line is being worked on."""
    SLOTS.mkdir(parents=True, exist_ok=True)
    with (SLOTS / f".{SWEEP}").open("a+") as sweep:
        if not _taken(sweep, fcntl.LOCK_EX):
            yield False
            return
        _sign(sweep, what)
        try:
            yield True
        finally:
            sweep.truncate(0)


def is_held(lock: Path) -> bool:
    """Whether a process holds this lock file."""
    with lock.open("a+") as other:
        return not _taken(other, fcntl.LOCK_EX)


def _taken_soon(file: IO[str]) -> bool:
    """Whether it could be taken: whoever looks whether it is held has it for that moment."""
    end = time.monotonic() + LOOK_SECONDS
    while not _taken(file, fcntl.LOCK_EX):
        if time.monotonic() > end:
            return False
        time.sleep(LOOK_SECONDS / 20)
    return True


def _taken(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(file: IO[str], kind: int, what: str) -> None:
    told = False
    while not _taken(file, kind):
        if not told:
            holder = _holder(Path(file.name))
            print(f"ctfoundry: {what} waits for its turn on {STATE}: {holder}", file=sys.stderr, flush=True)
        told = True
        time.sleep(POLL_SECONDS)  # and not in the kernel: a signal is to be heard


def _sign(file: IO[str], what: str) -> None:
    file.truncate(0)
    file.write(json.dumps({"what": what, "pid": os.getpid(), "host": socket.gethostname()}))
    file.flush()


def _holder(path: Path) -> str:
    try:
        held = json.loads(path.read_text())
        return f"`{held['what']}`, process {held['pid']} on {held['host']}"
    except (ValueError, KeyError):  # it is just writing its name
        return "another command"
