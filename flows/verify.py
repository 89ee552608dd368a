"""``ctfoundry verify``: recompute a release from its commit, without any cache, and compare every output."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components.cohort.roots import ROOTS_FILE
from components.params import UserError
from flows.graph import stages_for
from flows.repository import changed_files, git

# A release run writes these two; they carry over into the clone, all code comes from the commit.
CARRIED = ("params.yaml", "dvc.lock")


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


def verify(line: str, keep: Path | None = None) -> list[Compared]:
    """Recompute every stage of ``line`` in a clone of the current commit and compare output hashes.

    Args:
        line: model line; its outputs must be recorded in ``dvc.lock``.
        keep: where to leave the clone; a temporary folder, removed afterwards, where None.

    Raises:
        UserError: code differs from the commit, nothing is recorded, or a stage fails in the clone.
    """
    other = [name for name in changed_files() if name not in CARRIED]
    if other:
        raise UserError(
            f"verify: {len(other)} tracked files differ from the commit ({other[0]}, ...); commit them first"
        )
    recorded = _locked(Path("dvc.lock"))
    nodes = stages_for(f"bundle@{line}")
    missing = [node.name for node in nodes if node.name not in recorded]
    if missing:
        raise UserError(f"verify: {missing[0]} is not recorded in dvc.lock; run `make release LINE={line}` first")
    with tempfile.TemporaryDirectory(prefix="ctfoundry-verify-") as temporary:
        clone = keep or Path(temporary) / "clone"
        git("clone", "--quiet", "--no-hardlinks", str(Path.cwd()), str(clone))
        for name in CARRIED:
            if name in changed_files() or not (clone / name).exists():
                print(f"verify: {name} as in this checkout, not as committed", file=sys.stderr)
                (clone / name).write_bytes(Path(name).read_bytes())
        if ROOTS_FILE.is_file():
            (clone / ROOTS_FILE).parent.mkdir(parents=True, exist_ok=True)
            (clone / ROOTS_FILE).write_bytes(ROOTS_FILE.read_bytes())
        for number, node in enumerate(nodes, 1):
            _recompute(node.name, clone, f"{number}/{len(nodes)}")
        recomputed = _locked(clone / "dvc.lock")
    return [
        Compared(node.name, output, digest, recomputed.get(node.name, {}).get(output, ""))
        for node in nodes
        for output, digest in recorded[node.name].items()
    ]


def _recompute(stage: str, clone: Path, position: str) -> None:
    start = time.monotonic()
    # The clone's own modules come first, whatever is installed; nothing of this checkout's state is reachable.
    environment = {**os.environ, "PYTHONPATH": str(clone), "BENTOML_HOME": str(clone / ".ctfoundry/bentoml")}
    command = ["dvc", "repro", "--single-item", "--force", "--no-run-cache", stage]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    print(f"verify: {position} {stage} recomputed in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    if done.returncode != 0:
        tail = [text for text in (done.stdout + done.stderr).splitlines() if text.strip()][-4:]
        raise UserError(f"verify: {stage} failed in the clone: " + " | ".join(tail))


def _locked(path: Path) -> dict[str, dict[str, str]]:
    """Stage to output to hash, from a ``dvc.lock``."""
    if not path.is_file():
        raise UserError("verify: dvc.lock not found; run `make release` first")
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return {
        name: {out["path"]: out["md5"] for out in stage.get("outs", [])} for name, stage in content["stages"].items()
    }
