"""``ctfoundry verify``: recompute a release from its commit, without any cache, and compare every output."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components import arithmetic
from components.errors import UserError
from components.files import read_json, write_json
from components.settings import reproducible
from components.sources.roots import ROOTS_FILE
from flows.graph import Node, stages_for
from flows.processes import end_children, scratch_folder, started
from flows.repository import changed_files, clone, is_repository
from flows.together import default_jobs, longest_first, side_by_side, task_blocks

# A release run writes these; they carry over into the clone, all code comes from the commit.
MADE_ON = Path("infra/made_on.json")
CARRIED = ("params.yaml", "dvc.lock", MADE_ON.as_posix())
# Judged beside the champion of the day: recomputed, because the bundle waits for the verdict, and no part of a release.
BESIDE_CHAMPION = ("drift@", "champion@")


@dataclass(frozen=True)
class Compared:
    """One output of one stage: the recorded hash and the recomputed one ('' where there is none)."""

    stage: str
    output: str
    recorded: str
    recomputed: str

    @property
    def identical(self) -> bool:
        return self.recorded == self.recomputed != ""


def note_machine(line: str) -> None:
    """Write where the line's outputs, as this machine makes them, are the same bytes."""
    noted = read_json(MADE_ON) if MADE_ON.is_file() else {}
    summary = Path("data") / line / "pretrain" / "summary.json"
    on_gpu = summary.is_file() and read_json(summary).get("device") == "cuda"
    here = f"a GPU beside {arithmetic.kind()}" if on_gpu else arithmetic.promised(reproducible(line))
    if noted.get(line) != here:
        write_json(MADE_ON, {**noted, line: here})


def same_machine(line: str) -> bool:
    """Whether the recorded release was made where its outputs are the same bytes as here."""
    made = read_json(MADE_ON).get(line) if MADE_ON.is_file() else None
    return made == arithmetic.promised(reproducible(line))


def expectation(line: str) -> str:
    """Where the recorded release was made, and what a recomputation here can therefore show."""
    made = read_json(MADE_ON).get(line) if MADE_ON.is_file() else None
    if made is None:
        return f"{MADE_ON} does not say on which processor the release was made; this one is {arithmetic.kind()}"
    if same_machine(line):
        return f"made on {made}; this is {arithmetic.kind()}: every output is to be identical"
    return (
        f"made on {made}; this is {arithmetic.kind()}: outputs may differ in their last digits, weights and what "
        "follows from them most"
    )


def verify(line: str, keep: Path | None = None, jobs: int | None = None) -> list[Compared]:
    """Recompute every stage of ``line`` in a clone of the current commit and compare output hashes.

    Args:
        line: model line; its outputs must be recorded in ``dvc.lock``.
        keep: where to leave the clone; a temporary folder, removed afterwards, where None.
        jobs: stages at a time; as many as this machine bears where None.

    Raises:
        UserError: code differs from the commit, nothing is recorded, or a stage fails in the clone.
    """
    if not is_repository():
        raise UserError("verify: this folder is no git repository: there is no commit to recompute the release from")
    other = [name for name in changed_files() if name not in CARRIED]
    if other:
        raise UserError(
            f"verify: {len(other)} tracked files differ from the commit ({other[0]}, ...); commit them first"
        )
    recorded = _locked(Path("dvc.lock"))
    nodes = longest_first(stages_for(f"bundle@{line}"), task_blocks(line))
    missing = [node.name for node in nodes if node.name not in recorded]
    if missing:
        raise UserError(f"verify: {missing[0]} is not recorded in dvc.lock; run `make release LINE={line}` first")
    print(f"verify: {expectation(line)}", file=sys.stderr, flush=True)
    with scratch_folder("ctfoundry-verify-") as temporary:
        copy = keep or temporary / "clone"
        clone(copy)
        for name in CARRIED:
            if Path(name).is_file() and (name in changed_files() or not (copy / name).exists()):
                print(f"verify: {name} as in this checkout, not as committed", file=sys.stderr)
                (copy / name).write_bytes(Path(name).read_bytes())
        if ROOTS_FILE.is_file():
            state = _state(copy)
            state.mkdir(parents=True, exist_ok=True)
            (state / ROOTS_FILE.name).write_bytes(ROOTS_FILE.read_bytes())
        _recompute_all(nodes, line, copy, jobs or default_jobs())
        recomputed = _locked(copy / "dvc.lock")
    return [
        Compared(node.name, output, digest, recomputed.get(node.name, {}).get(output, ""))
        for node in nodes
        if not node.name.startswith(BESIDE_CHAMPION)
        for output, digest in recorded[node.name].items()
    ]


def _recompute_all(nodes: list[Node], line: str, clone: Path, jobs: int) -> None:
    with ThreadPoolExecutor(jobs) as pool:
        positions = {node.name: f"{number}/{len(nodes)}" for number, node in enumerate(nodes, 1)}

        def begin(node: Node) -> Future[None]:
            return pool.submit(_recompute, node.name, line, clone, positions[node.name])

        try:
            side_by_side(nodes, jobs, begin, lambda node: None)
        except BaseException:  # a signal: no thread waits for its stage to end by itself
            end_children()
            raise


def _recompute(stage: str, line: str, clone: Path, position: str) -> None:
    start = time.monotonic()
    # The clone's own modules come first, whatever is installed; nothing of this checkout's state is reachable.
    state = _state(clone)
    ours = {"PYTHONPATH": str(clone), "CTFOUNDRY_STATE": str(state), "BENTOML_HOME": str(state / "bentoml")}
    environment = {**os.environ, **arithmetic.variables(reproducible(line)), **ours}
    command = ["dvc", "--wait-for-lock", "repro", "--single-item", "--force", "--no-run-cache", stage]
    with started(command, str(clone), environment) as (process, lines):
        tail = list(deque(lines, maxlen=4))
    print(f"verify: {position} {stage} recomputed in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    if process.returncode != 0:
        raise UserError(f"verify: {stage} failed in the clone: " + " | ".join(tail))


def _state(clone: Path) -> Path:
    """The clone's own, whatever this machine has set: what is kept between runs may not stand in for a stage."""
    return clone.resolve() / ".ctfoundry"


def _locked(path: Path) -> dict[str, dict[str, str]]:
    """Stage to output to hash, from a ``dvc.lock``."""
    if not path.is_file():
        raise UserError("verify: dvc.lock not found; run `make release` first")
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return {
        name: {out["path"]: out["md5"] for out in stage.get("outs", [])} for name, stage in content["stages"].items()
    }
