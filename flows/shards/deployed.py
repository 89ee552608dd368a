"""The flow that makes one shard, at the commit that a release handed out; prefect.yaml deploys it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flows.environment import prepare

prepare()  # a worker of Prefect imports this module and nothing before it

from prefect import flow, get_run_logger  # noqa: E402
from prefect.client.schemas.objects import State  # noqa: E402
from prefect.states import Completed  # noqa: E402

from components.errors import UserError  # noqa: E402
from components.settings import require_line  # noqa: E402
from flows.deployed import own_code, told  # noqa: E402
from flows.lock import line_slot, turn  # noqa: E402
from flows.places import require_pins  # noqa: E402
from flows.publish import dvc, has_remote, push_stages  # noqa: E402
from flows.release import make_stages  # noqa: E402
from flows.run import Run, Step, Tell  # noqa: E402
from flows.shards.collect import records  # noqa: E402
from flows.shards.parts import shard_of  # noqa: E402
from flows.shards.refs import LOCK, hand_in  # noqa: E402
from flows.sweep import sweep_workspaces  # noqa: E402

ALONE = "preprocess"  # over all cores, and with the memory for it; meanwhile other shards are transferred


@flow(name="shard", flow_run_name="shard {shard} of {line}")
@told
def shard(line: str, shard: str, release: str, whole: list[str]) -> State[Any]:
    """Make one shard of a release and hand it in. A release starts this by itself.

    Args:
        line: the model line.
        shard: which, as params.yaml names it.
        release: id of the run that collects the shards.
        whole: stages of it that need not be made.
    """
    log, began = get_run_logger(), time.time()
    own_code()
    first, ours = shard_of(require_line(line), shard)
    if not has_remote():
        raise UserError("no DVC remote is set, by which a shard would be handed over: set CTFOUNDRY_REMOTE")
    require_pins()
    sweep_workspaces()
    with line_slot(line, f"shard {shard} of {line}", shared=True):
        dvc(["pull", *(node.name for node in first), *whole], log.info)
        make_stages(_Part(line, jobs=1, only=ours.stages, watched=True))
        push_stages(ours.names, log.info)
    hand_in(release, shard, {LOCK: Path(LOCK), **records(ours, began)})
    return Completed(message=f"shard {shard} of {line} is handed in")


class _Part(Run):
    """A run beside which others on this machine make other shards."""

    def _steps(self) -> list[Step]:
        return [self._in_turn(step) if step.name.startswith(f"{ALONE}@") else step for step in super()._steps()]

    def _in_turn(self, step: Step) -> Step:
        return replace(step, work=partial(_after_others, step.name, step.work))


def _after_others(name: str, work: Callable[[Tell], str], tell: Tell) -> str:
    with turn(ALONE, name):
        return work(tell)
