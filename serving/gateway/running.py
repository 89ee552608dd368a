"""The gateway as one process: it listens or polls, decides what is complete, asks and delivers, until it is ended.

Whatever ends it, what it has acknowledged is on the disk and in the queue. So a defect of ours ends it at once, with an
exit status, for what watches it to start it again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from components.errors import UserError
from serving.account import write_audit_lines
from serving.gateway.asking import Service
from serving.gateway.delivery import delivery_to
from serving.gateway.listener import Door, Listener
from serving.gateway.polling import Poll
from serving.gateway.queue import ANSWERED, COMPLETE, FAILED, NOTHING, RECEIVING, Queue, sqlite_address
from serving.gateway.spool import Spool
from serving.gateway.working import Times, Worker

log = logging.getLogger(__name__)

QUEUE_VARIABLE = "CTFOUNDRY_GATEWAY_QUEUE"
LOCK, PLACE, DATABASE = "lock", "place", "queue.sqlite"
TICK_SECONDS = 1.0
LOOK_SECONDS = 5.0  # after which it looks again whether there is work: `gateway retry` is another process
TROUBLE_SECONDS = 10.0  # before another try, where the queue or the PACS does not answer


@dataclass(frozen=True)
class Options:
    """Of a gateway.

    Attributes:
        state: its folder.
        service: address of the service.
        results: where answers go, see :func:`serving.gateway.delivery.delivery_to`.
        door: where it listens; None for nowhere.
        poll_seconds: between two questions to the PACS; None for none.
        poll_days: of study dates, today's and those before.
        quiet_seconds: without an image, after which a study is complete.
        patience_seconds: the same, where its sender did not end in order.
        times: of the worker.
        metrics: host and port of figures for Prometheus; None for none.
    """

    state: Path
    service: str
    results: str
    door: Door | None
    poll_seconds: float | None = None
    poll_days: int = 2
    quiet_seconds: float = 30.0
    patience_seconds: float = 300.0
    times: Times = field(default_factory=Times)
    metrics: tuple[str, int] | None = None


def run(options: Options, ready: Callable[[int], None] = lambda port: None) -> int:
    """Run until SIGTERM or SIGINT.

    Args:
        options: of the gateway.
        ready: is told the listener's port, 0 where there is none.

    Returns:
        The exit status: 0 where it was ended from outside, 1 for a defect.

    Raises:
        UserError: it cannot begin.
    """
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    write_audit_lines()
    service, own = Service(options.service), options.door.title if options.door else "CTFOUNDRY"
    delivery = delivery_to(options.results, own)
    with alone(options.state):
        queue, spool, lock = open_queue(options.state), Spool(options.state), threading.Lock()
        queue.began_again(spool.studies())
        worker = Worker(spool, queue, service, delivery, options.times, lock)
        poll = Poll(spool, queue, lock, options.poll_days, options.quiet_seconds) if options.poll_seconds else None
        listener = Listener(options.door, spool, queue, lock) if options.door else None
        if options.metrics:
            _show_figures(options.metrics, Figures(queue, worker, listener))
        running = _Running(ended)
        woken = threading.Event()

        def completing() -> float:
            busy = listener.busy() if listener else set()
            if queue.complete(options.quiet_seconds, options.patience_seconds, busy):
                woken.set()
            return TICK_SECONDS

        def working() -> float:
            woken.clear()
            wait = worker.step(lambda: not ended.is_set())
            if not ended.is_set():
                woken.wait(min(wait, LOOK_SECONDS))
            return 0.0

        def polling() -> float:
            assert poll is not None
            poll.step()
            return options.poll_seconds or 0.0

        running.begin(completing)
        running.begin(working)
        if poll is not None:
            running.begin(polling)
        ready(listener.port if listener else 0)
        ended.wait()
        woken.set()
        if listener is not None:
            listener.close()
        running.join()
        service.close()
        queue.close()
    return 1 if running.broken else 0


class _Running:
    """Threads, each of which does its work again and again; a defect in one ends all."""

    def __init__(self, ended: threading.Event) -> None:
        self._ended, self.broken = ended, False
        self._threads: list[threading.Thread] = []

    def begin(self, work: Callable[[], float]) -> None:
        """``work`` returns the seconds to wait before it is done again."""
        thread = threading.Thread(target=self._again, args=(work,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self, seconds: float = 5.0) -> None:
        """Wait for them, but not for long: what they have not done is done by the next gateway."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _again(self, work: Callable[[], float]) -> None:
        while not self._ended.is_set():
            try:
                wait = work()
            except UserError as error:
                log.error("%s", error)
                wait = TROUBLE_SECONDS
            except Exception as error:
                # Where it failed, not what it said, which may quote a header.
                log.critical("ended by %s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
                self.broken = True
                self._ended.set()
                return
            self._ended.wait(wait)


@contextmanager
def alone(state: Path) -> Iterator[None]:
    """Hold the folder for this gateway; the kernel gives it back however it ends. Raises UserError where another has
    it."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (state / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--state {state}: in use by another gateway") from None
        yield


def open_queue(state: Path) -> Queue:
    """The queue of a folder: SQLite in it, or the database that ``CTFOUNDRY_GATEWAY_QUEUE`` names."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = state / PLACE
    if not place.is_file():
        temporary = place.with_suffix(".new")
        temporary.write_text(uuid.uuid4().hex)
        temporary.replace(place)
    return Queue(os.environ.get(QUEUE_VARIABLE) or sqlite_address(state / DATABASE), place.read_text())


class Figures:
    """For Prometheus. Their number is bounded: no label comes from what anybody sent."""

    def __init__(self, queue: Queue, worker: Worker | None, listener: Listener | None) -> None:
        self._queue, self._worker, self._listener = queue, worker, listener

    def collect(self) -> Iterator[Metric]:
        """Those of now."""
        studies = GaugeMetricFamily("ctfoundry_gateway_studies", "Studies by state", labels=["state"])
        counts = self._queue.counts()
        for state in (RECEIVING, COMPLETE, ANSWERED, NOTHING, FAILED):
            studies.add_metric([state], counts.get(state, 0))
        yield studies
        received = self._listener.received if self._listener else 0
        yield CounterMetricFamily("ctfoundry_gateway_images", "Images received since it began", received)
        delivered = self._worker.delivered if self._worker else 0
        yield CounterMetricFamily("ctfoundry_gateway_answers", "Answers delivered since it began", delivered)
        waits = "1 while the service or the PACS does not answer"
        yield GaugeMetricFamily(
            "ctfoundry_gateway_waiting", waits, int(self._worker is not None and bool(self._worker.waits))
        )


def _show_figures(where: tuple[str, int], figures: Figures) -> None:
    registry = CollectorRegistry()
    registry.register(figures)
    try:
        start_http_server(where[1], where[0], registry)
    except OSError as error:
        raise UserError(f"--metrics {where[0]}:{where[1]}: {str(error.strerror).lower()}") from None
