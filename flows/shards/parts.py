"""Which stages of the graph are a shard's, and what all shards need first."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from components.errors import UserError
from flows.graph import Node, stages_for
from flows.processes import started
from flows.publish import dvc
from flows.together import SPREADING

REFUSES = "/bin/false"  # as the shell that DVC runs a stage's command with


@dataclass(frozen=True)
class Shard:
    """A shard of a line.

    Attributes:
        name: as ``shards`` of ``params.yaml`` has it.
        stages: in the order to run them.
    """

    name: str
    stages: tuple[Node, ...]

    @property
    def names(self) -> list[str]:
        return [node.name for node in self.stages]


def shards_of(line: str) -> tuple[list[Node], list[Shard]]:
    """The stages that the shards of a line need, and the shards; each in the order to run them."""
    nodes = stages_for(f"bundle@{line}")
    of: dict[str, list[Node]] = {}
    for node in nodes:
        kind, _, instance = node.name.partition("@")
        if kind in SPREADING and instance.startswith(f"{line}-"):
            of.setdefault(instance.removeprefix(f"{line}-"), []).append(node)
    ours = {node.name for stages in of.values() for node in stages}
    wanted = {name for node in nodes if node.name in ours for name in node.upstream} - ours
    first: list[Node] = []
    for node in reversed(nodes):
        if node.name in wanted:
            first.insert(0, node)
            wanted |= set(node.upstream)
    return first, [Shard(name, tuple(stages)) for name, stages in of.items()]


def shard_of(line: str, name: str) -> tuple[list[Node], Shard]:
    """As :func:`shards_of`, of one shard. Raises UserError where the line has none of that name."""
    first, shards = shards_of(line)
    for shard in shards:
        if shard.name == name:
            return first, shard
    known = ", ".join(shard.name for shard in shards)
    raise UserError(f"shard {name!r} is not allowed: line {line} has {known or 'none'}")


def restore(shards: Sequence[Shard]) -> None:
    """Bring what this machine's cache has of these shards; no stage runs, whatever it lacks."""
    names = [name for shard in shards for name in shard.names]
    command = ["dvc", "--wait-for-lock", "repro", "--single-item", "--keep-going", *names]
    with started(command, environment={**os.environ, "SHELL": REFUSES}) as (_, lines):
        for _ in lines:  # of each stage that would have to run DVC says that it failed
            pass


def out_of_date(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Stages whose outputs are not here, or not those of what they depend on now; each with path to how it differs, as
    DVC says it: ``modified``, ``deleted``, ``not in cache``."""
    said = dvc(["status", "--json", *names], lambda text: None)
    told = json.loads(next((text for text in reversed(said) if text.startswith("{")), "{}"))
    return {name: {path: how for change in changes if isinstance(change, dict) for of in change.values()
                   for path, how in of.items()} for name, changes in told.items()}  # fmt: skip
