"""Ray, as every stage starts it, and series in worker processes of their own: one that dies costs its series only."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from components.params import UserError
from components.progress import track

GIB = 2**30
IN_FLIGHT_PER_CORE = 2  # tasks that Ray holds at a time: one computed, one ready to be
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 lets any other process starve the work
}
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Lost:
    """What is left of an item whose worker did not come back. ``detail``: why, for people."""

    detail: str


@contextmanager
def ray_cluster(workers: int) -> Iterator[None]:
    """The Ray that RAY_ADDRESS names; else a local one of our own on the loopback interface, gone afterwards.

    Args:
        workers: processes that must run at the same time on a local one, whatever this machine's cores.

    Raises:
        UserError: no Ray answers at RAY_ADDRESS.
    """
    os.environ |= SETTINGS
    import ray

    address = os.environ.get("RAY_ADDRESS")
    # short: Ray puts sockets below it, whose paths have a limit
    temporary = None if address else tempfile.mkdtemp(prefix="ray-")
    search = os.pathsep.join([str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {"PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "" if address else "lo")
    if interface:
        variables["GLOO_SOCKET_IFNAME"] = interface
    ours: dict[str, Any] = {
        "num_cpus": max(workers, os.cpu_count() or 1),
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": temporary,
    }
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": variables},
            **({} if address else ours),
        )
    except ConnectionError as error:
        if not address:
            raise
        raise UserError(f"RAY_ADDRESS {address!r}: no Ray answers there: {' '.join(str(error).split())}") from None
    try:
        yield
    finally:
        ray.shutdown()
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


def map_isolated(
    function: Callable[[ItemT], ResultT],
    items: list[ItemT],
    label: str,
    *,
    memory: Callable[[ItemT], int],
    max_memory: int,
) -> list[ResultT | Lost]:
    """``function`` over ``items`` as Ray tasks, results in the order of ``items``, with progress.

    So many run at a time as there are cores, and as the memory that they announce allows. A worker that crashes is
    tried once more; then, and where an item needs more memory than it may, the item is :class:`Lost` and the rest goes
    on. An exception ends the run.

    Args:
        function, items: what to do; picklable.
        label: shown with the progress.
        memory: bytes that an item is expected to need.
        max_memory: bytes that a worker may take for an item.
    """
    if not items:
        return []
    with ray_cluster(1):
        import ray

        whole = int(ray.cluster_resources()["memory"])
        task: Any = ray.remote(num_cpus=1, max_retries=1)(_limited)
        limit = IN_FLIGHT_PER_CORE * int(ray.cluster_resources()["CPU"])
        here = str(Path.cwd())

        def results() -> Iterator[tuple[int, ResultT | Lost]]:
            running: dict[Any, int] = {}
            for index, item in enumerate(items):
                wanted = min(whole, max_memory, memory(item))
                running[task.options(memory=wanted).remote(function, item, here, max_memory)] = index
                if len(running) >= limit:
                    yield _next(running)
            while running:
                yield _next(running)

        found = dict(track(results(), [1] * len(items), label))
    return [found[index] for index in range(len(items))]


def _next(running: dict[Any, int]) -> tuple[int, Any]:
    """The first of the running tasks to end, taken off them."""
    from ray import exceptions, get, wait

    (done,), _ = wait(list(running), num_returns=1)
    index = running.pop(done)
    try:
        return index, get(done)
    except exceptions.RayTaskError as error:
        raise error.cause from None
    except (exceptions.WorkerCrashedError, exceptions.OutOfMemoryError, exceptions.NodeDiedError) as error:
        return index, Lost(f"its worker process died, twice ({type(error).__name__})")


def _limited(function: Callable[[ItemT], ResultT], item: ItemT, here: str, max_memory: int) -> ResultT | Lost:
    """What a task runs: ``function`` in the driver's folder, within ``max_memory`` bytes more than the worker has."""
    import cv2

    os.chdir(here)
    cv2.setNumThreads(1)  # one process per core: more threads would only contend
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + max_memory, hard))
    try:
        return function(item)
    except MemoryError:
        return Lost(f"needs more than {max_memory / GIB:g} GiB of memory")
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def data_bytes() -> int:
    """What RLIMIT_DATA counts: private, writable memory of this process, its threads' stacks included."""
    status = Path("/proc/self/status").read_text().partition("VmData:")[2]
    return int(status.split()[0]) * 1024
