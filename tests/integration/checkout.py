"""A small checkout of this project in a temporary folder: the real code, tools and graph, with small parameters."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sys.executable).parent


def small(content: dict[str, Any]) -> None:
    """Few patients, few steps, and bounds that a model of that size meets."""
    for line in ("wholebody", "head"):
        content[line]["cohort"]["phantom"].update(
            pretrain_patients=4, evaluation_patients=16, retest_patients=2, fault_share=0.2
        )
        content[line]["pretrain"].update(steps=4, checkpoint_every=2, log_every=1, volumes_per_step=2, workers=2)
        content[line]["evaluate"].update(bootstrap=100, random_seeds=[1, 2], minimum_patients=2)
        content[line]["tasks"]["saliency"].update(cases=3, steps=2, untrained=2)
        content[line]["tasks"]["retrieve"].update(untrained=2)
        gates = content[line]["gate"]
        # Of few patients and two untrained encoders nothing follows.
        gates.update(better_than_random=[], worse_alpha=None)
        for gate in gates["floors"]:
            gate["minimum"] = 0.0
        gates["max_reject_rate"] = 0.6
    findings = content["head"]["tasks"]["findings"]
    findings["few_shot"] = [1, 2]
    findings["fine_tune"].update(steps=2, few_shot_steps=2, scratch=2)
    findings["attentive"].update(steps=2, untrained=2)
    for of_set in content["head"]["sets"].values():
        of_set["scans"]["phantom"]["evaluation_patients"] = 8
    segmented = content["wholebody"]["tasks"]["organs_segmented"]
    segmented.update(scans=[1], test_scans=2)
    segmented["decoder"].update(steps=10, voxels=1000, averaged=[2, 4, 4])
    segmented["decoder"]["varied"]["copies"] = 0
    # a stage each; the others have tests of their own
    keep(content, "wholebody", "organs", "stability", "locate", "organs_segmented")


def keep(content: dict[str, Any], line: str, *tasks: str) -> None:
    """Leave a line no other tasks than these, in its block and in the list for dvc.yaml."""
    content[line]["tasks"] = {name: content[line]["tasks"][name] for name in tasks}
    listed = content["tasks"].items()
    content["tasks"] = {name: of for name, of in listed if of["line"] != line or of["task"] in tasks}


def one_shard(content: dict[str, Any]) -> None:
    """As :func:`small`, all series in one shard."""
    small(content)
    content["shards"] = [0]


class Checkout:
    """A committed checkout and a way to run commands in it."""

    def __init__(self, folder: Path, change: Callable[[dict[str, Any]], None] = small) -> None:
        self.folder = folder
        tracked = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
        )
        for name in tracked.stdout.splitlines():
            if (ROOT / name).is_file() and name != "dvc.lock":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        self.edit(change)
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "small"]):
            self.git(*command)

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=self.folder, capture_output=True, text=True, check=True
        )
        return done.stdout

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        path = self.folder / "params.yaml"
        content = yaml.safe_load(path.read_text())
        change(content)
        path.write_text(yaml.safe_dump(content, sort_keys=False))

    def environment(self) -> dict[str, str]:
        """Ours, without what the test session has set for itself; the checkout's own modules come first."""
        kept = {k: v for k, v in os.environ.items() if k not in ("BENTOML_HOME", "PREFECT_HOME", "PREFECT_API_URL")}
        return {**kept, "PYTHONPATH": str(self.folder), "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}

    def run(self, *command: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=self.environment(), capture_output=True, text=True, timeout=timeout
        )
