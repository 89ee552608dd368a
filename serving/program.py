"""The program that has loaded the release: it forks a child for each request, and keeps a twin that follows it.

The twin is forked from the program when that has loaded, shares its memory, and waits on the same socket. Where
something from outside ends the program, the kernel tells the twin, which begins where the program was: what lies
unread in the socket is answered, and the service sees nothing but the requests that were in work, which it gives again.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import select
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from components.confined import Bounds, Result, run_child

log = logging.getLogger("bentoml.service.ctfoundry")

REQUEST_BYTES = 64 * 1024
STATUS = struct.Struct("<i")  # as os.waitpid gives it, behind what the child sent
MARK = b"\0"  # before it; what a child sends is ASCII without control characters
PR_SET_PDEATHSIG = 1  # linux/prctl.h
ENDING = (signal.SIGTERM, signal.SIGINT)  # end the service, which lets its work finish
AGAIN_SECONDS = 1.0  # from one to the next, of programs and of what is forked in advance: whatever ends them
Work = Callable[[dict[str, Any]], Result]


@dataclass(frozen=True)
class Warm:
    """Children that are forked, and prepare what takes long, before there is a request for them; each answers one.

    Attributes:
        number: so many wait at a time.
        seconds: without any request, after which they end, until there is one again.
    """

    number: int = 0
    seconds: float = 0.0


COLD = Warm()


def serve_forks(control: socket.socket, prepare: Callable[[], Work], bounds: Bounds, warm: Warm = COLD) -> NoReturn:
    """A child for each request until ``control`` closes. No thread may be busy in this process.

    Signals that end the service do not end it: BentoML's supervisor sends them to the service's children too, and what
    is in work is to be finished. Its end is the socket's.

    Args:
        control: the socket whose number the command line gave; ``ready`` has been said on it.
        prepare: in a child, before bounds hold; gives what is done with what :meth:`serving.forks.Forks.run` was given.
        bounds: of a child, from the moment on that it has a request.
        warm: children that wait.
    """
    _ignore_endings()
    while True:  # each turn is the twin of the one before
        begun = time.monotonic()
        _Program(control, prepare, bounds, warm).serve()
        log.warning("the process that reads scans has ended; its twin goes on")
        time.sleep(max(0.0, begun + AGAIN_SECONDS - time.monotonic()))  # one that ends by itself must not fork for ever


def die_with_parent(number: signal.Signals, parent: int) -> None:
    """Have this process get a signal when its ``parent`` ends, however that is, or has ended already (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)


@dataclass(eq=False)
class _Child:
    """One that was forked: ``watch`` tells its end; ``door`` gives it its request; ``end`` is where the service waits
    for what becomes of that, None as long as it has none."""

    pid: int
    watch: int
    door: socket.socket
    end: socket.socket | None = None

    def close(self) -> None:
        """This process's copies."""
        os.close(self.watch)
        self.door.close()
        if self.end is not None:
            self.end.close()


