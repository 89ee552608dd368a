"""The runs that make a release's shards, one each, on whichever workers of their pool are free."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Cancelled, Cancelling, Scheduled

from components.errors import UserError
from flows.platform.machine import SHARDS_POOL
from flows.run import StageFailed
from flows.shards.parts import Shard
from flows.states import REFUSED

DEPLOYMENT = "shard/of-a-release"
COMMIT = "CTFOUNDRY_COMMIT"  # in the environment of a run: where it works, see prefect.yaml
TRIES = 3  # of a shard whose machine has gone
POLL_SECONDS = 3.0
NOBODY_SECONDS = 60.0  # beyond the minute and a half after which a worker that is silent counts as gone
SILENT_SECONDS = 600.0  # of Prefect's server


@dataclass(frozen=True)
class Order:
    """What is to be made.

    Attributes:
        line: model line.
        run: id of the run that collects the shards.
        commit: where the shards' runs work.
        tree: of that commit; a collecting run that is tried again finds its shards' runs by it.
        whole: stages of shards that need not be made, for their outputs are in DVC's remote.
    """

    line: str
    run: str
    commit: str
    tree: str
    whole: frozenset[str] = frozenset()


@dataclass
class _Child:
    """A shard and its run, None until Prefect has taken it. ``given_up``: nobody waits for it any more."""

    shard: Shard
    attempt: int = 1
    run: FlowRun | None = None
    given_up: bool = False

    @property
    def state(self) -> State[object]:
        return Scheduled() if self.run is None or self.run.state is None else self.run.state

    @property
    def waits(self) -> bool:
        return not self.given_up and self.state.type in (StateType.SCHEDULED, StateType.PENDING)

    @property
    def ended(self) -> bool:
        return self.given_up or self.state.is_final()


def workers_online() -> int:
    """Workers of the shards' pool that Prefect has heard of lately; 0 where there is no such pool."""
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        workers = client.read_workers_for_work_pool(SHARDS_POOL)
        return sum(worker.status == WorkerStatus.ONLINE for worker in workers)
    return 0


def has_ended(run: str) -> bool:
    """Whether a flow run has ended, or is not known any more."""
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(UUID(run)).state
        except (ObjectNotFound, ValueError):
            return True
    return state is not None and state.is_final()


def make(order: Order, shards: Sequence[Shard], tell: Callable[[str], None]) -> list[Shard]:
    """Have the shards made; returns those that were. The others had not begun when the last worker went.

    Raises:
        StageFailed, UserError: a shard's run failed, with its own message. Those under way have ended then.
    """
    children = [_Child(shard) for shard in shards]
    try:
        return _watch(order, children, tell)
    except BaseException:
        with suppress(httpx.HTTPError, PrefectException):
            _cancel([child for child in children if not child.ended])
        raise


def _watch(order: Order, children: list[_Child], tell: Callable[[str], None]) -> list[Shard]:
    failed: _Child | None = None
    heard = staffed = time.monotonic()
    while any(not child.ended for child in children):
        try:
            failed = _look(order, children, failed, tell)
            staffed = time.monotonic() if workers_online() else staffed
            waiting = [child for child in children if child.waits]
            if waiting and failed:
                _cancel(waiting)
            elif waiting and time.monotonic() - staffed > NOBODY_SECONDS:
                tell(f"no worker of pool {SHARDS_POOL} is left: {_named(waiting)} will be made here")
                _cancel(waiting)
            heard = time.monotonic()
        except (httpx.HTTPError, PrefectException) as error:  # it may be busy, or begin again
            if time.monotonic() - heard > SILENT_SECONDS:
                raise StageFailed(f"shards: Prefect's server does not answer ({type(error).__name__})") from None
        time.sleep(POLL_SECONDS)
    if failed:
        raise _error(failed)
    return [child.shard for child in children if not child.given_up]


def _look(order: Order, children: list[_Child], failed: _Child | None, tell: Callable[[str], None]) -> _Child | None:
    """Begin what has not begun, and again what was lost; returns the first that has failed."""
    _read(children)
    for child in children:
        if failed or child.given_up:
            continue
        if child.run is None:
            child.run = _begin(order, child.shard)
        elif child.state.is_crashed() and child.attempt < TRIES:
            tell(f"shard {child.shard.name}: its machine or process has gone; it is made again")
            child.attempt, child.run = child.attempt + 1, None
        elif child.state.is_final() and not child.state.is_completed():
            failed = child
            tell(f"{_told(child)}; shards that have not begun are not begun")
    return failed


def _begin(order: Order, shard: Shard) -> FlowRun:
    whole = [name for name in shard.names if name in order.whole]
    number = 0
    while True:
        number += 1
        try:
            run = run_deployment(
                DEPLOYMENT,
                parameters={"line": order.line, "shard": shard.name, "release": order.run, "whole": whole},
                job_variables={"env": {COMMIT: order.commit}},
                # A key that is known gives the run that it began: where we are tried again, ours of before.
                idempotency_key=f"{order.run}-{order.tree}-{shard.name}-{number}",
                timeout=0,
            )
        except ObjectNotFound:
            raise UserError(f"deployment {DEPLOYMENT} is not there: start the platform again, it deploys it") from None
        assert isinstance(run, FlowRun)
        if run.state is None or not run.state.is_final() or run.state.is_completed():
            return run


def _read(children: Sequence[_Child]) -> None:
    """How their runs are now."""
    under_way = {child.run.id: child for child in children if child.run is not None and not child.ended}
    if not under_way:
        return
    with get_client(sync_client=True) as client:
        asked = FlowRunFilter(id=FlowRunFilterId(any_=list(under_way)))
        for run in client.read_flow_runs(flow_run_filter=asked, limit=len(under_way)):
            under_way[run.id].run = run


def _cancel(children: Sequence[_Child]) -> None:
    """What has not begun will not; what has is told to end."""
    with get_client(sync_client=True) as client:
        for child in children:
            if child.run is not None:
                state = Cancelled if child.waits else Cancelling
                client.set_flow_run_state(child.run.id, state(message="its release does not wait for it any more"))
            child.given_up = True


def _error(child: _Child) -> Exception:
    refused = child.state.name == REFUSED
    return UserError(_told(child)) if refused else StageFailed(_told(child))


def _told(child: _Child) -> str:
    if child.state.is_crashed():
        return f"shard {child.shard.name}: its machine or process was lost {child.attempt} times"
    return f"shard {child.shard.name}: {child.state.name}: {' '.join((child.state.message or '').split())[:400]}"


def _named(children: Sequence[_Child]) -> str:
    return "shard " + ", ".join(child.shard.name for child in children)
