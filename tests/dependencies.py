"""What every stage's code depends on, by its imports, beside what ``dvc.yaml`` says.

``python -m tests.dependencies --write`` puts the modules that are right into ``dvc.yaml``; without, it prints the
differences.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml

from components.code import ROOT, closure, entry_point

GRAPH = ROOT / "dvc.yaml"
# Modules that a stage imports, and that decide nothing of its output.
WITHOUT_PART = {
    "": {
        "components/processes.py": "runs the work",
        "components/progress.py": "shows how far it is",
        "components/quality/offline.py": "draws the pages of a report",
    },
    # Days of training must not follow from the form of a table or a picture; an old picture is as good.
    "pretrain": {
        "components/cluster.py": "starts Ray",
        "components/nodes.py": "asks what a cluster's nodes have",
        "components/command.py": "names the folders; the arithmetic that it enters is part of a run's name",
        "components/errors.py": "ends a run, and changes none",
        "components/code.py": "names a run",
        "components/files.py": "writes files",
        "components/tables.py": "reads tables",
        "components/isolation.py": "not used in training",
        "components/settings.py": "reads parameters",
        "components/yaml12.py": "reads them, too",
        "components/models/embed.py": "writes the encoder; evaluate reads it",
        "components/pretrain/on_cluster.py": "waits for room, passes lines on, ends what is late",
        "components/pretrain/plots.py": "draws",
    },
}
PINS_ARITHMETIC = "components/__init__.py"  # of the packages' own files, the one that does something
WHOLE = ("bundle",)  # its manifest hashes the code itself


def stages() -> dict[str, dict[str, Any]]:
    """Name to block, as it stands in the file, without ``foreach``."""
    blocks = yaml.safe_load(GRAPH.read_text(encoding="utf-8"))["stages"]
    return {name: block.get("do", block) for name, block in blocks.items()}


def needed(stage: str) -> set[str]:
    """The modules that decide what a stage makes."""
    start = entry_point(stages()[stage]["cmd"])
    without = {**WITHOUT_PART[""], **WITHOUT_PART.get(stage, {})}
    reached = {path for path in closure([start]) if path not in without and not path.endswith("/__init__.py")}
    return reached | {PINS_ARITHMETIC}


def listed(stage: str) -> set[str]:
    """The modules that ``dvc.yaml`` names, those within folders too."""
    found: set[str] = set()
    for path in (ROOT / dep for dep in stages()[stage]["deps"] if dep.startswith("components")):
        modules = path.rglob("*.py") if path.is_dir() else [path] if path.suffix == ".py" else []
        found |= {m.relative_to(ROOT).as_posix() for m in modules if m.name != "__init__.py"}
        found |= {PINS_ARITHMETIC} if path == ROOT / PINS_ARITHMETIC else set()
    return found


def short(modules: set[str]) -> list[str]:
    """As ``dvc.yaml`` may name them: a folder where it is needed whole."""
    out = set(modules)
    for folder in sorted({Path(m).parent for m in modules} - {Path("components")}):
        inside = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*.py") if p.name != "__init__.py"}
        others = [p for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
        if inside <= modules and len(inside) > 1 and not others:
            out = {m for m in out if not m.startswith(f"{folder.as_posix()}/")} | {folder.as_posix()}
    return sorted(out)


def write() -> None:
    """Put what is needed into ``dvc.yaml``, and leave every other line as it is."""
    lines, out, stage = GRAPH.read_text(encoding="utf-8").splitlines(), [], ""
    for line in lines:
        if match := re.match(r"  (\w+):$", line):
            stage = match[1]
        code = re.match(r"( +)- components/?(\S*)$", line)
        if code and stage not in WHOLE:
            path = ROOT / "components" / code[2]
            if (path.is_file() and path.suffix != ".py") or (path.is_dir() and not any(path.rglob("*.py"))):
                out.append(line)  # data of ours
            continue
        out.append(line)
        if (deps := re.match(r"( +)deps:$", line)) and stage not in WHOLE:
            out += [f"{deps[1]}  - {module}" for module in short(needed(stage))]
    GRAPH.write_text("\n".join(out) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if "--write" in sys.argv:
        write()
    for name in (n for n in stages() if n not in WHOLE):
        for word, some in (("lacks", needed(name) - listed(name)), ("names", listed(name) - needed(name))):
            print(f"{name} {word}: {', '.join(sorted(some)) or 'nothing more'}")
