"""Which processes are a stage's: all below it, also those that left its group, its session and their parent."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "CTFOUNDRY_STAGE_RUN"  # in the environment of a stage, and so of all that it starts
PREFIX = "ctfoundry-"  # of our cgroups; the number of the process that made them follows
Key = tuple[int, float]  # a process: its number, and when it began, for numbers are given again


class Cgroup:
    """A control group (version 2) of one stage: the kernel adds up what its processes use, whoever waits for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, pid: int) -> Cgroup | None:
        """A new group with the process ``pid`` in it; None where this machine lets us make none."""
        own = own_cgroup()
        if own is None:
            return None
        _sweep(own)
        group = cls(own / f"{PREFIX}{os.getpid()}-{uuid.uuid4().hex[:12]}")
        try:
            group.folder.mkdir()
            (group.folder / "cgroup.procs").write_text(str(pid))
            group.cpu_seconds()
        except (OSError, ValueError):  # read-only, not ours, or a kernel without the counter
            group.close()
            return None
        return group

    def cpu_seconds(self) -> float:
        """What all its processes have used, ended ones too."""
        told = dict(line.split() for line in (self.folder / "cpu.stat").read_text().splitlines())
        if "usage_usec" not in told:
            raise ValueError(f"{self.folder}/cpu.stat: no usage_usec")
        return int(told["usage_usec"]) / 1e6

    def pids(self) -> set[int]:
        return {int(number) for number in (self.folder / "cgroup.procs").read_text().split()}

    def close(self) -> None:
        """Remove the group; what still lives in it goes where we are."""
        with suppress(OSError):
            for pid in self.pids():
                with suppress(OSError):  # it has just ended
                    (self.folder.parent / "cgroup.procs").write_text(str(pid))
        with suppress(OSError):
            self.folder.rmdir()


def own_cgroup() -> Path | None:
    """The folder of the version 2 group that this process is in, where such groups are mounted."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return None
    mounted = next((fields[4] for fields in mounts if fields[fields.index("-") + 1] == "cgroup2"), None)
    within = next((line.removeprefix("0::") for line in groups if line.startswith("0::")), None)
    if mounted is None or within is None:
        return None
    folder = Path(mounted) / within.lstrip("/")
    return folder if (folder / "cgroup.procs").is_file() else None


def _sweep(own: Path) -> None:
    """Remove groups of runs that were killed; one with processes in it cannot be removed, and stays."""
    for folder in own.glob(f"{PREFIX}*"):
        maker = folder.name.removeprefix(PREFIX).partition("-")[0]
        if maker.isdigit() and not psutil.pid_exists(int(maker)):
            with suppress(OSError):
                folder.rmdir()


class Tree:
    """The processes below one, found by parent, and by ``mark`` in the environment of those that left their parent."""

    def __init__(self, pid: int, mark: str) -> None:
        self._root, self._mark = pid, f"{MARK}={mark}".encode()
        self._ours: set[Key] = set()
        self._others: set[Key] = set()  # orphans that were asked

    def pids(self) -> set[int]:
        """Those that live, or have ended and wait to be reaped."""
        parents: dict[Key, int] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                parents[key_of(process)] = process.ppid()
        self._ours &= parents.keys()
        self._others &= parents.keys()
        self._ours |= {key for key in parents if key[0] == self._root}
        adopting = {0, 1, os.getpid()}
        for key, parent in parents.items():
            if parent in adopting and key not in self._ours | self._others:
                (self._ours if self._has_mark(key[0]) else self._others).add(key)
        found = {pid for pid, _ in self._ours}
        while new := {key for key, parent in parents.items() if parent in found and key[0] not in found}:
            self._ours |= new
            found |= {pid for pid, _ in new}
        return found

    def _has_mark(self, pid: int) -> bool:
        try:
            return self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False


def key_of(process: psutil.Process) -> Key:
    return process.pid, process.create_time()
