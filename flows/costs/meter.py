"""Measuring a stage while it runs: the kernel's counters where it keeps them, and looks at its processes."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any

import psutil

from components.errors import UserError
from flows.costs import usage as records
from flows.costs.energy import Gpus, Rapl
from flows.costs.ledger import NOTHING, Amounts, Ledger, Seen
from flows.costs.members import Cgroup, Key, Tree, key_of
from flows.costs.usage import Usage

GIB = 2**30
FIRST_WAIT, LONGEST_WAIT = 0.1, 1.0  # seconds between two looks: more at the beginning, for stages of seconds
SHARE = 50  # a look that takes long is followed by a wait this many times as long
KEPT_EVERY = 10.0  # seconds: what a record lacks at most where everything is killed at once


class Meter:
    """Measures the process ``pid`` and all below it until its end; use as a context. Its record is on disk from the
    beginning, so that one that is killed leaves one, too.

    Args:
        stage: whose record it is.
        pid: the child that runs it, not yet waited for.
        mark: value of :data:`flows.costs.members.MARK` in its environment.
    """

    def __init__(self, stage: str, pid: int, mark: str) -> None:
        self._pid = pid
        self._cgroup = Cgroup.of(pid)
        self._tree = None if self._cgroup else Tree(pid, mark)
        self._ledger, self._keys = Ledger(), set[Key]()  # of those that were there at the last look
        self._rapl, self._gpus = Rapl.here(), Gpus.here()
        self._began = self._looked = self._kept = time.monotonic()
        self._pss: float | None = None
        self.usage = Usage(gpu_s=None if self._gpus is None else 0.0)
        self._path, self._record = records.begun(stage, "cgroup" if self._cgroup else "samples")
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"meter {stage}", daemon=True)

    @property
    def counted_by(self) -> str:
        return self._record.counted_by

    def __enter__(self) -> Meter:
        self._keep()
        self._look()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            with suppress(ChildProcessError):  # somebody else has waited for it
                # Not reaped by this: the counters of a process that has ended are there until then.
                os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        self._ends.set()
        self._thread.join()
        self._look()
        if self._cgroup is not None:
            self._cgroup.close()

    def close(self, outcome: str, moved_bytes: int | None = None) -> None:
        """Keep the record as it ended; that of a stage that had nothing to do (``outcome`` empty) is dropped."""
        self.usage = replace(self.usage, moved_bytes=moved_bytes)
        if not outcome:
            self._path.unlink(missing_ok=True)
            return
        stage = self._record.stage
        entry = records.lock_entries([stage]).get(stage) if outcome == records.MADE else None
        lock = "" if entry is None else records.entry_hash(entry)
        self._keep(outcome=outcome, lock=lock)

    def _keep(self, **changed: Any) -> None:
        # A disk that is full, or a folder that may not be written, is the stage's to tell: a record stops no release.
        with suppress(OSError, UserError):
            self._record = records.keep(self._path, self._record, usage=self.usage, **changed)

    def _watch(self) -> None:
        wait = FIRST_WAIT
        while not self._ends.wait(wait):
            before = time.monotonic()
            self._look()
            took = time.monotonic() - before
            wait = max(took * SHARE, min(LONGEST_WAIT, FIRST_WAIT + (before - self._began) / SHARE))
            if before - self._kept >= min(KEPT_EVERY, (before - self._began) / 2):
                self._kept = before
                self._keep()

    def _look(self) -> None:
        now = time.monotonic()
        seen, pss, pids = self._processes()
        self._ledger.update(seen)
        cpu, read, written = self._ledger.total
        if self._cgroup is not None:
            with suppress(OSError):
                cpu = self._cgroup.cpu_seconds()
        used = replace(self.usage, wall_s=now - self._began, cpu_s=cpu, read_bytes=read, written_bytes=written)
        mean = pss if self._pss is None else (pss + self._pss) / 2
        passed = now - self._looked
        used = replace(used, memory_gib_s=used.memory_gib_s + mean * passed, peak_gib=max(used.peak_gib, pss))
        if self._rapl is not None:
            used = replace(used, cpu_j=self._rapl.joules(cpu))
        if self._gpus is not None:
            held, joules = self._gpus.look(pids, passed)
            used = replace(used, gpu_s=(used.gpu_s or 0.0) + held, gpu_j=joules)
        self.usage, self._pss, self._looked = used, pss, now

    def _processes(self) -> tuple[dict[Key, Seen], float, set[int]]:
        """What each has used, the memory that they have in use in GiB, and their numbers."""
        pids = set[int]()
        if self._tree is not None:
            pids = self._tree.pids()
        elif self._cgroup is not None:
            with suppress(OSError):
                pids = self._cgroup.pids()
        # A group does not list who has ended and is not waited for yet, and their parents have not taken them over.
        candidates = pids | {self._pid} | {pid for pid, _ in self._keys}
        seen, pss = dict[Key, Seen](), 0.0
        for pid in candidates:
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                key = key_of(process)
                if pid in pids or pid == self._pid or key in self._keys:
                    seen[key] = _seen(process, self._ledger.last(key))
                    pss += _resident(process) / GIB
        self._keys = set(seen)
        return seen, pss, pids


def _seen(process: psutil.Process, before: Seen | None) -> Seen:
    times = process.cpu_times()
    children = times.children_user + times.children_system
    _, read, written = before.used if before else NOTHING
    with suppress(psutil.Error):  # another user's, or ended and not reaped
        counted = process.io_counters()
        read, written = float(counted.read_bytes), float(counted.write_bytes)
    used: Amounts = (times.user + times.system + children, read, written)
    return Seen(process.ppid(), used, (children, read, written))


def _resident(process: psutil.Process) -> float:
    """Bytes in use, shared pages by share; where another user's may not be asked for that, in whole. Ended: none."""
    try:
        return float(process.memory_full_info().pss)
    except psutil.AccessDenied:
        return float(process.memory_info().rss)
    except psutil.ZombieProcess:
        return 0.0
