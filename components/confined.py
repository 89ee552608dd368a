"""Work on files that are not to be trusted, in a process of its own with bounds on memory and time.

Decoders are C code: a file that lies to them can crash the process, fill its memory or never let go. The process is
forked, so that it costs milliseconds and knows what its parent has loaded. What comes back is JSON and plain bytes,
never pickles: a reader that was taken over must not choose what its parent runs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import signal
import socket
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from components.errors import UserError
from components.files import NO_ROOM
from components.isolation import GIB, capped, data_bytes, out_of_memory

MAX_HEAD = 16 * 2**20  # of the line that a child sends
PreparedT = TypeVar("PreparedT")
Outcome = Literal["done", "refused", "failed", "no_room", "memory", "deadline", "crash"]


@dataclass(frozen=True)
class Bounds:
    """What one piece of work may take.

    Attributes:
        memory_bytes: private memory beyond that of the process it was forked from (``CTFOUNDRY_MAX_MEMORY_BYTES``).
        seconds: by the clock on the wall (``CTFOUNDRY_MAX_SECONDS``).
    """

    memory_bytes: int = 4 * GIB
    seconds: int = 240

    @classmethod
    def from_environment(cls) -> Bounds:
        """Bounds with what the environment says. Raises UserError for a value that is no positive integer."""
        return cls(
            memory_bytes=number_from("CTFOUNDRY_MAX_MEMORY_BYTES", cls.memory_bytes),
            seconds=number_from("CTFOUNDRY_MAX_SECONDS", cls.seconds),
        )


@dataclass(frozen=True)
class Result:
    """What a piece of work gives: ``content``, a JSON-like mapping, and ``data``, the bytes of an array beside it."""

    content: dict[str, Any]
    data: memoryview = field(default_factory=lambda: memoryview(b""))


@dataclass(frozen=True)
class Reply:
    """How a piece of work ended.

    Attributes:
        outcome: ``done``; ``refused`` by a UserError; ``failed`` with another exception; ``no_room`` on the disk; or
            killed for its memory, its time, or by a crash.
        message: one line, empty where it is done.
        status: the HTTP status that a refusal asks for, 0 where it asks for none.
        where: for the log, the lines of code where it failed; no message of the failure, which may quote a header.
        result: what it gives, where it is done.
    """

    outcome: Outcome
    message: str = ""
    status: int = 0
    where: str = ""
    result: Result | None = None


def number_from(name: str, default: int) -> int:
    """A positive whole number from the environment. Raises UserError where it is none."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise UserError(f"{name}: {text!r} is not allowed: a positive whole number")
    return int(text)


def isolated(
    prepare: Callable[[], PreparedT], work: Callable[[PreparedT], Result], bounds: Bounds, what: str
) -> Result:
    """Run ``work`` on what ``prepare`` gives in a child of this process, which must have no other busy threads.

    Args:
        prepare: in the child too, before the bounds hold: to import and to load what is trusted.
        work: within the bounds.
        bounds: of memory and time.
        what: the file's name, for messages.

    Raises:
        UserError: as ``work`` raised it, or in one line what else ended it.
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        run_child(prepare, work, theirs, bounds)
    theirs.close()
    try:
        with ours, ours.makefile("rb") as stream:
            head = stream.readline(MAX_HEAD)
            data = memoryview(bytearray(_announced(head, bounds.memory_bytes)))
            got = 0
            while got < len(data) and (more := stream.readinto(data[got:])):
                got += more
    finally:
        os.kill(child, signal.SIGKILL)  # it has ended, or we are interrupted: nothing outlives the call
        _, status = os.waitpid(child, 0)
    reply = reply_of(head, data[:got], status, bounds)
    if reply.result is not None:
        return reply.result
    raise UserError(reply.message if reply.outcome == "refused" else f"{what}: {reply.message}")


def run_child(
    prepare: Callable[[], PreparedT], work: Callable[[PreparedT], Result], end: socket.socket, bounds: Bounds
) -> NoReturn:
    """What the forked process does: prepare, work within the bounds, send, end. Never returns to its parent's code."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)  # a Python handler would wait for C code to come back
        faulthandler.disable()  # the crash is reported by its parent, in one line
        warnings.simplefilter("ignore")  # readers quote header values in them
        try:
            prepared = prepare()
            _restrict(bounds)
            result = work(prepared)
            said, data = {"outcome": "done", "content": result.content}, result.data
        except BaseException as error:
            said, data = _said(error, bounds), memoryview(b"")
        end.sendall(json.dumps({**said, "bytes": data.nbytes}).encode() + b"\n")
        end.sendall(data)
        end.close()
    except BaseException:  # the parent is gone, or no memory is left to say so
        os._exit(1)
    os._exit(0)


def reply_of(head: bytes, data: memoryview, status: int, bounds: Bounds) -> Reply:
    """How a child ended.

    Args:
        head: the line that it sent, empty or cut short where it died before.
        data: what it sent behind.
        status: as ``os.waitpid`` gives it.
        bounds: that it had.
    """
    try:
        said = json.loads(head)
        if said.pop("bytes") == len(data):
            content = said.pop("content", None)
            return Reply(**said, result=None if content is None else Result(content, data))
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # it died while it spoke
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number == signal.SIGALRM:
        return Reply("deadline", f"took longer than {bounds.seconds} s (CTFOUNDRY_MAX_SECONDS)")
    if number == signal.SIGKILL:
        return Reply("memory", "its reader was killed, as by a machine that is out of memory")
    name = signal.Signals(number).name if number else f"exit code {os.waitstatus_to_exitcode(status)}"
    return Reply("crash", f"its reader crashed ({name}): the file is damaged, or not what its header says")


def _announced(head: bytes, most: int) -> int:
    """Bytes that a child says it will send behind ``head``; 0 where that makes no sense."""
    try:
        announced = int(json.loads(head)["bytes"])
    except (ValueError, KeyError, TypeError):
        return 0
    return announced if 0 <= announced <= most else 0


def _said(error: BaseException, bounds: Bounds) -> dict[str, Any]:
    """An exception as a child sends it."""
    if out_of_memory(error):
        most = f"{bounds.memory_bytes / GIB:.3g} GiB"
        return {"outcome": "memory", "message": f"needs more than {most} of memory (CTFOUNDRY_MAX_MEMORY_BYTES)"}
    if isinstance(error, UserError):
        return {"outcome": "refused", "message": str(error), "status": getattr(error, "status", 0)}
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return {"outcome": "no_room", "message": "no room is left on the disk for temporary files"}
    where = "".join(traceback.format_tb(error.__traceback__))
    return {"outcome": "failed", "message": f"not readable ({type(error).__name__})", "where": where}


def _restrict(bounds: Bounds) -> None:
    """Hold this process to ``bounds``, from now on and in any code: the alarm's default action ends it."""
    most = capped(data_bytes() + bounds.memory_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1])
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold a patient's scan
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out all the same, this goes first
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, bounds.seconds)
