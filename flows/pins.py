"""``python -m flows.pins [--write]``: which pins of the lock file each stage depends on, as ``infra/pins/<stage>.txt``.

The lock file as a whole would make every stage stale with every new linter. A stage's file holds the versions of the
distributions that its modules import, late imports too, and of those that these load as plugins. Distributions below
them are left out: their versions follow, and none was seen to change an output. ``serving.txt`` is all that the Bento
installs. Without ``--write`` the files are compared with what they should be.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import yaml
from packaging.utils import canonicalize_name

from components.code import ROOT, closure, entry_point
from components.errors import UserError
from components.files import write_text
from serving.requirements import pinned_requirements, pins_of

LOCK_FILE = Path("constraints.txt")
PINS = Path("infra/pins")
SERVING = "serving"
OLDEST = (3, 11)
OURS = ("components", "serving", "flows")
# They carry bytes or show progress: another version brings the same outputs.
CARRIERS = frozenset(
    {"dicomweb-client", "httpx2", "huggingface-hub", "platformdirs", "ray", "requests", "retrying", "rich", "urllib3"}
)
PLUGINS = {
    "pydicom": ("pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg"),  # decode pixels
    "matplotlib": ("pillow",),  # writes the pictures
}


def commands() -> dict[str, str]:
    """Stage to command, in the order of the graph."""
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: block.get("do", block)["cmd"] for name, block in stages.items()}


def foreign(path: Path) -> set[str]:
    """Top-level names of others' packages that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - set(OURS)


def stage_pins(command: str) -> list[str]:
    """``name==version`` of what decides the outputs of a stage's command, sorted.

    Raises:
        UserError: the lock file does not pin one of them.
    """
    owners = metadata.packages_distributions()
    modules = closure([entry_point(command)])
    tops = set().union(*(foreign(ROOT / module) for module in modules))
    names = {canonicalize_name(name) for top in tops for name in owners.get(top, [top])}
    names |= {canonicalize_name(plugin) for name in names for plugin in PLUGINS.get(name, ())}
    pins = pins_of(LOCK_FILE)
    wanted = sorted(name for name in names if name not in CARRIERS)
    missing = [name for name in wanted if name not in pins]
    if missing:
        raise UserError(f"{LOCK_FILE}: does not pin {', '.join(missing)}; add what `pip freeze` says")
    return [pins[name] for name in wanted]


def expected() -> dict[Path, str]:
    """Every file of pins, as it should be."""
    files = {PINS / f"{stage}.txt": "\n".join(stage_pins(command)) + "\n" for stage, command in commands().items()}
    # Of the Pythons allowed, the oldest needs the most; on others the file stays as it is.
    if sys.version_info[:2] == OLDEST:
        files[PINS / f"{SERVING}.txt"] = "\n".join(pinned_requirements(LOCK_FILE)) + "\n"
    elif (PINS / f"{SERVING}.txt").is_file():
        files[PINS / f"{SERVING}.txt"] = (PINS / f"{SERVING}.txt").read_text(encoding="utf-8")
    return files


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.pins", description=re.sub(r"\n.*", "", __doc__ or ""))
    parser.add_argument("--write", action="store_true", help="write the files that differ")
    write = parser.parse_args().write
    wanted = expected()
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text() != text]
    stale += [path for path in sorted(PINS.glob("*")) if path not in wanted]
    for path in stale:
        if not write:
            print(f"{path}: not what {LOCK_FILE} and the imports say; run `python -m flows.pins --write`")
        elif path in wanted:
            write_text(path, wanted[path])
        else:
            path.unlink()
    sys.exit(1 if stale and not write else 0)


if __name__ == "__main__":
    main()
