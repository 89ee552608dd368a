"""Child processes that end with us: what ends a run ends its stage, the stage's workers and the servers it started."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
GRACE_SECONDS = 5.0  # between the polite signal and the last one
DEADLINE_SECONDS = 10.0  # from a signal to the end of everything, whatever our own threads wait for
PREFECT_SERVER = "prefect.server.api.server:create_app"
SECRETS = "CTFOUNDRY_SIGNING_"  # what begins so in the environment is no stage's to see: they read others' files
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


_waiting_is_vain = False
_scratch: set[Path] = set()  # folders that go with this process, however it ends


def waiting_is_vain() -> None:
    """Say that what libraries would do at this process's end, such as sending what is left, comes to nothing."""
    global _waiting_is_vain
    _waiting_is_vain = True


def leave(code: int) -> NoReturn:
    """End this process with ``code``, at once where waiting is vain."""
    if _waiting_is_vain:
        end_children()
        os._exit(code)
    sys.exit(code)


class Stopped(BaseException):
    """A signal asked us to end. No Exception: nothing that handles errors may hold it up."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def ending_with_us() -> Iterator[None]:
    """Within it SIGTERM, SIGHUP and SIGINT raise :class:`Stopped`, and on the way out no child process is left.

    Ray, DVC's shells and pools of workers leave their parent's group, and some their parent: this process adopts what
    is orphaned below it (Linux), so that it finds them all.
    """
    if hasattr(os, "pidfd_open"):  # Linux
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = {number: signal.signal(number, _stop) for number in ENDING}
    try:
        yield
    except Stopped:
        end_children()
        raise
    finally:
        end_children(but=PREFECT_SERVER)  # which Prefect ends by itself, once it has heard everything
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    waiting_is_vain()
    watchdog = threading.Timer(DEADLINE_SECONDS, _end_now, (number,))
    watchdog.daemon = True
    watchdog.start()
    raise Stopped(number)


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder, which is removed also where the deadline of a signal ends this process."""
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        _scratch.add(Path(name))
        try:
            yield Path(name)
        finally:
            _scratch.discard(Path(name))


def _end_now(number: int) -> None:
    end_children(grace=0)
    for folder in _scratch:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"ctfoundry: ended by {signal.Signals(number).name}", file=sys.stderr, flush=True)
    os._exit(128 + number)


def end_children(*, grace: float = GRACE_SECONDS, but: str = "", of: int | None = None) -> None:
    """End every process below this one: first politely, after ``grace`` seconds for good.

    Args:
        grace: seconds.
        but: processes whose command line has this word stay.
        of: only this child, by its number, and what is below it.
    """
    waited = grace
    while living := [child for child in _tree(of) if not (but and _has_word(child, but))]:
        # A dvc whose stage has ended gives back its locks by itself: it is not signalled at first.
        for child in living:
            with suppress(psutil.NoSuchProcess):
                if not waited:
                    child.kill()
                elif not _is_dvc(child):
                    child.terminate()
        psutil.wait_procs(living, timeout=waited or 1)
        waited = 0.0


def _tree(of: int | None) -> list[psutil.Process]:
    if of is None:
        return _below(psutil.Process())
    with suppress(psutil.NoSuchProcess):
        child = psutil.Process(of)
        return [*_below(child), *([child] if _alive(child) else [])]
    return []


def _below(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [child for child in process.children(recursive=True) if _alive(child)]
    return []


def _alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _has_word(process: psutil.Process, word: str) -> bool:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return word in process.cmdline()
    return False


def _is_dvc(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return any(word.rpartition("/")[2] == "dvc" for word in process.cmdline()[:2])
    return False


@contextmanager
def started(
    command: list[str], cwd: str | None = None, environment: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], Iterator[str]]]:
    """A child process and the lines that it prints, its errors among them. It has ended on the way out.

    It has a process group of its own: Ctrl-C is ours to hear. A stage that hears it, too, would log a traceback.
    """
    passed = {name: value for name, value in (environment or os.environ).items() if not name.startswith(SECRETS)}
    process = subprocess.Popen(
        command, cwd=cwd, env=passed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1,
        errors="replace", process_group=0,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield process, (text.rstrip() for text in process.stdout if text.strip())
        process.wait()
    finally:
        if process.poll() is None:
            end_children(of=process.pid)  # other stages may run beside it
            process.wait()
        process.stdout.close()
