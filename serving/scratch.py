"""A folder for each request, which holds a patient's scan and goes with it; those of a service that was killed go when
the next one starts.

A folder is locked by the process whose request it is of. The lock ends with that process, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread

log = logging.getLogger("bentoml.service.ctfoundry")

PREFIX = "ctfoundry-request-"
UNLOCKED = "ctfoundry-new-"  # its name until it is locked


@asynccontextmanager
async def scratch_folder() -> AsyncIterator[Path]:
    """A folder that is gone afterwards, however the request ends; removing thousands of files blocks nobody."""
    made = Path(tempfile.mkdtemp(prefix=UNLOCKED))
    lock = _locked(made)
    folder = made.rename(made.with_name(PREFIX + made.name.removeprefix(UNLOCKED)))
    try:
        yield folder
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))
        os.close(lock)


def sweep() -> int:
    """Remove the folders of requests whose process is gone.

    Returns:
        How many.
    """
    removed = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody's else, or gone meanwhile
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                removed += 1
            finally:
                os.close(lock)
    if removed:
        log.warning("removed %d folders of requests whose service was killed", removed)
    return removed


def _locked(folder: Path) -> int:
    """The descriptor that holds the lock; where the file system has no locks, none is held, and nothing is swept."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor
