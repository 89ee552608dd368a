"""A process that has loaded the release and forks a child for each request: its start costs milliseconds, its end is
certain, and what a file did to its memory ends with it.

The service's own process reads no scan. Over one socket it sends a request and a socket to answer on; when it shuts
that down, the child is killed; when its own end of the first socket closes, all are. Who reads the first socket is the
program's matter: :mod:`serving.program` has the other side.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
from typing import Any

import anyio
import anyio.to_thread

from components.confined import MAX_HEAD, Bounds, Reply, reply_of
from components.errors import UserError
from serving.program import MARK, STATUS

log = logging.getLogger("bentoml.service.ctfoundry")

READ_AGAIN = 2  # times at most, after a program that was ended under its work: the file could be what ends it
START_SECONDS = 300.0  # to import and to load; a large model from a slow disk
END_SECONDS = 10.0  # for the program to end by itself


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
        """End the program, its twin and their children, whoever of them lives."""
        if self._control is not None:
            with self._control as control, contextlib.suppress(OSError):  # reset where requests lay unread
                control.settimeout(END_SECONDS)
                control.shutdown(socket.SHUT_WR)
                while control.recv(MAX_HEAD):  # its end comes when nobody has the other side any more
                    pass
        if self._process is not None:
            # All are of its group. It is not waited for before, so that the number is that of no other group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
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
