"""One run at a time in a checkout: its parameters, its lock file and its outputs are one run's, whoever else comes."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.errors import UserError

LOCK = Path(".ctfoundry/lock")  # the checkout's own, wherever its state lies
_held = False  # by this process


@contextmanager
def checkout_lock(what: str) -> Iterator[None]:
    """Hold the checkout for ``what``, such as ``release --line head``. Within this process it may be taken again.

    The kernel gives the lock back when its holder ends, however that was.

    Raises:
        UserError: another process holds it, here or on another host of the same file system; says which.
    """
    global _held
    if _held:
        yield
        return
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"this checkout is in use: {_holder(LOCK)}; wait for it to end, or stop it") from None
        file.truncate(0)
        file.write(json.dumps({"what": what, "pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        _held = True
        try:
            yield
        finally:
            _held = False
            file.truncate(0)


def _holder(path: Path) -> str:
    try:
        held = json.loads(path.read_text())
        return f"`{held['what']}`, process {held['pid']} on {held['host']}"
    except (ValueError, KeyError):  # it is just writing its name
        return "another command"
