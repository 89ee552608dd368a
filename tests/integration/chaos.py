"""What the tests of chaos share: a graph with a stage on Ray, who is killed, and what may not be left behind."""

from __future__ import annotations

import os
import random
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from checkout import Checkout
from platform_of import Platform
from postgres import Postgres
from tiny_graph import tiny, wait_until

LINES = ("wholebody", "head")
DEPLOYED = (":retrain", ":sweep")
ORDER = ("cohort", "drift", "pretrain", "gate", "champion", "bundle")
ON_RAY, TASKS, TASK_S = "pretrain", 6, 1.0
BUSY_S = 5400.0  # beyond it something is stuck, on however busy a machine
TEMPORARY = ("*.partial", "*.old", "*.tmp", "tmp_obj_*", "incoming-*", "tmp_objdir-*", "*.lock.*")
# A chain of hashes from a file that each commit changes to the bundle. The stage on Ray runs as the product's do.
STAGE = """
import hashlib, sys, time
from pathlib import Path
import pandas as pd
from components.bundle.inputs import code_hash
from components.bundle.manifest import write_manifest
from components.cluster import map_on_ray
from components.command import run_stage
from components.errors import PassingError
from components.files import sha256_tree, write_json, write_text
from components.isolation import GIB, Lost
from components.tables import write_table

name = sys.argv.pop(1)

def link(text):
    import hashlib, time
    time.sleep(TASK_S)
    return hashlib.sha256(text.encode()).hexdigest()

def work(line):
    data = Path("data") / line
    before = ORDER[ORDER.index(name) - 1]
    source = Path("salt") / line if name == ORDER[0] else data / before / "chain"
    chain = hashlib.sha256((name + source.read_text()).encode()).hexdigest()
    if name == ON_RAY:
        items = [f"{chain} {n}" for n in range(TASKS)]
        links = map_on_ray(link, items, name, max_memory=GIB, memory=lambda _: GIB // 8)
        if any(isinstance(one, Lost) for one in links):
            raise PassingError(f"{name}: lost: {links}")
        chain = hashlib.sha256("".join(links).encode()).hexdigest()
    gate = {"gate": f"{name} gate", "figure": 0.9, "bound": 0.8, "verdict": "pass", "detail": "tried"}
    suite = {"suite": name, "rules": [], "judged": True, "why": "", "warnings": []}
    if name == "bundle":
        folder = Path("releases") / line
        write_json(folder / "encoder.json", {"chain": chain})
        write_text(folder / "MODEL_CARD.md", "# A card")
        inputs = {"code": code_hash(Path()), "lock": sha256_tree(Path("infra/pins"))}
        write_manifest(folder, line, f"ctfoundry-{line}", inputs)
        return
    write_json(data / name / "quality.json", suite)
    if name == "cohort":  # what a release would bring is read from it
        blank = dict.fromkeys(("set", "location", "plan", "version", "study", "reason"), "")
        row = {**blank, "series": "s1", "source": "phantom", "role": "pretrain", "files": 0, "bytes": 0, "shard": 0}
        write_table(data / name / "cohort.parquet", pd.DataFrame([row]))
    if name == "drift":
        write_json(data / name / "drift.json", suite)
    if name == "gate":
        write_json(data / name / "decision.json", {"verdict": "pass", "gates": [gate]})
    if name == "champion":
        write_json(data / name / "verdict.json", {"verdict": "pass"})
        write_json(data / name / "comparison.json", {"champion": None, "verdict": "pass", "gates": [gate]})
    write_text(data / name / "chain", chain)

run_stage(name, "a stage of the chaos", work)
"""


def chaos_graph(folder: Path, every: float | None) -> Checkout:
    """A checkout of two lines of tiny stages, each line with a schedule where ``every`` names its seconds."""
    checkout = tiny(folder)
    text = textwrap.dedent(STAGE)
    for name in ("TASK_S", "TASKS", "ORDER", "ON_RAY"):
        text = text.replace(name, repr(globals()[name]))
    (folder / "tiny_stage.py").write_text(text)
    stages = {}
    for before, name in zip((None, *ORDER), ORDER, strict=False):
        dep = "salt/${item}" if before is None else f"data/${{item}}/{before}"
        out = "releases/${item}" if name == "bundle" else f"data/${{item}}/{name}"
        command = f"python tiny_stage.py {name} --line ${{item}}"
        stages[name] = {"foreach": list(LINES), "do": {"cmd": command, "deps": ["tiny_stage.py", dep], "outs": [out]}}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    deployed = yaml.safe_load((folder / "prefect.yaml").read_text())
    # Without those that ask people of what was published: nobody is there to answer.
    deployed["deployments"] = [one for one in deployed["deployments"] if one["entrypoint"].endswith(DEPLOYED)]
    for one in deployed["deployments"]:
        if every and one["entrypoint"].endswith(":retrain"):
            one["schedules"] = [{"interval": every, "slug": "chaos"}]
    (folder / "prefect.yaml").write_text(yaml.safe_dump(deployed, sort_keys=False))
    salted(checkout, 0)
    return checkout


def salted(checkout: Checkout, number: int) -> None:
    """One more commit, after which every stage of both lines is out of date."""
    (checkout.folder / "salt").mkdir(exist_ok=True)
    for line in LINES:
        (checkout.folder / "salt" / line).write_text(f"{line} {number}\n")
    checkout.git("add", "-A")
    checkout.git("commit", "-q", "-m", f"salt {number}")


