"""The nodes of a cluster that is there: each is asked what training and preprocessing rely on; and what Ray says."""

from __future__ import annotations

import os
import re
import secrets
import socket
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components import arithmetic
from components.errors import PassingError, UserError

DECISIVE = ("torch", "numpy", "monai", "blosc2", "ray")  # libraries that a step of training runs
ITS_LOGS = "Its logs are in /tmp/ray/session_latest/logs of its head node, where its owner set no other folder"
# Before what a part of Ray that ended says itself, such as that a port is taken; and Ray's own traceback, of which the
# last line says why.
NOT_FOR_PEOPLE = re.compile(
    r"Last \d+ lines of error files:(?s:.*?)Check failed: \S+ |Traceback \(most recent call last\):\n(?:[ \t].*\n)+"
)
REASON_LENGTH = 240  # characters; Ray's own text may hold a traceback


def reason_of(error: Exception) -> str:
    """What Ray says, with the cause that it names, short and on one line."""
    said = ": ".join(str(e) or type(e).__name__ for e in (error, error.__cause__) if e is not None)
    return textwrap.shorten(NOT_FOR_PEOPLE.sub("", said), REASON_LENGTH, placeholder=" ...").rstrip(".")


def check_checkout() -> None:
    """Every node sees this checkout, under the same path: our code and the files are read there.

    Raises:
        UserError: one does not; or none of them has a core to lend.
        PassingError: one did not answer.
    """
    here, marker = str(Path.cwd()), Path(".ctfoundry") / f"seen-{secrets.token_hex(8)}"

    def sees(file: str) -> bool:  # travels by value: a node without the checkout cannot import it
        from pathlib import Path

        return Path(file).is_file()

    marker.parent.mkdir(exist_ok=True)
    marker.touch()
    try:
        seen = _of_every_node(sees, str(marker.absolute()))
    finally:
        marker.unlink(missing_ok=True)
    if blind := sorted(node for node, sees_it in seen.items() if not sees_it):
        raise UserError(
            f"RAY_ADDRESS: node {', '.join(blind)} does not see this checkout: share {here} under that path, or let "
            "pretrain go through a bucket: set CTFOUNDRY_TRAIN_STORAGE"
        )


def check_libraries() -> None:
    """Every node has the libraries that decide the numbers of a step, in this machine's versions.

    Raises:
        UserError: one has not; or none of them has a core to lend.
        PassingError: one did not answer.
    """
    from importlib.metadata import version

    ours = {name: version(name) for name in DECISIVE}

    def theirs(names: tuple[str, ...]) -> dict[str, str]:  # travels by value, as above
        from importlib.metadata import PackageNotFoundError, version

        found = {}
        for name in names:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "missing"
        return found

    for node, found in sorted(_of_every_node(theirs, DECISIVE).items()):
        wrong = [f"{name} {found[name]}, here {ours[name]}" for name in DECISIVE if found[name] != ours[name]]
        if wrong:
            raise UserError(f"RAY_ADDRESS: node {node}: {'; '.join(wrong)}: install what constraints.txt pins there")


def _of_every_node(ask: Callable[[Any], Any], what: Any) -> dict[str, Any]:
    """Address of each node to its answer. Raises UserError, PassingError."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not any(node["Resources"].get("CPU", 0) >= 1 for node in nodes):
        raise UserError(f"RAY_ADDRESS: none of its {len(nodes)} nodes has a core to lend")
    try:
        asked = [
            ray.remote(num_cpus=0)(ask)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote(what)
            for node in nodes
        ]
        answers = ray.get(asked)
    except ray.exceptions.RayError as error:
        raise PassingError(
            f"RAY_ADDRESS {os.environ.get('RAY_ADDRESS')!r}: a node did not answer: {reason_of(error)}; try again when "
            f"all its nodes are there. {ITS_LOGS}"
        ) from None
    return {node["NodeManagerAddress"]: answer for node, answer in zip(nodes, answers, strict=True)}


def check_arithmetic() -> None:
    """On the node that computes: can it keep the promise of the line's mode? The driver knows its own processor only,
    and nodes may join a cluster later.

    Raises:
        UserError: ``reproducible: portable``, and this node is no x86-64 with AVX2.
    """
    from ray.util import get_node_ip_address

    try:
        arithmetic.enter(arithmetic.mode())  # this process is in the mode: it is only asked whether that is possible
    except UserError as error:
        node = f"{socket.gethostname()} ({get_node_ip_address()})"
        raise UserError(f"RAY_ADDRESS: node {node}: {error}, or keep this node out of the run") from None


def room_of_a_node() -> int:
    """Bytes that a task may ask for: the memory of the largest node, for a task runs on one."""
    import ray

    return max(int(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"])
