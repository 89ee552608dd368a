"""A process that has loaded the release and forks a child for each request: its start costs milliseconds, its end is
certain, and what a file did to its memory ends with it.

The service's own process reads no scan. Over one socket it sends a request and a socket to answer on; when it shuts
that down, the child is killed; when its own end of the first socket closes, all are.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import anyio
import anyio.to_thread

from components.confined import MAX_HEAD, Bounds, Reply, Result, reply_of, run_child
from components.errors import UserError

log = logging.getLogger("bentoml.service.ctfoundry")

REQUEST_BYTES = 64 * 1024
READ_AGAIN = 2  # times at most, after a program that was ended under its work: the file could be what ends it
START_SECONDS = 300.0  # to import and to load; a large model from a slow disk
STATUS = struct.Struct("<i")  # as os.waitpid gives it, behind what the child sent
MARK = b"\0"  # before it; what a child sends is ASCII without control characters
PR_SET_PDEATHSIG = 1  # linux/prctl.h
ENDING = (signal.SIGTERM, signal.SIGINT)  # end the service, which lets its work finish


class ReaderGoneError(Exception):
    """The program has ended under its work, and not for what was in the file."""


class Forks:
    """The service's side: starts the process, and runs requests in its children."""

    def __init__(self, command: list[str], environment: dict[str, str], bounds: Bounds) -> None:
        """
        Args:
            command: starts a program that calls :func:`serve_forks`; the number of its socket is appended.
            environment: of that program.
            bounds: of each child, for the messages.
        """
        self._command, self._environment, self._bounds = command, environment, bounds
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._starting: anyio.Lock | None = None

    def start(self) -> dict[str, Any]:
        """Start, or start anew; waits until the program is ready, and returns what it says then.

        Raises:
            UserError: it cannot start; as it says itself.
        """
        self.close()
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [*self._command, str(theirs.fileno())]
            # A session of its own: a signal to the service's group must not end work that the service lets finish.
            self._process = subprocess.Popen(
                command, env=self._environment, pass_fds=[theirs.fileno()], start_new_session=True
            )
        control.settimeout(START_SECONDS)
        try:
            said: dict[str, Any] = json.loads(control.recv(MAX_HEAD) or b"{}")
        except OSError:  # it took too long, or was ended
            said = {}
        control.settimeout(None)
        if "ready" not in said:
            control.close()
            self.close()
            raise UserError(said.get("error", "the process that reads scans did not start; see the log"))
        self._control = control  # no sooner: nobody sends to a program that does not read yet
        ready: dict[str, Any] = said["ready"]
        return ready

    def close(self) -> None:
        """End the program and its children."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._control = self._process = None

    async def run(self, request: dict[str, Any]) -> Reply:
        """One request in a child of its own. Where this is cancelled, the child has ended before it returns.

        Raises:
            ReaderGoneError: nobody knows how the child ended, since the program was ended from outside; or it cannot
                be started anew.
        """
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            with theirs:
                await self._send(request, theirs)
            received = bytearray()
            try:
                while len(received) < MAX_HEAD and (more := await _receive(ours)):
                    received += more
            finally:
                with anyio.CancelScope(shield=True):
                    ours.shutdown(socket.SHUT_WR)
                    while await _receive(ours):
                        pass
        said, _, ended = bytes(received).partition(MARK)
        if len(ended) != STATUS.size:  # nobody has seen the child's end, so what it said may be cut short
            raise ReaderGoneError("the process that reads scans has ended; send the file again")
        (status,) = STATUS.unpack(ended)
        return reply_of(said, memoryview(b""), status, self._bounds)

    async def _send(self, request: dict[str, Any], end: socket.socket) -> None:
        content, control = json.dumps(request).encode(), self._control
        try:
            _send_to(control, content, end)
        except OSError:  # something from outside has ended the program: its socket says so before its state does
            self._starting = self._starting or anyio.Lock()
            async with self._starting:
                if self._control is control:  # nobody else has started it since
                    log.error("the process that reads scans has ended; it is started anew")
                    await self._start_anew()
            try:
                _send_to(self._control, content, end)
            except OSError:  # and the new one as well
                raise ReaderGoneError("the process that reads scans has ended; send the file again") from None

    async def _start_anew(self) -> None:
        """As :meth:`start`; where it cannot, that is no fault of the file. Raises ReaderGoneError."""
        try:
            await anyio.to_thread.run_sync(self.start)
        except UserError as error:
            log.error("the process that reads scans cannot be started anew: %s", error)
            raise ReaderGoneError("the process that reads scans cannot be started anew; see the log") from None


def _send_to(control: socket.socket | None, content: bytes, end: socket.socket) -> None:
    """Hand a request over, with the socket for its answer. Raises OSError where no program is there."""
    if control is None:
        raise OSError("not started")
    socket.send_fds(control, [content], [end.fileno()])


async def _receive(stream: socket.socket) -> bytes:
    """The next bytes; none at the end."""
    while True:
        try:
            return stream.recv(64 * 1024)
        except BlockingIOError:
            await anyio.wait_readable(stream)
        except ConnectionError:
            return b""


def serve_forks(control: socket.socket, work: Callable[[dict[str, Any]], Result], bounds: Bounds) -> NoReturn:
    """The program's side: a child for each request until ``control`` closes. No thread may be busy in this process.

    Signals that end the service do not end it: BentoML's supervisor sends them to the service's children too, and what
    is in work is to be finished. Its end is the socket's.

    Args:
        control: the socket whose number the command line gave; ``ready`` has been said on it.
        work: done by a child, with what :meth:`Forks.run` was given.
        bounds: of a child.
    """
    _ignore_endings()
    children = _Children(work, bounds)
    children.selector.register(control, selectors.EVENT_READ)
    while True:
        for key, _ in children.selector.select():
            if key.fileobj is control:
                content, received, _, _ = socket.recv_fds(control, REQUEST_BYTES, 1)
                if not content:
                    children.end()
                children.begin(content, socket.socket(fileno=received[0]), control)
            elif isinstance(key.fileobj, socket.socket):
                children.give_up(key.fileobj)
            else:
                children.ended(key.fd)


def die_with_parent(number: signal.Signals) -> None:
    """Have this process get a signal when its parent ends, however that is (Linux)."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # it has ended meanwhile
            os.kill(os.getpid(), number)