class _Program:
    """What serves now, its children and its twin."""

    def __init__(self, control: socket.socket, prepare: Callable[[], Work], bounds: Bounds, warm: Warm) -> None:
        self._control, self._prepare, self._bounds, self._warm = control, prepare, bounds, warm
        self._selector = selectors.PollSelector()  # epoll's would be one with that of a fork
        self._children: list[_Child] = []
        self._twin: tuple[int, int] | None = None  # its process, and what tells its end
        self._due = self._asked = time.monotonic()  # when to fork in advance again; when the last request came

    def serve(self) -> None:
        """Until the service is gone. Returns in a twin alone, when the program that forked it has ended."""
        self._selector.register(self._control, selectors.EVENT_READ, self._begin)
        while True:
            if time.monotonic() >= self._due:
                if self._twin is None and self._fork_twin():
                    return
                self._keep_warm()
            patience = None if self._twin and not self._warm.number else AGAIN_SECONDS
            for key, _ in self._selector.select(patience):
                key.data()

    def _fork_twin(self) -> bool:
        """Whether this is the twin, and the program that forked it has ended."""
        program = os.pidfd_open(os.getpid())
        try:
            twin = os.fork()
        except OSError:  # no room for it now
            twin = -1
        if twin == 0:
            self._close_copies()
            select.select([program], [], [])  # until it has ended; what comes meanwhile is not for this one to read
        os.close(program)
        if twin > 0:
            self._twin = twin, os.pidfd_open(twin)
            self._selector.register(self._twin[1], selectors.EVENT_READ, self._twin_ended)
        self._due = time.monotonic() + AGAIN_SECONDS if twin < 0 else self._due
        return twin == 0

    def _twin_ended(self) -> None:
        assert self._twin is not None
        twin, watch = self._twin
        self._selector.unregister(watch)
        os.close(watch)
        os.waitpid(twin, 0)
        self._twin, self._due = None, time.monotonic() + AGAIN_SECONDS

    def _keep_warm(self) -> None:
        """As many children wait as are to, which are none where nobody has asked for long."""
        waiting = [child for child in self._children if child.end is None]
        wanted = self._warm.number if time.monotonic() < self._asked + self._warm.seconds else 0
        for _ in range(len(waiting), wanted):
            with contextlib.suppress(OSError):  # no room for it now
                self._fork()
        for child in waiting[wanted:]:
            child.door.close()

    def _begin(self) -> None:
        """A request has come, or the service is gone."""
        content, received, _, _ = socket.recv_fds(self._control, REQUEST_BYTES, 1)
        if not content:
            self._end()
        self._asked, end = time.monotonic(), socket.socket(fileno=received[0])
        for child in [child for child in self._children if child.end is None]:
            with contextlib.suppress(OSError):  # it has ended, or is to
                socket.send_fds(child.door, [content], [end.fileno()])
                break
        else:
            child = self._fork()
            socket.send_fds(child.door, [content], [end.fileno()])
        child.end = end
        self._selector.register(end, selectors.EVENT_READ, lambda: self._give_up(child))

    def _fork(self) -> _Child:
        """A child that prepares, and then waits for its request."""
        program, (ours, theirs) = os.getpid(), socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            try:
                die_with_parent(signal.SIGKILL, program)  # the service learns of its end when nobody has the socket
                ours.close()
                self._close_copies()
                self._control.close()
                self._be_child(theirs)
            finally:
                os._exit(1)
        theirs.close()
        child = _Child(pid, os.pidfd_open(pid), ours)
        self._children.append(child)
        self._selector.register(child.watch, selectors.EVENT_READ, lambda: self._ended(child))
        return child

    def _be_child(self, door: socket.socket) -> NoReturn:
        work: Work | None = None
        with contextlib.suppress(Exception):  # tried again for the request, whose client is told
            work = self._prepare()
        content, received, _, _ = socket.recv_fds(door, REQUEST_BYTES, 1)
        if not content:  # nobody has asked for long
            os._exit(0)
        request = json.loads(content)

        def prepared() -> Work:
            _ignore_endings()
            return work or self._prepare()

        run_child(prepared, lambda do: do(request), socket.socket(fileno=received[0]), self._bounds)

    def _give_up(self, child: _Child) -> None:
        """The service has shut its end down."""
        if child in self._children and child.end is not None:
            signal.pidfd_send_signal(child.watch, signal.SIGKILL)
            self._selector.unregister(child.end)

    def _ended(self, child: _Child) -> None:
        """Tell the service how a child ended, which also ends its waiting."""
        self._children.remove(child)
        self._selector.unregister(child.watch)
        status = os.waitpid(child.pid, 0)[1]
        if child.end is None:
            self._due = time.monotonic() + AGAIN_SECONDS
        else:
            if child.end in self._selector.get_map():
                self._selector.unregister(child.end)
            with contextlib.suppress(OSError):
                child.end.settimeout(5)
                child.end.sendall(MARK + STATUS.pack(status))
        child.close()

    def _close_copies(self) -> None:
        """In a fork: a copy here would keep the service waiting on another's end, and a waiting child alive."""
        self._selector.close()
        for child in self._children:
            child.close()
        if self._twin is not None:
            os.close(self._twin[1])

    def _end(self) -> NoReturn:
        """The service is gone."""
        forked = [(child.pid, child.watch) for child in self._children] + ([self._twin] if self._twin else [])
        for process, watch in forked:
            signal.pidfd_send_signal(watch, signal.SIGKILL)
            os.waitpid(process, 0)
        sys.exit(0)


def _ignore_endings() -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
