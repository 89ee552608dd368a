"""Ray, as every stage starts it, and many items as its tasks: :func:`map_on_ray`."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from components import arithmetic
from components.errors import PassingError, UserError
from components.isolation import MAX_SECONDS, Deadline, Lost, guarded
from components.nodes import ITS_LOGS, check_arithmetic, check_checkout, check_libraries, reason_of, room_of_a_node
from components.processes import DIED, IN_FLIGHT, in_flight
from components.progress import track

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 lets any other process starve the work
    "RAY_task_oom_retries": "1",  # Ray's own monitor of the memory tries for ever
}
MARKS = Path(".ctfoundry")  # where every node sees the marks of missed deadlines
OURS = "CTFOUNDRY_"  # settings of this machine, secrets among them
ADDRESS_SECONDS = 5.0
SOCKET_PATH = 107  # bytes, of the kernel
IN_SESSION = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store") + 2
STORAGE = "CTFOUNDRY_TRAIN_STORAGE"  # see components.pretrain.apart
LOGS = Path(".ctfoundry/ray-logs")  # of the last start that failed
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

log = logging.getLogger(__name__)


@contextmanager
def ray_cluster(workers: int, apart: bool = False) -> Iterator[None]:
    """The Ray that RAY_ADDRESS names; else a local one of our own on the loopback interface, gone afterwards. So it is,
    too, for work that reads files here, where ``CTFOUNDRY_TRAIN_STORAGE`` says that the cluster's nodes share none.

    Args:
        workers: processes that must run at the same time on a local one, whatever this machine's cores.
        apart: the nodes at RAY_ADDRESS do not see this checkout: they are sent its code.

    Raises:
        UserError: Ray does not start here; none answers at RAY_ADDRESS, or with another token; or a node of it does not
            see this checkout, or has other libraries.
    """
    os.environ |= SETTINGS
    import ray

    search = os.pathsep.join([str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])])
    address = os.environ.get("RAY_ADDRESS")
    if not apart and os.environ.get(STORAGE, "").strip():  # its nodes do not see the files that this work reads
        address = None
    variables = {"PYTHONPATH": search, "OMP_NUM_THREADS": "1", **arithmetic.variables(arithmetic.mode())}
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "" if address else "lo")
    if interface:
        variables["GLOO_SOCKET_IFNAME"] = interface
    if address:
        with _sent_code() if apart else nullcontext() as code:
            _join(address, variables, code)
            try:
                (check_libraries if apart else check_checkout)()
                yield
            finally:
                ray.shutdown()
        return
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray writes one into HOME
    temporary = _short_folder()
    try:
        _start(temporary, max(workers, os.cpu_count() or 1), variables)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)


def _start(temporary: str, cores: int, variables: dict[str, str]) -> None:
    """Start a Ray of our own in the folder ``temporary``: on a busy machine its parts may miss each other's deadlines,
    so it is tried twice.

    Raises:
        UserError: Ray refuses what it finds here, such as a small /dev/shm.
        PassingError: it does not come up.
    """
    import ray

    for again in (False, True):
        started = False
        try:
            ray.init(
                address="local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                # Ray does not quote the interpreter's path itself
                runtime_env={"env_vars": variables, "py_executable": shlex.quote(sys.executable)},
                num_cpus=cores,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                _temp_dir=temporary,
            )
            started = True
            return
        except Exception as error:  # Ray's own time-out at the start is a bare Exception
            refused, reason = isinstance(error, ValueError), reason_of(error)
            if refused or again:
                kind = UserError if refused else PassingError
                raise kind(
                    f"Ray did not start on this machine{', tried twice' if again else ''}: {reason}; "
                    f"{_keep_logs(temporary)}free memory, processors and /dev/shm and try again, or set "
                    "RAY_ADDRESS=<a cluster>"
                ) from None
            log.warning("Ray did not start on this machine (%s); trying once more", reason)
        finally:
            if not started:  # also where it was interrupted
                _clear_away(temporary)


def _clear_away(temporary: str) -> None:
    """End what there is of a Ray in the folder ``temporary`` that did not start. Ray itself forgets the processes of
    such a start; they would hold their memory until we end, and a second start needs it."""
    import ray

    with suppress(Exception):  # what is half started may fail to stop
        ray.shutdown()
    left: list[psutil.Process] = []
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if any(temporary in word for word in process.cmdline()):
                left += [process, *process.children(recursive=True)]
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=10)


def _keep_logs(temporary: str) -> str:
    """Copy the logs that Ray wrote below ``temporary``, which goes; returns where they lie, for a message."""
    logs = [path for path in Path(temporary).glob("session_2*/logs") if path.is_dir()]
    shutil.rmtree(LOGS, ignore_errors=True)
    try:
        for path in logs:
            shutil.copytree(path, LOGS / path.parent.name, ignore_dangling_symlinks=True)
    except OSError:  # shutil.Error among them: a full disk must not hide why Ray did not start
        return ""
    return f"its logs are in {LOGS}; " if logs else ""


def _short_folder() -> str:
    """A temporary folder for Ray, which puts sockets below it: their paths have a limit that TMPDIR may exceed.

    Raises:
        UserError: there is none.
    """
    tried = dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"])
    for place in tried:
        if len(os.fsencode(place)) + len("/ray-12345678") + IN_SESSION <= SOCKET_PATH and os.access(place, os.W_OK):
            return tempfile.mkdtemp(prefix="ray-", dir=place)
    raise UserError(
        f"TMPDIR: {tempfile.gettempdir()} is too long for Ray's sockets, and none of /tmp, /var/tmp and /dev/shm can "
        "be written to; set TMPDIR=<short folder>"
    )


@contextmanager
def _sent_code() -> Iterator[str]:
    """A folder with our code alone, for Ray to send to nodes that do not see this checkout."""
    with tempfile.TemporaryDirectory(prefix="ctfoundry-code-") as folder:
        own = Path(__file__).resolve().parent
        shutil.copytree(own, Path(folder) / own.name, ignore=shutil.ignore_patterns("__pycache__"))
        yield folder


def _join(address: str, variables: dict[str, str], code: str | None = None) -> None:
    """Connect to a cluster that is there. Its nodes use their own interpreter, and ``code`` where they are sent some.

    Raises:
        UserError: nothing answers, or it wants another token, or does not take this address.
        PassingError: it answers, but not in time or with an error of its own.
    """
    import ray

    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:  # Ray itself tries for two minutes
        try:
            socket.create_connection((host, int(port)), timeout=ADDRESS_SECONDS).close()
        except OSError as error:
            said = error.strerror or str(error)
            raise UserError(f"RAY_ADDRESS {address!r}: no Ray answers there: {said}") from None
    environment: dict[str, Any] = {"env_vars": variables}
    if code is not None:
        environment |= {"working_dir": code}
        variables.pop("PYTHONPATH", None)  # of this machine's folders
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment)
    except Exception as error:  # of many types, among them a bare Exception
        with suppress(Exception):
            ray.shutdown()  # of a connection half made
        said = f"RAY_ADDRESS {address!r}: {reason_of(error)}"
        if isinstance(error, (ray.exceptions.AuthenticationError, ConnectionError)):
            raise UserError(
                f"{said}; has it a token? Then set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=<file with that "
                f"cluster's token>; else RAY_AUTH_MODE=disabled. {ITS_LOGS}"
            ) from None
        kind = UserError if isinstance(error, ValueError) else PassingError
        raise kind(f"{said}; try again when it is less busy. {ITS_LOGS}") from None


def map_on_ray(
    function: Callable[[ItemT], ResultT],
    items: list[ItemT],
    label: str,
    *,
    max_memory: int,
    max_seconds: float = MAX_SECONDS,
    memory: Callable[[ItemT], int],
) -> list[ResultT | Lost]:
    """As :func:`components.processes.map_isolated`, on all nodes at RAY_ADDRESS, or on a Ray of our own.

    So many run at a time as there are cores, and as the memory that they announce allows. A worker that crashes is
    tried once more. Workers have this process' settings: they travel with each item, where nothing logs them.

    Args:
        function, items, label, max_memory, max_seconds: as there.
        memory: bytes that an item is expected to need.
    """
    if not items:
        return []
    MARKS.mkdir(parents=True, exist_ok=True)
    with ray_cluster(1), tempfile.TemporaryDirectory(prefix="deadlines-", dir=MARKS) as marks:
        import ray

        whole, settings = room_of_a_node(), {k: v for k, v in os.environ.items() if k.startswith(OURS)}
        task: Any = ray.remote(num_cpus=1, max_retries=1)(_limited)
        here = str(Path.cwd())

        def submit(index: int) -> Any:
            wanted = min(whole, max_memory, memory(items[index]))
            deadline = Deadline(Path(here, marks, str(index)), max_seconds)
            return task.options(memory=wanted).remote(function, items[index], here, settings, max_memory, deadline)

        most, waiting = IN_FLIGHT * int(ray.cluster_resources()["CPU"]), list(range(len(items) - 1, -1, -1))
        running: dict[Any, int] = {}
        results = in_flight(waiting, running, most, submit, _next)
        found: dict[int, ResultT | Lost] = dict(track(results, [1] * len(items), label))
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
        return index, Lost(f"{DIED} ({type(error).__name__})")


def _limited(
    function: Callable[[ItemT], ResultT],
    item: ItemT,
    here: str,
    settings: dict[str, str],
    max_memory: int,
    deadline: Deadline,
) -> ResultT | Lost:
    """What a task runs: ``function`` in the driver's folder, within ``max_memory`` bytes more than the worker has."""
    import cv2

    try:
        os.chdir(here)
    except OSError:
        raise UserError(f"RAY_ADDRESS: node {socket.gethostname()} does not see this checkout: share {here}") from None
    for name in [name for name in os.environ if name.startswith(OURS)]:
        del os.environ[name]
    os.environ.update(settings)
    check_arithmetic()
    cv2.setNumThreads(1)  # one process per core: more threads would only contend
    return guarded(function, item, max_memory, deadline)
