"""Training on other people's cluster: room for it, an end in time, and what its workers say."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from components.errors import PassingError, UserError

ROOM_S, DEADLINE_S = "CTFOUNDRY_TRAIN_ROOM_S", "CTFOUNDRY_TRAIN_DEADLINE_S"
ROOM_WAIT = 600.0  # a cluster that grows by itself takes minutes
ASKED_EVERY = 0.5
ResultT = TypeVar("ResultT")


def seconds_of(variable: str, default: float | None) -> float | None:
    """A setting in seconds; 0 or nothing stands for ``default``. Raises UserError."""
    text = os.environ.get(variable, "").strip()
    try:
        value = float(text or 0)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"{variable} {text!r} is not allowed: seconds, 0 or more")
    return value or default


def require_room(workers: int, resource: str, progress: Callable[[str], None]) -> None:
    """Wait until the cluster has a core or a GPU for each worker: Ray Train itself tries for ever.

    Args:
        workers: the fewest that may train.
        resource: ``CPU`` or ``GPU``.
        progress: is told once that it waits.

    Raises:
        UserError: there are too few after ``CTFOUNDRY_TRAIN_ROOM_S``.
    """
    wait = seconds_of(ROOM_S, ROOM_WAIT)
    assert wait is not None
    end, told = time.monotonic() + wait, False
    while (found := int(ray.cluster_resources().get(resource, 0))) < workers:
        if time.monotonic() > end:
            raise UserError(
                f"RAY_ADDRESS {os.environ.get('RAY_ADDRESS')!r}: {found} {resource}s in the cluster, {workers} wanted, "
                f"one for each worker, also after {wait:.0f} s ({ROOM_S}); add nodes, or lower pretrain.workers"
            )
        if not told:
            progress(f"waiting for {workers} {resource}s: the cluster has {found}")
            told = True
        time.sleep(ASKED_EVERY)


def within_deadline(work: Callable[[], ResultT]) -> ResultT:
    """Do ``work`` within ``CTFOUNDRY_TRAIN_DEADLINE_S``; without it, however long it takes.

    Beyond it ``work`` is left to itself in a thread: Ray's own code is not interrupted safely, and ends with the
    cluster's connection, which the caller closes.

    Raises:
        PassingError: it did not end in time; its checkpoints stay.
        UserError: the setting is not allowed.
    """
    wait = seconds_of(DEADLINE_S, None)
    if wait is None:
        return work()
    done: Future[ResultT] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # raised again where it is waited for
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    if wait_for([done], wait).not_done:
        raise PassingError(
            f"training did not end within {wait:g} s ({DEADLINE_S}); started again, it goes on from its last checkpoint"
        )
    return done.result()


class _Lines:
    """What workers have said, and nobody has taken yet."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        self._lines.append(line)

    def take(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines


@contextmanager
def lines_to(progress: Callable[[str], None]) -> Iterator[Any]:
    """An actor on this node, to which workers ``add`` lines; they are passed on until the block is left."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(_Lines).options(scheduling_strategy=here).remote()
    done = threading.Event()

    def follow() -> None:
        finished = False
        while not finished:
            finished = done.wait(ASKED_EVERY)
            for line in ray.get(actor.take.remote()):
                progress(line)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield actor
    finally:
        done.set()
        thread.join()
