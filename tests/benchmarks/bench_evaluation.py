"""``python tests/benchmarks/bench_evaluation.py``: many scans by many tasks, from stored features.

Whole scans with a class each, their features of every method as the stages write them; a task after the other in one
process, where a graph gives each its own: memory that one task kept would be seen. Prints processor seconds (what else
the machine does lengthens the wall time, not these) and peak memory as scans and as tasks grow; linear in both is a
ratio of 1.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components.evaluate.layout import Layout
from components.evaluate.task import write_outcome
from components.files import write_text
from components.settings import parse, read_yaml
from components.tasks.config import EvaluateConfig
from components.tasks.features import Features, places_of
from components.tasks.interface import Question
from components.tasks.kinds import KINDS, kind_of
from components.tasks.plain import PLAIN
from components.tasks.table import task_table

DIMENSION = {"histogram": 64, "hu_statistics": 9, "radiomics": 42, "windows": 16}
BLOCK = {"kind": "classify", "set": "site", "label": "finding", "serve": False, "specificity": 0.9, "few_shot": None,
         "external": []}  # fmt: skip


def config() -> EvaluateConfig:
    """As it is shipped: twenty untrained encoders, 2,000 replicates."""
    return parse(EvaluateConfig, read_yaml()["head"]["evaluate"], "head.evaluate")


def table(name: str, scans: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    label = np.where(random.random(scans) < 0.3, "1", "0")
    rows = pd.DataFrame({"case": [f"s{n}" for n in range(scans)], "patient": [f"p{n}" for n in range(scans)]})
    split = np.where(np.arange(scans) % 2, "test", "train")
    return task_table([rows.assign(task=name, volume="v/" + rows["case"], label=label, split=split,
                                   x=np.nan, y=np.nan, z=np.nan)])  # fmt: skip


def stored(folder: Path, places: pd.DataFrame, asked: EvaluateConfig) -> None:
    """Features of every method, noise: what they are worth does not change what they cost."""
    random = np.random.default_rng(1)
    for method in ["encoder", *(f"random_{seed}" for seed in asked.random_seeds), *PLAIN]:
        size = (len(places), DIMENSION.get(method, 384))
        np.save(folder / f"{method}.npy", random.normal(size=size).astype(np.float32))


def measure(scans: int, tasks: int) -> dict[str, Any]:
    asked, task = config(), parse(KINDS["classify"].config, BLOCK, "task")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tables = [table(f"finding_{n:02}", scans, n) for n in range(tasks)]
        places = places_of(tables)
        stored(folder, places, asked)
        write_text(folder / "encoder.safetensors", "")
        seconds, peaks = [], []
        for rows in tables:
            start, name = time.process_time(), str(rows["task"].iloc[0])
            features = Features.read(places, folder)
            given: Any = {"encoders": {}, "volumes": None}
            outcome = kind_of(task).judge(Question("head", name, task, rows, asked, features, **given))
            write_outcome(Layout(folder).task(name), task, outcome, folder / "encoder.safetensors")
            seconds.append(time.process_time() - start)
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return {"scans": scans, "seconds": seconds, "peaks": peaks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, nargs="+", default=[250, 500, 1000])
    parser.add_argument("--tasks", type=int, default=50, help="of the most scans; a fifth of them of the others")
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one)))
        return
    found = []
    for scans in arguments.scans:
        tasks = arguments.tasks if scans == max(arguments.scans) else max(2, arguments.tasks // 5)
        command = [sys.executable, __file__, "--one", str(scans), str(tasks)]
        of = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        found.append(of)
        fifth = max(1, tasks // 5)
        print(
            f"{scans:,} scans, {tasks} tasks: {np.median(of['seconds']):.2f} processor s a task, "
            f"{sum(of['seconds']):.0f} s in all; peak {of['peaks'][fifth - 1]:.0f} MB after {fifth} tasks, "
            f"{of['peaks'][-1]:.0f} MB after {tasks} (ratio {of['peaks'][-1] / of['peaks'][fifth - 1]:.2f}); the last "
            f"fifth of the tasks took {np.median(of['seconds'][-fifth:]) / np.median(of['seconds'][:fifth]):.2f} times "
            "the first"
        )
    for before, after in pairwise(found):
        times = np.median(after["seconds"]) / np.median(before["seconds"])
        print(f"{before['scans']:,} to {after['scans']:,} scans: {times:.2f} times the processor seconds, "
              f"{times / (after['scans'] / before['scans']):.2f} of linear")  # fmt: skip


if __name__ == "__main__":
    main()
