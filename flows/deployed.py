"""The flows that ``prefect.yaml`` deploys. Each runs in a workspace of its own: a clone that goes when the run ends.

What a run came to is its state: ``NothingToDo``, ``GateFailed``, ``StageFailed``, ``NotCollected``, ``Refused``,
``NotReproduced``, each with a message of one line. The kept state and DVC's cache lie outside of the workspace, where
``CTFOUNDRY_STATE`` and ``DVC_GLOBAL_CONFIG_DIR`` say.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, ParamSpec
from uuid import UUID

from flows.environment import prepare

prepare()  # a worker of Prefect imports this module and nothing before it

from prefect import flow, get_run_logger  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402
from prefect.client.schemas.objects import State  # noqa: E402
from prefect.events import emit_event  # noqa: E402
from prefect.runtime import flow_run  # noqa: E402
from prefect.states import Cancelled, Completed, Failed  # noqa: E402

from components.errors import UserError  # noqa: E402
from components.settings import block_of, require_line  # noqa: E402
from flows import run as runs  # noqa: E402
from flows.heed import heeding_cancellation  # noqa: E402
from flows.lock import hold_checkout, line_slot  # noqa: E402
from flows.parameters import pin  # noqa: E402
from flows.plan import ask, make_plan  # noqa: E402
from flows.publish import Bump, Published, fetch_versions, newest, publish  # noqa: E402
from flows.release import release  # noqa: E402
from flows.repository import git  # noqa: E402
from flows.run import GateFailed, StageFailed, run_first  # noqa: E402
from flows.shards.children import has_ended  # noqa: E402
from flows.shards.collect import NotCollected  # noqa: E402
from flows.shards.refs import clear_dead  # noqa: E402
from flows.shards.spread import spread  # noqa: E402
from flows.states import NOT_REPRODUCED, NOTHING_TO_DO, REFUSED, REJECTED  # noqa: E402
from flows.sweep import sweep_all, sweep_workspaces  # noqa: E402
from flows.verify import same_machine, verify  # noqa: E402
from flows.watch import INDEX, changes, drifted, installed  # noqa: E402

CANDIDATE, DIFFERENT = "ctfoundry.release.candidate", "ctfoundry.release.not_reproduced"
GivenT = ParamSpec("GivenT")
Privacy = Literal["critical", "reject", "warning"]


def resource(line: str) -> dict[str, str]:
    """What events of a line are about."""
    return {"prefect.resource.id": f"ctfoundry.line.{line}", "prefect.resource.name": line}


def told(work: Callable[GivenT, State[Any]]) -> Callable[GivenT, State[Any]]:
    """A failure that has a name becomes the state of that name; the workspace is held meanwhile."""

    @functools.wraps(work)
    def named(*args: GivenT.args, **kwargs: GivenT.kwargs) -> State[Any]:
        try:
            hold_checkout(work.__name__)
            with heeding_cancellation(UUID(flow_run.id)):
                return work(*args, **kwargs)
        except (GateFailed, StageFailed, NotCollected) as error:
            return Failed(name=type(error).__name__, message=str(error))
        except UserError as error:
            return Failed(name=REFUSED, message=str(error))

    return named


def candidate(made: Published) -> dict[str, str]:
    """What the event of a published version carries; prefect.yaml names some of it."""
    version = made.tag.rpartition("@")[2]
    return {"line": made.line, "version": version, "tag": made.tag, "branch": made.branch, "commit": made.commit,
            "digest": made.digest}  # fmt: skip


def nothing_to_do(why: str) -> State[Any]:
    """The state of a run that found nothing to do."""
    return Completed(name=NOTHING_TO_DO, message=why)


@flow(name="retrain", flow_run_name="retrain {line}")
@told
def retrain(
    line: str,
    source: str | None = None,
    evaluation: str | None = None,
    privacy: Privacy | None = None,
    idc_version: int | None = None,
    jobs: int | None = None,
    bump: Bump = "patch",
    shards_here: bool = False,
    ask_above_gb: float | None = 100.0,
    hours: float = 72.0,
    afresh: bool = False,
) -> State[Any]:
    """Make a release of a model line and publish it: data, a commit on a branch, a version's tag.

    What it would bring is on the run's page before anything is transferred.

    Args:
        line: the model line.
        source: where its CT comes from, such as dicom:/data/export; as params.yaml says where empty.
        evaluation: lidc_nodules:<folder>, or none; as params.yaml says where empty.
        privacy: what personal data in a header cost; as params.yaml says where empty.
        idc_version: the version of the Imaging Data Commons to choose from; as params.yaml says where empty.
        jobs: stages at a time; as many as the machine bears where empty.
        bump: which part of the version grows.
        shards_here: make every shard on this machine, also where workers for shards are online.
        ask_above_gb: where more would be brought in, the run waits for a person; never where empty.
        hours: for their answer; none in time means no.
        afresh: every stage works, and nothing that this machine keeps stands in for its work.
    """
    from flows.beginning import begin  # it brings torch along: seconds for each of the other flows

    log, line = get_run_logger(), require_line(line)
    log.info("workspace %s at commit %s", Path.cwd(), git("rev-parse", "HEAD"))
    own_code()
    # What a killed run has left may still be writing to the same state folder.
    if left := sweep_workspaces():
        log.warning("removed %d workspaces of dead runs", left)
    begin(line, source, evaluation, privacy)
    if idc_version is not None:
        _choose_from(line, idc_version)
    with line_slot(line, f"retrain {line}"):  # until it is published no branch or tag needs what was made
        if no := _asked(line, ask_above_gb, hours, afresh):
            return Cancelled(name=REJECTED, message=no)
        if not (shards_here or afresh):
            spread(line, str(flow_run.id), log.info)
        release(line, jobs, afresh)
        made = publish(line, bump, log.info)
    if not made.new:
        return nothing_to_do(f"the release is what {made.tag} says: bundle {made.digest[:16]}")
    row = candidate(made)
    text = "\n".join(f"- {name}: `{value}`" for name, value in row.items())
    create_markdown_artifact(text, key="release", description=f"Release {made.tag}")
    emit_event(CANDIDATE, resource=resource(line), payload=row)
    return Completed(message=f"{made.tag}: bundle {made.digest[:16]} on branch {made.branch}")


@flow(name="watch", flow_run_name="watch {line}")
@told
def watch(line: str, minimum: int = 1) -> State[Any]:
    """Look whether the source of a line has changed since its last release, or its service is sent other scans than it
    was trained on, and send an event where that is so.

    Args:
        line: the model line.
        minimum: studies that must have come to a PACS.
    """
    found = changes(require_line(line), minimum) or drifted(line)
    if found is None:
        return nothing_to_do(f"line {line}: its source is what its last release was made from")
    emit_event(found.event, resource=resource(line), payload=found.payload)
    return Completed(message=found.told)


@flow(name="verify", flow_run_name="verify {line}")
@told
def verify_release(line: str, tag: str | None = None, jobs: int | None = None) -> State[Any]:
    """Compute a published release again from its commit, without any cache, and compare every output.

    Args:
        line: the model line.
        tag: such as wholebody@v0.1.0; its newest version where empty.
        jobs: stages at a time; as many as the machine bears where empty.
    """
    fetch_versions(require_line(line))
    tag = tag or newest(line)
    if tag is None:
        return nothing_to_do(f"line {line}: no version has been published")
    git("checkout", "--quiet", "--detach", tag)
    compared = verify(line, jobs=jobs)
    different = [row for row in compared if not row.identical]
    if not different:
        return Completed(message=f"{tag}: {len(compared)} of {len(compared)} outputs identical")
    told = f"{tag}: {len(different)} of {len(compared)} outputs differ, {different[0].output} first"
    if same_machine(line):  # on a processor of another kind other bytes say nothing
        emit_event(DIFFERENT, resource=resource(line), payload={"line": line, "tag": tag, "told": told})
    return Failed(name=NOT_REPRODUCED, message=told)


@flow(name="sweep")
@told
def sweep(days: int = 0) -> State[Any]:
    """Remove what dead runs left on this machine, and what no branch or tag needs of DVC's cache.

    Args:
        days: 0 keeps what the tip of every branch and every tag needs; more keeps also what commits of that many days
            needed.
    """
    told = [sweep_all(get_run_logger().info, days)]
    if dead := clear_dead(has_ended):
        told.append(f"refs of the shards of {dead} runs")
    return Completed(message=", ".join(filter(None, told))) if any(told) else nothing_to_do("no run left anything")


def own_code() -> None:
    """Stages, and the workers that they start, run the workspace's code, whatever is installed."""
    imported = Path(str(runs.__file__)).resolve()
    if not imported.is_relative_to(Path.cwd().resolve()):
        raise UserError(f"{imported} was imported, not the workspace's: unset PYTHONPATH where the worker starts")
    os.environ["PYTHONPATH"] = str(Path.cwd())


def _asked(line: str, above_gb: float | None, hours: float, afresh: bool) -> str | None:
    """List the source, and show what would be brought in; why nobody wants it, or None. May suspend this run."""
    pacs = block_of(line, "cohort")["source"] == "dicomweb"  # what it holds is no file that DVC could watch
    run_first(line, "cohort", get_run_logger().info, afresh or pacs)
    fetch_versions(line)
    return ask(make_plan(line, newest(line), afresh), above_gb, hours)


def _choose_from(line: str, idc_version: int) -> None:
    if idc_version > installed():
        raise UserError(
            f"idc_version {idc_version} is not allowed: the installed {INDEX} knows {installed()}; raise its pin in "
            "constraints.txt"
        )
    pin(line, "cohort", {"idc": {**block_of(line, "cohort")["idc"], "idc_version": idc_version}})
