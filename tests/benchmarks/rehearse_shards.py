"""What DVC's own bookkeeping costs a release, by the number of shards: the real dvc and dvc.yaml, and idle stages.

    python -m tests.benchmarks.rehearse_shards [2 16 32 64 156] [--volumes 0] [--times 3]

Per number of shards: a checkout whose stages only leave what others read, with every stage of both lines in dvc.lock.
Then processor seconds of ``dvc repro --single-item``, as the release flow runs it, for a stage that has not changed and
for one that has run: more than half of them are what reads and writes dvc.lock. ``--volumes`` are files of the first
line's store, spread over its shards: every stage that depends on the store looks at each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

import yaml
from dvc.repo import Repo
from dvc.stage import Stage

from components.settings import PARAMS_FILE
from tests.released import ROOT

LINE = "wholebody"
SHARDED = ("acquire", "screen", "preprocess")
# Stands for Python in the stages' commands: what a command leaves is a script of that name.
SHIM = """#!/bin/sh
name=$(printf '%s' "$*" | tr -c 'A-Za-z0-9' _)
exec sh "$STUBS/$name"
"""


class Checkout:
    """A checkout of so many shards."""

    def __init__(self, folder: Path, shards: int) -> None:
        self.folder, self.shards = folder, shards
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in listed.stdout.splitlines():
            if not name.startswith("tests/") and name != "dvc.lock":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes((ROOT / name).read_bytes())
        params = yaml.safe_load((ROOT / PARAMS_FILE).read_text())
        params["shards"] = list(range(shards))
        (folder / PARAMS_FILE).write_text(yaml.safe_dump(params, sort_keys=False))
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
        self._stubs = folder / ".git" / "stubs"
        (self._stubs / "bin").mkdir(parents=True)
        (self._stubs / "bin" / "python").write_text(SHIM)
        (self._stubs / "bin" / "python").chmod(0o755)

    def write_stubs(self, volumes: int) -> None:
        """A script per stage that leaves its outputs, with every path in them that a stage depends on."""
        os.chdir(self.folder)
        with Repo() as repo:
            stages = list(repo.index.stages)
            wanted = sorted({str(dep.def_path) for stage in stages for dep in stage.deps})
            for stage in stages:
                name = "".join(c if c.isascii() and c.isalnum() else "_" for c in stage.cmd.removeprefix("python "))
                store = volumes // self.shards if stage.addressing.startswith(f"preprocess@{LINE}-") else 0
                (self._stubs / name).write_text("\n".join(_commands(stage, wanted, store)) + "\n")

    def enter_all(self) -> float:
        """Run every stage, and enter all into dvc.lock in one write, for one each would take hours; its seconds."""
        os.environ |= self.environment()
        with Repo() as repo, repo.lock:
            import networkx as nx

            stages = list(nx.dfs_postorder_nodes(repo.index.graph))
            for stage in stages:
                subprocess.run(["sh", "-c", stage.cmd], check=True)
                stage.save(run_cache=False)
                stage.commit()
            begin = time.process_time()
            stages[0].dvcfile.dump_stages(stages, update_pipeline=False)
            return time.process_time() - begin

    def environment(self) -> dict[str, str]:
        path = f"{self._stubs / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {
            "STUBS": str(self._stubs),
            "PATH": path,
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self._stubs),
        }

    def repro(self, stage: str, *options: str) -> tuple[float, float]:
        """Processor seconds of a stage's ``dvc repro``, and seconds by the clock."""
        command = [sys.executable, "-m", "dvc", "repro", "--single-item", *options, stage]
        begin = time.perf_counter()
        with (self._stubs / "said").open("wb") as said:
            process = subprocess.Popen(command, cwd=self.folder, stdout=said, stderr=said,
                                       env={**os.environ, **self.environment()})  # fmt: skip
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        text = (self._stubs / "said").read_text()
        if process.returncode or ("didn't change, skipping" in text) == bool(options):
            raise SystemExit(f"dvc repro {stage}: {text[-2000:]}")
        return used.ru_utime + used.ru_stime, time.perf_counter() - begin


def _commands(stage: Stage, wanted: Sequence[str], store: int) -> Iterable[str]:
    for out in (str(out.def_path) for out in stage.outs):
        inside = [path for path in wanted if path.startswith(f"{out}/")]
        leaf = Path(out).suffix != "" and not inside
        files = inside or [out if leaf else f"{out}/table"]
        for path in files:
            file = path if Path(path).suffix else f"{path}/table"
            yield f"mkdir -p {Path(file).parent} && echo {stage.addressing} {file} > {file}"
        if store:
            yield f"mkdir -p {out}/volumes && cd {out}/volumes && "\
                  f"for n in $(seq {store}); do echo {stage.addressing} $n > s$n.b2nd; done"  # fmt: skip


def measure(shards: int, volumes: int, times: int) -> dict[str, float | int]:
    """One number of shards, in a folder that goes; ``times`` stages of each kind."""
    with tempfile.TemporaryDirectory() as temporary:
        checkout = Checkout(Path(temporary), shards)
        checkout.write_stubs(volumes)
        one_write = checkout.enter_all()
        with Repo() as repo:
            names = sorted(stage.addressing for stage in repo.index.stages)
        ours = [name for name in names if f"@{LINE}" in name]
        sharded = [name for name in ours if name.startswith(SHARDED)]
        others = [name for name in ours if name not in sharded]
        lock = (checkout.folder / "dvc.lock").read_bytes()
        found: dict[str, float | int] = {"shards": shards, "volumes": volumes, "stages": len(names)}
        found |= {"lines": lock.count(b"\n"), "mb": len(lock) / 1e6, "one write": one_write}
        found |= {"of shards": len(sharded), "others": len(others)}
        for kind, of in (("shard", sharded), ("other", others)):
            some = of[:: max(1, len(of) // times)][:times]
            for what, options in (("unchanged", ()), ("ran", ("--force",))):
                spent = [checkout.repro(name, *options) for name in some]
                found[f"{kind} {what}"] = median(cpu for cpu, _ in spent)
                found[f"{kind} {what}, clock"] = median(clock for _, clock in spent)
        os.chdir(ROOT)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="*", type=int, default=[2, 16, 32, 64, 156])
    parser.add_argument("--volumes", type=int, default=0, help="files of the line's store")
    parser.add_argument("--times", type=int, default=3, help="stages of each kind that are timed")
    arguments = parser.parse_args()
    for shards in arguments.shards:
        found = measure(shards, arguments.volumes, arguments.times)
        print(json.dumps({name: round(value, 2) for name, value in found.items()}), flush=True)
        data, rest = found["of shards"], found["others"]
        all_ran = data * found["shard ran"] + rest * found["other ran"]
        none = data * found["shard unchanged"] + rest * found["other unchanged"]
        one = (data - 3) * found["shard unchanged"] + 3 * found["shard ran"] + rest * found["other ran"]
        print(f"{shards} shards: a release {all_ran / 60:.1f} CPU minutes of DVC, of one shard {one / 60:.1f}, "
              f"of nothing {none / 60:.1f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
