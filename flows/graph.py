"""The stage graph, read from ``dvc.yaml`` through DVC; never written down a second time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dvc.lock import LockError
from dvc.repo import Repo

from components.errors import UserError


@dataclass(frozen=True)
class Node:
    """One DVC stage: its address, its description and the stages whose outputs it reads."""

    name: str
    description: str
    upstream: tuple[str, ...]


def stages_for(target: str, root: Path = Path()) -> list[Node]:
    """The stages that ``target`` needs, itself last, in the order to run them.

    Of the stages that are ready, the one that continues what was just begun comes first: a shard is acquired,
    screened and preprocessed before the next is touched, which bounds the raw bytes on disk: see ``flows.together``.

    Raises:
        KeyError: no such stage.
    """
    with Repo(str(root)) as repo:
        graph = repo.index.graph
        stages = {stage.addressing: stage for stage in graph}
        if target not in stages:
            raise KeyError(target)
        upstream = {name: sorted(s.addressing for s in graph.successors(stage)) for name, stage in stages.items()}
        describe = {name: getattr(stage, "desc", None) or "" for name, stage in stages.items()}
    depths: dict[str, int] = {}

    def depth(name: str) -> int:
        if name not in depths:
            depths[name] = 1 + max((depth(parent) for parent in upstream[name]), default=0)
        return depths[name]

    order: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        for parent in sorted(upstream[name], key=lambda parent: (-depth(parent), parent)):
            visit(parent)
        order.append(name)

    visit(target)
    return [Node(name, describe[name], tuple(upstream[name])) for name in order]


def require_free(root: Path = Path()) -> None:
    """Raise UserError where another DVC command holds the checkout: a stage would wait for it without end."""
    with Repo(str(root)) as repo:
        try:
            repo.lock.lock()
        except LockError:
            raise UserError("another DVC command works in this checkout; wait for it to end") from None
        repo.lock.unlock()