class _Children:
    """Those that run now: by the descriptor that tells their end, and by the socket on which the service waits."""

    def __init__(self, work: Callable[[dict[str, Any]], Result], bounds: Bounds) -> None:
        self.selector = selectors.DefaultSelector()
        self._work, self._bounds = work, bounds
        self._running: dict[int, tuple[int, socket.socket]] = {}
        self._watches: dict[socket.socket, int] = {}

    def begin(self, content: bytes, end: socket.socket, control: socket.socket) -> None:
        child = os.fork()
        if child == 0:
            die_with_parent(signal.SIGKILL)  # whose end the service learns of when nobody holds the socket any more
            for other in (control, *self._watches):  # a copy here would keep the service waiting on another's end
                other.close()
            request = json.loads(content)
            run_child(_ignore_endings, lambda _: self._work(request), end, self._bounds)
        watch = os.pidfd_open(child)
        self._running[watch], self._watches[end] = (child, end), watch
        self.selector.register(watch, selectors.EVENT_READ)
        self.selector.register(end, selectors.EVENT_READ)

    def give_up(self, end: socket.socket) -> None:
        """The service has shut its end down."""
        if end in self._watches:
            signal.pidfd_send_signal(self._watches[end], signal.SIGKILL)
            self.selector.unregister(end)

    def ended(self, watch: int) -> None:
        """Tell the service how a child ended, which also ends its waiting."""
        child, end = self._running.pop(watch)
        self.selector.unregister(watch)
        if end in self.selector.get_map():
            self.selector.unregister(end)
        del self._watches[end]
        os.close(watch)
        with end, contextlib.suppress(OSError):
            end.settimeout(5)
            end.sendall(MARK + STATUS.pack(os.waitpid(child, 0)[1]))

    def end(self) -> NoReturn:
        """The service is gone."""
        for watch, (child, _) in self._running.items():
            signal.pidfd_send_signal(watch, signal.SIGKILL)
            os.waitpid(child, 0)
        sys.exit(0)


def _ignore_endings() -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
