"""Collecting: the entries of ``dvc.lock`` that the shards' runs came to, and their data from DVC's remote.

Nothing that could compute is called: an object that is missing, or an entry that is not of this checkout's code,
parameters and cohort, is an error that names the stage.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from dvc.utils.serialize import modify_yaml

from components.errors import UserError
from components.files import read_json, replacing
from flows.costs.usage import COSTS, entry_hash, lock_entries
from flows.publish import dvc
from flows.run import ReleaseFailed
from flows.shards.parts import Shard, out_of_date
from flows.shards.refs import LOCK, handed_in

RECORDS = "costs"
MISSING = "not in cache"  # in the words of DVC
CURE = "nothing was computed in its place; make the release again"


class NotCollected(ReleaseFailed):
    """A shard was made elsewhere and is not whole here; the message names the stage."""


def collect(run: str, shards: Sequence[Shard], tell: Callable[[str], None]) -> None:
    """Enter what the shards' runs have handed in, and bring their data.

    Args:
        run: id of the run that handed them out.
        shards: in the order in which ``dvc.lock`` is to name stages that it did not name before.
        tell: told each line that DVC prints.

    Raises:
        NotCollected: an entry or an object is missing, or another code, parameter or cohort went into it.
    """
    names = [name for shard in shards for name in shard.names]
    with handed_in(run) as folder:
        entries: dict[str, dict[str, Any]] = {}
        for shard in shards:
            entries |= lock_entries(shard.names, folder / shard.name / LOCK)
        if missing := [name for name in names if name not in entries]:
            raise NotCollected(f"stage {missing[0]}: its run handed nothing in; make the release again")
        with modify_yaml(LOCK) as content:
            content["stages"].update({name: entries[name] for name in names})
        for name in names:
            _take_records(folder, name)
    _bring(names, tell)
    with Repo() as repo:  # a later release may go back to these parameters
        for stage in repo.index.stages:
            if stage.addressing in entries:
                repo.stage_cache.save(stage)


def _bring(names: list[str], tell: Callable[[str], None]) -> None:
    refused = ""
    try:
        dvc(["pull", *names], tell)
    except UserError as error:
        refused = str(error)
    old = out_of_date(names)
    for name, paths in old.items():
        for path, how in paths.items():
            if how == MISSING:
                raise NotCollected(f"stage {name}: {path}: an object is missing in DVC's remote; {CURE}")
    if old:
        name, paths = next(iter(old.items()))
        differs = ", ".join(list(paths)[:3]) or "its command"
        raise NotCollected(f"stage {name}: made from another {differs} than is here; {refused or CURE}")
    if refused:
        raise NotCollected(f"the shards' data did not come: {refused}")


def records(shard: Shard, since: float) -> Mapping[str, Path]:
    """What a shard's stages took on this machine: files by the name under which they are handed in.

    Args:
        shard: it is made, and in ``dvc.lock``.
        since: when its run began, seconds since 1970; of earlier runs only the one that made its outputs counts.
    """
    found = {}
    for name, entry in lock_entries(shard.names).items():
        for path in sorted((COSTS / name).glob("*.json")):
            with suppress(ValueError):  # a damaged one
                if path.stat().st_mtime >= since or read_json(path).get("lock") == entry_hash(entry):
                    found[f"{RECORDS}/{name}/{path.name}"] = path
    return found


def _take_records(folder: Path, name: str) -> None:
    for path in sorted(folder.glob(f"*/{RECORDS}/{name}/*.json")):
        kept = COSTS / name / path.name
        if not kept.exists():
            with replacing(kept, durable=False) as temporary:
                shutil.copyfile(path, temporary)
