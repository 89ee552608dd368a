"""``ctfoundry platform up``: server, deployments, automations and workers on this machine, until it is stopped."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from uuid import UUID

from components.errors import UserError
from components.files import STATE
from flows.platform.machine import POOL, SHARDS_POOL, require_joinable, variables
from flows.processes import ENDING, Stopped, end_children

API = "PREFECT_API_URL"
START_SECONDS, END_SECONDS, POLL_SECONDS = 480.0, 60.0, 0.5
STEADY_SECONDS = 20.0  # a process that has lived for so long was well configured
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0  # before a process begins again; doubled while it is not steady
LOGS = STATE / "platform"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Of ``ctfoundry platform``."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = (
        "Start a Prefect server, what prefect.yaml deploys, the automations and workers; stop them all at SIGINT or "
        "SIGTERM. Where PREFECT_API_URL is set, that server is used and none is started."
    )
    sub = commands.add_parser("up", help=text, description=text)
    sub.add_argument("--host", default="127.0.0.1", help="address to bind (default: 127.0.0.1)")
    sub.add_argument("--port", type=int, default=4200, help="port (default: 4200)")
    sub.add_argument("--workers", type=int, default=1, help="runs at a time on this machine (default: 1)")
    shards = "shards at a time that this machine makes for releases, where a release has several"
    sub.add_argument("--shard-workers", type=int, default=0, metavar="N", help=f"{shards} (default: 0)")
    sub.set_defaults(run=up)
    text = (
        "Make shards on this machine for releases of the platform at PREFECT_API_URL, until SIGINT or SIGTERM. "
        "CTFOUNDRY_GIT and CTFOUNDRY_REMOTE are as on the platform's own machine."
    )
    sub = commands.add_parser("join", help=text, description=text)
    sub.add_argument("--shard-workers", type=int, default=1, metavar="N", help=f"{shards} (default: 1)")
    sub.set_defaults(run=join)


def up(arguments: argparse.Namespace) -> int:
    """Returns 0 where it was stopped. Raises UserError where it cannot start, or one of its processes ended."""
    if arguments.workers < 1:
        raise UserError(f"workers {arguments.workers} is not allowed: runs at a time, at least 1")
    if arguments.shard_workers < 0:
        raise UserError(f"shard-workers {arguments.shard_workers} is not allowed: shards at a time, or 0")
    _set_environment()
    with _processes() as parts:
        if not os.environ.get(API):
            parts.append(_server(arguments.host, arguments.port))
            _wait_for(parts[0])
        _deploy()
        parts += _workers(POOL, "worker", arguments.workers)
        parts += _workers(SHARDS_POOL, "shard-worker", arguments.shard_workers)
        _watch(parts, f"workers: {arguments.workers}, for shards: {arguments.shard_workers}")
    return 0


def join(arguments: argparse.Namespace) -> int:
    """Returns 0 where it was stopped. Raises UserError where it cannot start, or one of its processes ended."""
    if arguments.shard_workers < 1:
        raise UserError(f"shard-workers {arguments.shard_workers} is not allowed: shards at a time, at least 1")
    require_joinable()
    _set_environment()
    from flows.places import require_pins, require_server

    require_pins()
    require_server()
    _require_pool()
    with _processes() as parts:
        parts += _workers(SHARDS_POOL, "shard-worker", arguments.shard_workers)
        _watch(parts, f"workers for shards: {arguments.shard_workers}")
    return 0


def _set_environment() -> None:
    os.environ.update(variables())
    os.environ.pop("PYTHONPATH", None)  # a run's code is its workspace's


@contextmanager
def _processes() -> Iterator[list[_Part]]:
    """Those that the block begins, until a signal: they end with it."""
    parts: list[_Part] = []
    with _alone(), _stopping():
        try:
            yield parts
        except Stopped:
            print("platform: stopping", flush=True)
        finally:
            # Workers first: they tell the server how their runs ended.
            for part in reversed(parts):
                part.end()
            end_children()


def _workers(pool: str, name: str, number: int) -> Iterator[_Part]:
    for one in range(1, number + 1):
        on = ["--pool", pool, "--name", f"{socket.gethostname()}-{one}", "--limit", "1"]
        yield _Part(f"{name}-{one}", ["worker", "start", *on])


@contextmanager
def _alone() -> Iterator[None]:
    """One platform on a state folder."""
    LOGS.mkdir(parents=True, exist_ok=True)
    with (LOGS / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"platform: one runs already on the state folder {STATE}") from None
        yield


@contextmanager
def _stopping() -> Iterator[None]:
    """Within it the first signal to end raises :class:`Stopped`; after it all is waited for."""

    def stop(number: int, frame: FrameType | None) -> None:
        for ending in ENDING:
            signal.signal(ending, signal.SIG_IGN)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _server(host: str, port: int) -> _Part:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"port {port} of {host}: {str(error.strerror).lower()}; choose another, --port") from None
    reached = "127.0.0.1" if host == "0.0.0.0" else host
    os.environ[API] = f"http://{reached}:{port}/api"
    os.environ.setdefault("PREFECT_UI_URL", f"http://{reached}:{port}")
    return _Part("server", ["server", "start", "--host", host, "--port", str(port)])


def _wait_for(server: _Part) -> None:
    import httpx

    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise UserError(f"platform: Prefect's server ended: {server.last_line()}")
        with suppress(httpx.HTTPError):
            if httpx.get(f"{os.environ[API]}/health", timeout=5, trust_env=False).status_code == 200:
                return
        time.sleep(POLL_SECONDS)
    raise UserError(f"platform: Prefect's server did not answer within {START_SECONDS:.0f} s: {server.last_line()}")


def _deploy() -> None:
    """Pools, deployments and automations; what is there already is brought up to date."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    from flows.platform.automations import set_automations, take_up

    for pool in (POOL, SHARDS_POOL):
        with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    deploy = _Part("deploy", ["--no-prompt", "deploy", "--all"])
    try:
        if deploy.process.wait() != 0:
            raise UserError(f"platform: prefect deploy failed: {deploy.last_line()}")
    finally:
        deploy.end()
    for name in set_automations():
        print(f"automation {name}", flush=True)
    take_up()
    threading.Thread(target=_look_now_and_then, daemon=True).start()


