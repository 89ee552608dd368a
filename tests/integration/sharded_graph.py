"""The tiny graph with shards: what is tested is how they are handed out and collected.

``MADE`` in the environment of a machine is a folder where each stage of a shard that runs leaves a file, and where the
file ``transfer_s`` says how long ``acquire`` takes; ``HOLDS=<stage>-<shard>`` is the stage that waits until the file
``go_on`` appears there.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import yaml
from checkout import Checkout
from tiny_graph import tiny

KINDS = {"acquire": [], "screen": ["acquire"], "preprocess": ["acquire", "screen"]}
STAGE = """
import os, sys, time, uuid
from pathlib import Path
from components.files import write_json, write_text

kind, shard = sys.argv[1:]
made = Path(os.environ["MADE"])
write_text(made / f"{kind}-{shard}-{uuid.uuid4().hex}", "")
if kind == "acquire" and (made / "transfer_s").exists():
    time.sleep(float((made / "transfer_s").read_text()))
while os.environ.get("HOLDS") == f"{kind}-{shard}" and not (made / "go_on").exists():
    time.sleep(0.1)
out = Path("data/wholebody") / kind / shard
if kind == "screen":
    write_json(out / "quality.json", {"suite": kind, "rules": [], "judged": True, "why": "", "warnings": []})
for number in range(3):
    write_text(out / f"{number}", f"{kind} {shard} {number} of {Path('tiny_shard.py').stat().st_size}")
"""


def sharded(folder: Path, shards: int) -> Checkout:
    """As :func:`tiny_graph.tiny`, with so many shards."""
    checkout = tiny(folder)
    (folder / "tiny_shard.py").write_text(textwrap.dedent(STAGE))
    script = folder / "tiny_stage.py"
    of_screen = '    write_json(Path("data/wholebody/screen/0/quality.json"), suite)\n'
    assert of_screen in script.read_text()
    script.write_text(script.read_text().replace(of_screen, ""))
    content = yaml.safe_load((folder / "dvc.yaml").read_text())
    for kind, upstream in KINDS.items():
        content["stages"][kind] = {
            "matrix": {"line": ["wholebody"], "shard": list(range(shards))},
            "cmd": f"python tiny_shard.py {kind} ${{item.shard}}",
            "deps": ["tiny_shard.py", "data/${item.line}/cohort", *(_of(name) for name in upstream)],
            "outs": [_of(kind)],
        }
    content["stages"]["curate"]["do"]["deps"] = ["tiny_stage.py", *(f"data/${{item}}/{kind}" for kind in KINDS)]
    (folder / "dvc.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    checkout.edit(lambda content: content.update(shards=list(range(shards))))
    checkout.git("add", "-A")
    checkout.git("commit", "-q", "-m", "shards")
    return checkout


def _of(kind: str) -> str:
    return f"data/${{item.line}}/{kind}/${{item.shard}}"


def one_after_another(clone: Path, environment: dict[str, str]) -> bytes:
    """The ``dvc.lock`` of a clone of its own, with a cache of its own, in which each stage runs in its turn."""
    list_them = "from flows.graph import stages_for\nprint(*[node.name for node in stages_for('bundle@wholebody')])"
    said = ""
    for command in ([sys.executable, "-c", list_them], ["dvc", "repro", "--single-item"]):
        done = subprocess.run([*command, *said.split()], cwd=clone, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        said = done.stdout
    return (clone / "dvc.lock").read_bytes()


def made(folder: Path) -> list[str]:
    """The shards' stages that have run on a machine, such as ``acquire-0``; one that has run twice is there twice."""
    return sorted(path.name.rpartition("-")[0] for path in folder.glob("*-*-*"))
