"""The flow ``promote``: show a person what was judged, wait for their answer, promote just that.

It waits suspended: no process and no slot are held, and server, worker or machine may restart meanwhile. After the
answer the flow begins anew, maybe in another clone at another commit, so that what was judged is kept with the run, at
Prefect's server. No answer in time means no, and so does an answer that says nothing.
"""

from __future__ import annotations

from typing import Any

from flows.environment import prepare

prepare()  # a worker of Prefect imports this module and nothing before it

from prefect import flow, get_run_logger  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402
from prefect.automations import Automation  # noqa: E402
from prefect.client.schemas.objects import State, StateType  # noqa: E402
from prefect.events.actions import ChangeFlowRunState  # noqa: E402
from prefect.events.schemas.automations import EventTrigger, Posture  # noqa: E402
from prefect.events.schemas.events import ResourceSpecification  # noqa: E402
from prefect.flow_runs import suspend_flow_run  # noqa: E402
from prefect.input import RunInput, create_flow_run_input, read_flow_run_input  # noqa: E402
from prefect.states import Cancelled, Completed, Failed  # noqa: E402
from pydantic import Field  # noqa: E402

from components.errors import UserError  # noqa: E402
from flows.lock import checkout_lock, hold_checkout  # noqa: E402
from flows.promotion.champions import champion, promote  # noqa: E402
from flows.promotion.reports import page  # noqa: E402
from flows.promotion.tags import fetch, find_version  # noqa: E402
from flows.states import NOTHING_TO_DO, REFUSED, REJECTED, TIMED_OUT  # noqa: E402

FLOW, KEY, JUDGED = "promote", "approval", "judged"
RETRAIN = "retrain"  # the flow that asks before it brings much in: see flows/plan.py
NOBODY = "nobody who is named"
PREFECTS_WORDS = "The flow was paused and never resumed."  # of its own state, when the time is over


class Approval(RunInput):
    """What a person answers, in the UI's form, by the API or by ``ctfoundry approve``. The default is no."""

    approve: bool = Field(default=False, description="whether it may be done")
    by: str = Field(default="", description="who says so")
    reason: str = Field(default="", description="why, for the tag; needed with a yes")


@flow(name=FLOW, flow_run_name="promote {line} {version}")
def promote_release(line: str, version: str, hours: float = 72.0) -> State[Any]:
    """Make a published version the champion, once a person has approved it.

    Args:
        line: the model line.
        version: such as v1.2.0.
        hours: for an answer; none in time means no.
    """
    try:
        hold_checkout(FLOW)
        kept: Any = read_flow_run_input(JUDGED)
        judged = kept or _judge(line, version)
        if judged["champion"]:
            return Completed(name=NOTHING_TO_DO, message=f"{judged['name']} is the champion already")
        asked = Approval.with_initial_data(description=judged["page"])
        answer = suspend_flow_run(wait_for_input=asked, timeout=max(1, round(hours * 3600)), key=KEY)
        return _answered(line, version, judged, answer)
    except UserError as error:
        return Failed(name=REFUSED, message=str(error))


def _judge(line: str, version: str) -> dict[str, Any]:
    """What a person is shown, kept with the run: an answer is to this and to nothing else."""
    fetch(line)
    found, now = find_version(line, version), champion(line)
    replaced = now.version if now else None
    judged: dict[str, Any] = {
        "name": found.name,
        "digest": found.digest,
        "commit": found.commit,
        "champion": replaced == found,
    }
    judged["page"] = page(found, replaced)
    create_flow_run_input(JUDGED, judged)
    create_markdown_artifact(
        judged["page"], key=f"promote-{line.replace('_', '-')}", description=f"To judge: {found.name}"
    )
    return judged


def _answered(line: str, version: str, judged: dict[str, Any], answer: Approval) -> State[Any]:
    by, reason = answer.by.strip(), answer.reason.strip()
    name = f"{judged['name']}, bundle {judged['digest'][:16]}"
    get_run_logger().info("%s: answered by %s", name, by or NOBODY)
    if no := refusal(name, answer):
        return Cancelled(name=REJECTED, message=no)
    with checkout_lock(f"promote {line}"):
        done = promote(line, version, f"{reason} (approved by {by})", judged["digest"])
    return Completed(message=f"{name}: champion since {done.tag}, approved by {by}")


def refusal(name: str, answer: Approval) -> str | None:
    """Why an answer is no yes, in one line about ``name``; None where it is one."""
    by, reason = answer.by.strip(), answer.reason.strip()
    if not answer.approve:
        return f"{name}: rejected by {by or NOBODY}: {reason or 'no reason'}"
    return None if by and reason else f"{name}: a yes without a name and a reason is none; run it again"


def timed_out() -> Automation:
    """Prefect fails a run that nobody answered in time; this gives that end its name."""
    trigger = EventTrigger(
        expect={"prefect.flow-run.Failed"},
        match=ResourceSpecification(
            {"prefect.resource.id": "prefect.flow-run.*", "prefect.state-message": PREFECTS_WORDS}
        ),
        match_related=ResourceSpecification(
            {"prefect.resource.role": "flow", "prefect.resource.name": [FLOW, RETRAIN]}
        ),
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
    )
    message = "nobody answered in time, which is no"
    action = ChangeFlowRunState(state=StateType.FAILED, name=TIMED_OUT, message=message, force=True)
    return Automation(name="ctfoundry: a run that nobody answered", trigger=trigger, actions=[action])