def _look_now_and_then() -> None:
    from flows.platform.automations import ANNOUNCE_SECONDS, TAKE_UP_SECONDS, announce, take_up

    known: set[UUID] = set()
    due, told = time.monotonic() + TAKE_UP_SECONDS, False
    while True:
        try:
            known = announce(known)
            if time.monotonic() >= due:
                take_up()
                due = time.monotonic() + TAKE_UP_SECONDS
            told = False
        except Exception as error:  # the server is away: the next time will do
            if not told:
                print(f"platform: runs were not looked at: {type(error).__name__}", file=sys.stderr, flush=True)
            told = True
        time.sleep(ANNOUNCE_SECONDS)


def _require_pool() -> None:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(SHARDS_POOL)
        except ObjectNotFound:
            raise UserError(
                f"{API} {os.environ[API]!r} has no pool {SHARDS_POOL}: start the platform there first, with "
                "`ctfoundry platform up`"
            ) from None


def _watch(parts: list[_Part], told: str) -> None:
    """Say what there is, and watch it until a signal. What ended begins again, but not what cannot begin."""
    print(f"platform: {os.environ[API].removesuffix('/api')}, {told}", flush=True)
    while True:
        for part in parts:
            part.look(time.monotonic())
        time.sleep(POLL_SECONDS)


class _Part:
    """One of Prefect's commands, in a process group of its own, for Ctrl-C is ours to hear.

    Attributes:
        begun: by the monotonic clock.
        again: when it is to begin again, by that clock; None while it runs.
    """

    def __init__(self, name: str, arguments: list[str]) -> None:
        self.name, self._arguments, self._log = name, arguments, LOGS / f"{name}.log"
        self.again: float | None = None
        self._steady, self._pause = False, PAUSE_SECONDS
        self.begin()

    def begin(self) -> None:
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "prefect", *self._arguments]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0)
        self.begun, self.again = time.monotonic(), None

    def look(self, now: float) -> None:
        """Begin again where it has ended: soon, and later each time, for the database that it needs may be away.

        Args:
            now: by the monotonic clock.

        Raises:
            UserError: it ended by itself and was never steady: its configuration is wrong.
        """
        if self.again is not None:
            if now >= self.again:
                self.begin()
            return
        if steady := now - self.begun >= STEADY_SECONDS:
            self._steady, self._pause = True, PAUSE_SECONDS
        if self.process.poll() is None:
            return
        told = f"{self.name} ended (exit {self.process.returncode}): {self.last_line()}"
        self._steady = self._steady or self.process.returncode < 0  # by a signal: it was killed
        if not self._steady:
            raise UserError(f"platform: {told}")
        self.again = now + self._pause
        print(f"platform: {told}; it begins again in {self._pause:.0f} s", file=sys.stderr, flush=True)
        if not steady:
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    def end(self) -> None:
        """Politely, for as long as a run needs to say how it ended."""
        self.process.terminate()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            end_children(of=self.process.pid)
            self.process.wait()

    def last_line(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return f"{next((line.strip() for line in reversed(lines) if line.strip()), 'no output')[:300]}; see {self._log}"
