"""The real flow over a graph of tiny stages: what is tested is the flow, so a stage takes no longer than it is told to.

``SLOW=<stage>`` in the environment makes that stage start a worker in a session of its own, as Ray does, and wait for
SIGUSR1; ``FAILS=<stage>`` makes it end with a mistake of the user; ``BURNS=<stage>`` makes it use known amounts of
processor time and memory, most of them in a daemon that nobody waits for.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from checkout import Checkout

ORDER = ("cohort", "acquire", "curate", "drift", "pretrain", "gate", "champion", "bundle")
OWN_SECONDS, DAEMON_SECONDS, DAEMON_MIB = 3.0, 15.0, 400  # memory is looked at once a second: a look too many is 7 %
PAGE = {"in": 3, "accepted": 2, "not_ct": 0, "rejected": {"gantry_tilt": 1}, "accepted_by_role": {"pretrain": 2},
        "series": []}  # fmt: skip

STAGE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from components.bundle.inputs import code_hash
from components.bundle.manifest import write_manifest
from components.files import sha256_tree, write_json, write_text

name = sys.argv[1]
if os.environ.get("SLOW") == name:
    signal.signal(signal.SIGUSR1, lambda *_: go_on.append(True))
    go_on = []
    worker = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    write_text(Path("under_way"), name)
    while not go_on:
        time.sleep(0.1)
    worker.kill()
if os.environ.get("BURNS") == name:
    def burn(seconds):
        while time.process_time() < seconds:
            pass
    reads, writes = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            block = bytearray(DAEMON_MIB << 20)
            block[::4096] = b"x" * len(block[::4096])
            begin = time.monotonic()
            burn(DAEMON_SECONDS)
            held = DAEMON_MIB / 1024 * (time.monotonic() - begin)
            write_json(Path("used.json"), {"cpu_s": OWN_SECONDS + time.process_time(), "gib_s": held})
            del block
            os.write(writes, b"done")
            for number in (0, 1, 2):
                os.close(number)
            time.sleep(1000)
        os._exit(0)
    os.wait()
    burn(OWN_SECONDS)
    os.read(reads, 4)
if os.environ.get("FAILS") == name:
    sys.exit(f"{name}: data/none: not found; this stage fails")
data = Path("data/wholebody")
gate = {"gate": f"{name} gate", "figure": 0.9, "bound": 0.8, "verdict": "pass", "detail": "tried"}
suite = {"suite": name, "rules": [], "judged": True, "why": "", "warnings": []}
if name == "cohort":
    import pandas as pd
    from components.cohort.config import CohortConfig
    from components.settings import load_stage
    from components.tables import write_table

    config = load_stage(CohortConfig, "wholebody", "cohort")
    write_json(data / name / "quality.json", suite)
    if config.source == "phantom":
        blank = dict.fromkeys(("set", "location", "plan", "version", "study", "reason"), "")
        of = {**blank, "source": "phantom", "role": "pretrain", "files": 0, "bytes": 0, "shard": 0}
        rows = [{**of, "series": key} for key in ("s1", "s2")]
        write_table(data / name / "cohort.parquet", pd.DataFrame(rows))
    else:  # the real one
        from components.cohort.stage import make_cohort

        make_cohort("wholebody", config, 1, frozenset(), data / name)
if name == "acquire":
    write_text(data / name / "receipt", "received")
if name == "curate":
    write_json(Path("data/wholebody/screen/0/quality.json"), suite)
    write_json(data / name / "quality.json", suite)
    write_json(data / name / "funnel.json", FUNNEL)
if name == "drift":
    write_json(data / name / "drift.json", suite)
if name == "pretrain":
    write_text(data / name / "encoder", "weights")
if name == "gate":
    write_json(data / name / "decision.json", {"verdict": "pass", "gates": [gate]})
if name == "champion":
    write_json(data / name / "verdict.json", {"verdict": "pass"})
    write_json(data / name / "comparison.json", {"champion": None, "verdict": "pass", "gates": [gate]})
if name == "bundle":
    folder = Path("releases/wholebody")
    write_json(folder / "encoder.json", {"cohort": sha256_tree(data / "cohort")})
    write_text(folder / "MODEL_CARD.md", "# A card")
    inputs = {"code": code_hash(Path()), "lock": sha256_tree(Path("infra/pins"))}
    write_manifest(folder, "wholebody", "ctfoundry-wholebody", inputs)
"""


def tiny(folder: Path) -> Checkout:
    """A checkout of this project whose graph is one of tiny stages, one after the other."""
    checkout = Checkout(folder)
    script = folder / "tiny_stage.py"
    text = textwrap.dedent(STAGE).replace("FUNNEL", repr(PAGE))
    for name in ("OWN_SECONDS", "DAEMON_SECONDS", "DAEMON_MIB"):
        text = text.replace(name, str(globals()[name]))
    script.write_text(text)
    stages = {}
    for before, name in zip((None, *ORDER), ORDER, strict=False):
        out = "releases/${item}" if name == "bundle" else f"data/${{item}}/{name}"
        deps = ["tiny_stage.py", *([f"data/${{item}}/{before}"] if before else [])]
        deps += ["data/${item}/cohort"] if name == "bundle" else []
        do = {"cmd": f"python tiny_stage.py {name}", "deps": deps, "outs": [out]}
        if name == "cohort":
            do["params"] = ["${item}.cohort"]
        stages[name] = {"foreach": ["wholebody"], "do": do}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    checkout.edit(lambda content: content.update(shards=[0]))
    checkout.git("add", "-A")
    checkout.git("commit", "-q", "-m", "tiny stages")
    return checkout


def wait_until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)
