"""What Prefect does by itself: a run whose machine has gone is found and tried again, and failures are told to people.

Set by name, each time the platform starts.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.events import emit_event
from prefect.events.actions import ActionTypes, CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.states import AwaitingRetry
from prefect.types import SecretDict
from pydantic import SecretStr

from components.errors import UserError
from flows.platform.machine import HEARTBEAT_SECONDS
from flows.promotion.approval import timed_out
from flows.states import FAILURES, NOTHING_TO_DO, REJECTED

WEBHOOK, BLOCK = "CTFOUNDRY_WEBHOOK", "ctfoundry-webhook"
HEARTBEATS_LOST = 6 * HEARTBEAT_SECONDS
TRIES = 3  # of a run whose machine has gone
BEGIN_SECONDS = 300  # a worker that took a run has cloned and begun it, on however busy a machine
CANCEL_SECONDS = 60  # a cancelled run has ended itself, if it lives
RUN = "prefect.flow-run"
SUSPENDED = "Suspended"  # a promotion waits for a person
AGAIN = f"tried again, {TRIES} times at most: what is finished is not made again"
# As Prefect's worker puts it; the number of a signal follows, below zero.
EXITED = ("Process exited with status code:", "Flow run infrastructure exited with non-zero status code")
RELEASES = "retrain"  # the flow
TAKEN_UP = timedelta(days=2)
SCHEDULED = "Scheduled"
SOON, ANNOUNCE_SECONDS = timedelta(seconds=90), 20.0  # workers take a run ten seconds before it is to begin
TAKE_UP_SECONDS = 600.0  # longer than an automation waits, or what is looked at would never be missed
# States to the event after which an automation waits for the next.
OWING = {StateType.PENDING: "Pending", StateType.RUNNING: "heartbeat", StateType.CANCELLING: "Cancelling"}
ENDS = ("Completed", "Failed", "Cancelled", "Crashed", SUSPENDED, "Paused", NOTHING_TO_DO, REJECTED, *FAILURES)
TEXT = """{"text": {{ (flow_run.name ~ ": " ~ flow_run.state.name ~ ": " ~ flow_run.state.message) | tojson }}}"""


def set_automations() -> list[str]:
    """Create the automations, or bring them up to date where they differ; returns their names.

    Raises:
        UserError: ``CTFOUNDRY_WEBHOOK`` is no address.
    """
    wanted = [_lost(), _never_begun(), _cancelled(), _again(), _killed_early(), timed_out()]
    if url := os.environ.get(WEBHOOK):
        wanted.append(_told(_block(url)))
    with get_client(sync_client=True) as client:
        for automation in wanted:
            there = client.read_automations_by_name(automation.name)
            # One that is made anew has forgotten what it waits for: a run that was lost with the platform's machine.
            if len(there) == 1 and _wants_the_same(there[0], automation):
                continue
            for old in there:
                client.delete_automation(old.id)
            automation.create()
    return [automation.name for automation in wanted]


def take_up() -> None:
    """Look at what automations may have missed: what a server had heard and not yet acted on when it was killed, it has
    forgotten, and automations that are made anew know of no run.

    They wait anew for what each run that is under way owes, and a release that was lost is tried again.
    """
    wanted = FlowRunFilterStateType(any_=[*OWING, StateType.CRASHED])
    since = FlowRunFilterExpectedStartTime.model_validate({"after_": datetime.now(UTC) - TAKEN_UP})
    with get_client(sync_client=True) as client:
        found = FlowRunFilter(state=FlowRunFilterState(type=wanted), expected_start_time=since)
        releases = {flow.id for flow in client.read_flows(flow_filter=FlowFilter(name=FlowFilterName(any_=[RELEASES])))}
        for run in client.read_flow_runs(flow_run_filter=found):
            if run.state_type in OWING:
                emit_event(f"{RUN}.{OWING[run.state_type]}", resource={"prefect.resource.id": f"{RUN}.{run.id}"})
            elif run.flow_id in releases and 0 < run.run_count < TRIES:
                client.set_flow_run_state(run.id, AwaitingRetry(message=AGAIN), force=True)


def announce(known: Collection[UUID]) -> set[UUID]:
    """Send the event of each run that a schedule has made and that is to begin soon.

    Prefect sends none, and yet the run's next event says that it follows it: automations would hear of nothing that
    becomes of the run until a quarter of an hour later.

    Args:
        known: states whose event was sent.

    Returns:
        Those that need not be sent the next time.
    """
    soon = FlowRunFilterExpectedStartTime.model_validate({"before_": datetime.now(UTC) + SOON})
    scheduled = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(state=scheduled, expected_start_time=soon))
    found = {run.state.id: run for run in runs if run.auto_scheduled and run.state and run.state.name == SCHEDULED}
    for state, run in found.items():
        if state not in known:  # an event has the id of its state
            resource = {"prefect.resource.id": f"{RUN}.{run.id}", "prefect.resource.name": run.name}
            emit_event(f"{RUN}.{SCHEDULED}", resource=resource, id=state)
    return set(found)


def _wants_the_same(one: AutomationCore, other: AutomationCore) -> bool:
    return one.enabled and (one.trigger, one.actions) == (other.trigger, other.actions)


def _trigger(events: set[str], match: Mapping[str, str | list[str]], **more: Any) -> EventTrigger:
    return EventTrigger(
        expect=events, match=ResourceSpecification(dict(match)), for_each={"prefect.resource.id"}, threshold=1, **more
    )


def _lost() -> Automation:
    trigger = _trigger(
        {f"{RUN}.{state}" for state in (*ENDS, "Cancelling")} | {f"{RUN}.heartbeat"},
        {"prefect.resource.id": f"{RUN}.*"},
        after={f"{RUN}.heartbeat"},
        posture=Posture.Proactive,
        within=HEARTBEATS_LOST,
    )
    told = f"no heartbeat for {HEARTBEATS_LOST} s: its machine or process has gone"
    action = ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=told, force=False)
    return _automation("a run has gone", trigger, action)


def _never_begun() -> Automation:
    """A worker that is killed after it took a run leaves it pending, without a heartbeat to be missed."""
    trigger = _trigger(
        {f"{RUN}.{state}" for state in (*ENDS, "Running", "Cancelling", "AwaitingConcurrencySlot", "AwaitingRetry")}
        | {f"{RUN}.heartbeat"},
        {"prefect.resource.id": f"{RUN}.*"},
        after={f"{RUN}.Pending"},
        posture=Posture.Proactive,
        within=BEGIN_SECONDS,
    )
    told = f"not begun {BEGIN_SECONDS} s after a worker took it: the worker has gone"
    action = ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message=told, force=True)
    return _automation("a run that was taken has not begun", trigger, action)


def _cancelled() -> Automation:
    """A run that lives ends itself when it is cancelled; of one that has gone nobody else would say so."""
    trigger = _trigger(
        {f"{RUN}.{state}" for state in ENDS},
        {"prefect.resource.id": f"{RUN}.*"},
        after={f"{RUN}.Cancelling"},
        posture=Posture.Proactive,
        within=CANCEL_SECONDS,
    )
    told = f"cancelled {CANCEL_SECONDS} s ago: its machine or process has gone"
    action = ChangeFlowRunState(state=StateType.CANCELLED, name="Cancelled", message=told, force=True)
    return _automation("a run that has gone was cancelled", trigger, action)


def _again() -> Automation:
    begun = {"prefect.run-count": [str(count) for count in range(1, TRIES)]}
    return _tried_again("a release that was lost is tried again", begun)


def _killed_early() -> Automation:
    """Of a run that has not begun no try is counted. One that cannot begin is not tried for ever; one whose process
    was killed is, while somebody kills it."""
    killed = {"prefect.run-count": ["0"], "prefect.state-message": [f"{told} -*" for told in EXITED]}
    return _tried_again("a release that was killed before it began is tried again", killed)


def _tried_again(name: str, match: Mapping[str, str | list[str]]) -> Automation:
    trigger = _trigger(
        {f"{RUN}.Crashed"},
        {"prefect.resource.id": f"{RUN}.*", **match},
        match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": RELEASES}),
        posture=Posture.Reactive,
    )
    action = ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message=AGAIN, force=True)
    return _automation(name, trigger, action)


def _told(block: UUID) -> Automation:
    trigger = _trigger(
        {f"{RUN}.{state}" for state in ("Failed", "Crashed", SUSPENDED, REJECTED, *FAILURES)},
        {"prefect.resource.id": f"{RUN}.*"},
        match_related=ResourceSpecification({"prefect.resource.role": "deployment"}),
        posture=Posture.Reactive,
    )
    action = CallWebhook(block_document_id=block, payload=TEXT)
    return _automation("a failure, and what waits for a person, is told", trigger, action)


def _automation(name: str, trigger: EventTrigger, action: ActionTypes) -> Automation:
    return Automation(name=f"ctfoundry: {name}", trigger=trigger, actions=[action])


def _block(url: str) -> UUID:
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{WEBHOOK} {url!r} is not allowed: an http:// or https:// address")
    block = Webhook(url=SecretStr(url), headers=SecretDict({"Content-Type": "application/json"}))
    return cast(UUID, block.save(BLOCK, overwrite=True))
