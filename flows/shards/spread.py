"""Making the shards of a release at the same time, on the machines whose workers have joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from components.errors import UserError
from flows.lock import slot_lent
from flows.platform.machine import SHARDS_POOL
from flows.publish import has_remote, push_stages
from flows.release import make_stages
from flows.repository import git
from flows.run import Run
from flows.shards import refs
from flows.shards.children import Order, make, workers_online
from flows.shards.collect import collect
from flows.shards.parts import Shard, out_of_date, restore, shards_of


def spread(line: str, run: str, tell: Callable[[str], None]) -> None:
    """Have the shards that have changed made by the workers that there are, and collect them; what is left to be made
    here is for the release that follows. The line's slot is held.

    Args:
        line: model line.
        run: id of this run, a Prefect flow's that is under way.
        tell: told what is decided, and each line that DVC prints.

    Raises:
        NotCollected: see :func:`flows.shards.collect.collect`.
        StageFailed, UserError: a stage failed, here or in the run of a shard.
    """
    first, shards = shards_of(line)
    if why := _alone(shards):
        tell(f"this machine makes the shards itself: {why}")
        return
    make_stages(Run(line, jobs=1, only=tuple(first), watched=True))
    restore(shards)
    old = out_of_date(name for shard in shards for name in shard.names)
    changed = [shard for shard in shards if not old.keys().isdisjoint(shard.names)]
    if len(changed) < 2:
        told = f"shard {changed[0].name} alone has changed" if changed else "no shard has changed"
        tell(f"this machine makes the shards itself: {told}")
        return
    tell(f"shards that have changed: {', '.join(shard.name for shard in changed)}; {workers_online()} workers")
    whole = [name for shard in changed for name in shard.names if name not in old]
    push_stages([*(node.name for node in first), *whole], tell)
    commit = refs.hand_out(run, line)
    try:
        with slot_lent(line, f"retrain {line}"):
            tree = git("rev-parse", f"{commit}^{{tree}}")
            made = make(Order(line, run, commit, tree, frozenset(whole)), changed, tell)
        collect(run, made, tell)
    except Exception:
        _clear(run, tell)
        raise
    _clear(run, tell)  # not where we are told to end: what was handed in waits for another try, or the sweep


def _alone(shards: Sequence[Shard]) -> str:
    """Why nobody else makes them; '' where others do."""
    if len(shards) < 2:
        return "there is one shard"
    if not workers_online():
        return f"no worker of pool {SHARDS_POOL} is online"
    return "" if has_remote() else "no DVC remote is set, by which others would hand them over"


def _clear(run: str, tell: Callable[[str], None]) -> None:
    try:
        refs.clear(run)
    except UserError as error:  # the sweep does it
        tell(f"the shards' refs are still there: {error}")
