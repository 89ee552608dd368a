"""A deployed run ends when it is cancelled, also where its worker has gone or hears no more of the server.

Prefect's worker ends a cancelled run. One that was killed does not, and one whose server was away for some twenty
seconds has stopped listening for good. So the run looks for itself.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled

from flows import run as runs
from flows.processes import end_children

LOOK_SECONDS = 4.0
WORKERS_SECONDS = 8.0  # for the worker, whose part it is
ENDED = 128 + signal.SIGTERM
ENDING = (StateType.CANCELLING, StateType.CANCELLED)


@contextmanager
def heeding_cancellation(run: UUID) -> Iterator[None]:
    """Within it this process ends soon after ``run`` was cancelled, with all that it started.

    Where its worker was faster, the run says itself that it has ended: the worker first begins a process for hooks.
    """
    left = threading.Event()
    thread = threading.Thread(target=_heed, args=(left, lambda: _state(run), lambda: _end(run)), daemon=True)
    thread.start()
    try:
        yield
    except Exception:
        raise
    except BaseException:  # a signal, and what the run had started has ended
        if _state(run) == StateType.CANCELLING:
            _say(run)
        raise
    finally:
        left.set()


def _heed(left: threading.Event, state: Callable[[], StateType | None], end: Callable[[], None]) -> None:
    since = None
    while not left.wait(LOOK_SECONDS):
        if state() not in ENDING:
            since = None
            continue
        since = since or time.monotonic()
        if time.monotonic() - since >= WORKERS_SECONDS and not left.is_set():
            end()
            return


def _state(run: UUID) -> StateType | None:
    """What the server says; None where it says nothing."""
    once = {PREFECT_CLIENT_MAX_RETRIES: 0}
    with suppress(Exception), temporary_settings(once), get_client(sync_client=True) as client:
        return client.read_flow_run(run).state_type
    return None


def _end(run: UUID) -> None:
    if runs.under_way is not None:
        runs.under_way.stopped = True
    end_children()
    _say(run)
    end_children(grace=0)  # what began meanwhile
    os._exit(ENDED)


def _say(run: UUID) -> None:
    with suppress(Exception), get_client(sync_client=True) as client:
        client.set_flow_run_state(run, Cancelled(message="cancelled: the run has ended"), force=True)
