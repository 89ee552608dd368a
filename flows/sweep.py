"""Remove what dead runs left on this machine, and what nobody needs of DVC's cache.

A workspace is dead where nobody holds its lock. Nobody's checkout is looked at: workspaces are the clones that
Prefect's worker made in the folder for temporary files, of the repository that releases are made from.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from components.errors import UserError
from components.files import STATE
from flows.lock import LOCK, every_slot, is_held
from flows.processes import GRACE_SECONDS, started
from flows.repository import git

# Python's own names of temporary folders. Prefect's of a run and its notes; those of releases and verifications; Ray's.
WORKSPACES = re.compile(r"tmp[a-z0-9_]{8}prefect")
OTHERS = re.compile(r"(prefect-workspace-attempt-|ctfoundry-(bento|code|index|run|sign|verify)-|ray-)[a-z0-9_]{8}")
RUNNERS = "runner_storage"  # an empty folder there of each worker; one that lives makes no use of it
RAYS_PLACES = ("/tmp", "/var/tmp", "/dev/shm")  # where TMPDIR is too long for its sockets
# What was being written when a run was killed: of our own files, and DVC's in cache and remote.
HALF_WRITTEN = re.compile(r"\..+\.[0-9a-f]{32}\.(partial|old)|.*\.[0-9A-Za-z_-]{22}\.tmp")
PRIVATE = 0o700  # as Python makes them, and people hardly
YOUNG_SECONDS = 3600.0  # a clone that is being made has no lock yet, and a file in use no other sign
COMMITS = STATE / "commits"  # which commit a run works at: see prefect.yaml
DAY_SECONDS = 86_400.0
COMMIT_DAYS = 30


def sweep_all(tell: Callable[[str], None], days: int = 0) -> str:
    """All of it; returns what was removed, '' where nothing was.

    Args:
        tell: told each line that DVC prints.
        days: commits of that many days keep their outputs, beside the tips of branches and the tags.

    Raises:
        UserError: git or DVC failed.
    """
    told = []
    if dead := sweep_workspaces():
        told.append(f"{dead} workspaces of dead runs")
    if old := [path for path in _temporary(OTHERS) if _is_old(path) and not _used(path)]:
        for path in old:
            shutil.rmtree(path, ignore_errors=True)
        told.append(f"{len(old)} temporary folders")
    for path in (Path(tempfile.gettempdir()) / RUNNERS).glob("*"):
        if _is_old(path):
            with suppress(OSError):  # something is in it
                path.rmdir()
    if half := _remove_half_written(STATE):
        told.append(f"{half} half-written files")
    for path in COMMITS.glob("*"):
        if time.time() - path.stat().st_mtime > COMMIT_DAYS * DAY_SECONDS:
            path.unlink()
    with every_slot("sweep") as free:
        if not free:
            tell("a line is being worked on: DVC's cache is left as it is until the next sweep")
        elif removed := _collect(tell, days):
            told.append(removed)
    return ", ".join(told)


def sweep_workspaces() -> int:
    """End what dead runs have left running here, and remove their workspaces; returns how many."""
    dead = list(dead_workspaces(git("remote", "get-url", "origin")))
    for folder in dead:
        _end_within(folder)
        shutil.rmtree(folder, ignore_errors=True)
    return len(dead)


def dead_workspaces(origin: str) -> Iterator[Path]:
    """Folders of runs that have ended without their worker, with a clone of ``origin``."""
    for folder in _temporary(WORKSPACES):
        clones = [git_folder.parent for git_folder in folder.glob("*/.git")]
        if not clones:
            if _is_old(folder) and not _used(folder):
                yield folder
        elif all(_origin(clone) == origin and _is_dead(clone) for clone in clones):
            yield folder


def _is_dead(clone: Path) -> bool:
    lock = clone / LOCK
    if not lock.is_file():
        return _is_old(clone) and not _used(clone)
    # Its holder's name is in it from right after it was taken until it is given back.
    return not is_held(lock) and (lock.stat().st_size > 0 or not _used(clone))


def _origin(clone: Path) -> str:
    return git("-C", str(clone), "config", "--default", "", "--get", "remote.origin.url")


def _temporary(name: re.Pattern[str]) -> list[Path]:
    """Our own folders of that name among the temporary files."""
    own = Path(tempfile.gettempdir())
    found = {path for path in own.iterdir() if name.fullmatch(path.name)}
    found |= {path for place in RAYS_PLACES for path in Path(place).glob("ray-*") if name.fullmatch(path.name)}
    return [path for path in sorted(found) if _is_ours(path)]


def _is_ours(folder: Path) -> bool:
    with suppress(FileNotFoundError):
        status = folder.lstat()
        private = stat.S_IMODE(status.st_mode) == PRIVATE or folder.name.startswith("ray-")  # which Ray opens to all
        return stat.S_ISDIR(status.st_mode) and private and status.st_uid == os.getuid()
    return False


def _remove_half_written(folder: Path) -> int:
    old = [path for path in _half_written(folder) if _is_old(path)]
    for path in old:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return len(old)


def _half_written(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in (*folders, *files) if HALF_WRITTEN.fullmatch(name))


def _is_old(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > YOUNG_SECONDS


def _within(folder: Path) -> list[psutil.Process]:
    """Processes whose working folder or open files lie in a folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            places = [process.cwd(), *(file.path for file in process.open_files())]
            if any(Path(place).is_relative_to(folder) for place in places if place):
                found.append(process)
    return found


def _used(folder: Path) -> bool:
    return bool(_within(folder))


def _end_within(folder: Path) -> None:
    """End the stages and workers that a killed run has left behind."""
    left = [process for process in _within(folder) if process.pid != os.getpid()]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(left, timeout=GRACE_SECONDS)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _collect(tell: Callable[[str], None], days: int) -> str:
    """``dvc gc`` of this machine's cache; the remote keeps what it has. Returns what was removed."""
    # The branches of the remote, for DVC looks at this clone's own only.
    git("fetch", "--quiet", "--tags", "--force", "--update-head-ok", "origin", "+refs/heads/*:refs/heads/*")
    command = ["dvc", "gc", "--workspace", "--all-branches", "--all-tags", "--force"]
    if days:
        since = time.strftime("%Y-%m-%d", time.localtime(time.time() - days * DAY_SECONDS))
        command += ["--date", since]
    removed = ""
    with started(command) as (process, lines):
        for text in lines:
            tell(text)
            removed = text.removesuffix(".").lower() if text.startswith("Removed") and not removed else removed
    if process.returncode != 0:
        raise UserError(f"sweep: dvc gc failed (exit {process.returncode})")
    return removed