class Chaotic(Platform):
    """A platform whose server and database may be away: who asks asks again."""

    def asked(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        answers: list[httpx.Response] = []

        def answered() -> bool:
            with suppress(httpx.TransportError):
                answers.append(httpx.request(method, f"{self.api}/{path}", json=body, timeout=60, trust_env=False))
            return bool(answers) and answers[-1].status_code < httpx.codes.INTERNAL_SERVER_ERROR

        wait_until(answered, BUSY_S, f"{path} is answered")
        answers[-1].raise_for_status()
        return answers[-1].json() if answers[-1].content else None

    def push(self) -> None:
        self.checkout.git("push", "-q", "origin", "HEAD")

    def runs(self) -> list[dict[str, Any]]:
        """Every run of ``retrain`` that ever began."""
        found: list[dict[str, Any]] = []
        while page := self.asked("POST", "flow_runs/filter", {
            "flows": {"name": {"any_": ["retrain"]}}, "sort": "START_TIME_ASC", "limit": 200, "offset": len(found),
        }):  # fmt: skip
            found += page
        return [run for run in found if run["run_count"] or run["state"]["type"] != "SCHEDULED"]

    def pause(self) -> None:
        """No run is scheduled any more, and what has not begun does not."""
        for line in LINES:
            found = self.get(f"deployments/name/retrain/{line}")
            for schedule in found["schedules"]:
                path = f"deployments/{found['id']}/schedules/{schedule['id']}"
                self.asked("PATCH", path, {"active": False})
        waiting = self.asked("POST", "flow_runs/filter", {
            "flows": {"name": {"any_": ["retrain"]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        })  # fmt: skip
        for run in waiting:
            if run["run_count"] == 0:
                self.asked("DELETE", f"flow_runs/{run['id']}")

    def slots_taken(self) -> int:
        """Of Prefect's own concurrency limits."""
        limits = self.asked("POST", "v2/concurrency_limits/filter", {})
        return sum(limit["active_slots"] for limit in limits)

    def processes(self, run: str = "") -> list[psutil.Process]:
        """Those that live of one flow run; of all of this platform's runs where none is named."""
        wanted = f"PREFECT__FLOW_RUN_ID={run}".encode()
        ours = f"CTFOUNDRY_STATE={self.state}".encode()
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
                if ours not in environment or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if wanted in environment if run else any(one.startswith(wanted) for one in environment):
                    found.append(process)
        return found


def said(process: psutil.Process) -> str:
    with suppress(psutil.Error, OSError):
        return " ".join(process.cmdline())
    return ""


class Killer:
    """Ends a process of a kind, by SIGKILL, and starts again what the platform does not."""

    def __init__(self, of: Chaotic, platform: int, database: Postgres, chance: random.Random) -> None:
        self.of, self.platform, self.database, self.chance = of, platform, database, chance

    def victims(self, kind: str) -> list[psutil.Process]:
        if kind in ("worker", "server"):
            parts = psutil.Process(self.platform).children()
            return [part for part in parts if f"prefect {kind} start" in said(part)]
        wanted: dict[str, Callable[[str], bool]] = {
            "ray head": lambda text: "/gcs_server " in text or "/raylet/raylet " in text,
            "ray worker": lambda text: text.startswith("ray::"),
            "stage": lambda text: "tiny_stage.py " in text and "repro" not in text and not text.startswith("/bin/"),
            "run": lambda text: "prefect.engine" in text,
        }
        return [process for process in self.of.processes() if wanted[kind](said(process))]

    def kill(self, kind: str) -> str:
        """Returns what was ended. A process of the kind is waited for."""
        if kind == "database":
            self.database.kill()
            time.sleep(self.chance.uniform(0.5, 30))
            self.database.start()
            return kind
        deadline = time.monotonic() + BUSY_S
        while time.monotonic() < deadline:
            if found := self.victims(kind):
                with suppress(psutil.NoSuchProcess):
                    victim = self.chance.choice(found)
                    text = said(victim)
                    victim.kill()
                    return text[:120]
            time.sleep(0.2)
        raise AssertionError(f"no {kind} to kill within {BUSY_S:.0f} s\n{self.of.logs()}")


@contextmanager
def unchanged_shared_memory() -> Iterator[None]:
    """What is in /dev/shm afterwards and was not before is held by a process that lives."""
    before = set(Path("/dev/shm").iterdir())
    yield
    new = {path for path in Path("/dev/shm").iterdir() if path not in before and "plasma" in path.name}
    maps = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            maps.append((folder / "maps").read_text())
    assert not [path for path in new if not any(str(path) in text for text in maps)]


def an_hour_later(of: Platform) -> None:
    """A sweep leaves alone what is young, for it may just be made."""
    then = time.time() - 2 * 3600
    for path in (*of.tmp.iterdir(), *of.tmp.glob("*/*"), *temporary_files(of)):
        with suppress(FileNotFoundError):
            os.utime(path, (then, then), follow_symlinks=False)


def temporary_files(of: Platform) -> list[Path]:
    """Half-written files in the state folder, in DVC's remote and in the team's repository."""
    places = (of.state, of.remote, of.bare)
    found = {path for place in places for pattern in TEMPORARY for path in place.rglob(pattern)}
    return sorted(path for path in found if "prefect" not in path.parts)


def locks_left(of: Platform) -> list[str]:
    """Git's locks of the repository, and turns of lines that are still signed."""
    git = [str(path) for path in of.bare.rglob("*.lock")]
    return git + [f"{path}: {path.read_text()}" for path in (of.state / "slots").iterdir() if path.stat().st_size]
