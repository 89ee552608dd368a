"""Clients and events that do harm to a service; each a context, within which it goes on."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from tests.served import Served

SLOW, UNFINISHED, LEAVERS = 16, 64, 2
KILL_SECONDS = 10.0
Told = Callable[[], str]  # what was done, in a few words
Nuisance = Callable[[Served, bytes], contextlib.AbstractContextManager[Told]]


def connected(service: Served) -> socket.socket:
    """A connection to the service."""
    host, port = service.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def header(length: int, route: str = "embed", **fields: str) -> bytes:
    """Of a request whose body has so many bytes."""
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"POST /{route} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n{more}\r\n".encode()


class _Counted:
    def __init__(self, what: str) -> None:
        self._what, self.number = what, 0

    def __call__(self) -> str:
        return f"{self.number} {self._what}"


@contextmanager
def _going_on(count: int, what: str, once: Callable[[threading.Event], None]) -> Iterator[Told]:
    """``once`` again and again, in so many threads; what it raises when its connection is ended is its end."""
    over, told = threading.Event(), _Counted(what)

    def run() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                once(over)
            told.number += 1

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield told
    finally:
        over.set()
        for thread in threads:
            thread.join()


@contextmanager
def nobody(service: Served, content: bytes) -> Iterator[Told]:
    """No harm."""
    yield lambda: ""


def slow_uploads(service: Served, content: bytes) -> contextlib.AbstractContextManager[Told]:
    """A megabyte is announced, and a byte is sent each second."""

    def once(over: threading.Event) -> None:
        with connected(service) as client:
            client.sendall(header(2**20) + b"P")
            while not over.wait(1):
                client.sendall(b"K")

    return _going_on(SLOW, "slow uploads", once)


def unfinished(service: Served, content: bytes) -> contextlib.AbstractContextManager[Told]:
    """Half of a header, or nothing at all."""

    def once(over: threading.Event) -> None:
        with connected(service) as client:
            if random.random() < 0.5:
                client.sendall(header(10)[:20])
            client.settimeout(0.5)
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    if not client.recv(1):
                        return

    return _going_on(UNFINISHED, "connections", once)


def leavers(service: Served, content: bytes) -> contextlib.AbstractContextManager[Told]:
    """Clients that hang up while they send, wait or are worked on."""

    def once(over: threading.Event) -> None:
        with connected(service) as client:
            client.sendall(header(len(content)))
            client.sendall(content[: random.choice((len(content) // 2, len(content)))])
            over.wait(random.random() / 2)

    return _going_on(LEAVERS, "hang-ups", once)


def killed_reader(service: Served, content: bytes) -> contextlib.AbstractContextManager[Told]:
    """The program that reads scans gets SIGKILL every ten seconds."""

    def once(over: threading.Event) -> None:
        over.wait(KILL_SECONDS)
        if not over.is_set():
            for reader in service.readers():
                reader.kill()

    return _going_on(1, f"times killed, every {KILL_SECONDS:g} s", once)


NUISANCES: dict[str, Nuisance] = {
    f"{SLOW} slow uploads": slow_uploads,
    f"{UNFINISHED} unfinished headers": unfinished,
    f"{LEAVERS} that hang up": leavers,
    "the reader killed": killed_reader,
}


def wait_for(what: str, holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Raises TimeoutError where it does not come to hold."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} after {seconds:g} s")
        time.sleep(0.1)
