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
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.utils import canonicalize_name

from components.files import write_text
from components.params import UserError
from serving.requirements import pinned_requirements, pins_of

LOCK_FILE = Path("constraints.txt")
PINS = Path("infra/pins")
SERVING = "serving"
STAGES = ("cohort", "acquire", "screen", "preprocess", "curate", "pretrain", "evaluate", "gate", "bundle")
OURS = ("components", "serving", "flows")
# They carry bytes or show progress: another version brings the same outputs.
CARRIERS = frozenset({"dicomweb-client", "platformdirs", "ray", "requests", "retrying", "rich", "urllib3"})
PLUGINS = {
    "pydicom": ("pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg"),  # decode pixels
    "matplotlib": ("pillow",),  # writes the pictures
}
# The registry names every stage's parameters; a stage reads its own only.
REGISTRY = Path("components/params.py")


def imports(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, anywhere in it; ``from a import b`` gives ``a`` and ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files(module: str) -> Iterator[Path]:
    """The files that importing one of our modules runs: its own and its packages'."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        path = Path(*parts[:end])
        if (path / "__init__.py").is_file():
            yield path / "__init__.py"
        elif path.with_suffix(".py").is_file():
            yield path.with_suffix(".py")


def closure(start: Path) -> tuple[frozenset[Path], frozenset[str]]:
    """Our files that ``start`` reaches by imports, itself among them, and the top-level names of others' packages."""
    reached: set[Path] = set()
    foreign: set[str] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        for module in imports(path):
            top = module.partition(".")[0]
            if top not in OURS:
                foreign.add(top)
            elif path != REGISTRY:
                waiting.extend(_files(module))
    return frozenset(reached), frozenset(foreign - sys.stdlib_module_names)


def entry(stage: str) -> Path:
    """The file that a stage's command runs."""
    return Path("components") / stage / "__main__.py"


def stage_pins(stage: str) -> list[str]:
    """``name==version`` of what decides a stage's outputs, sorted.

    Raises:
        UserError: the lock file does not pin one of them.
    """
    owners = metadata.packages_distributions()
    names = {canonicalize_name(name) for top in closure(entry(stage))[1] for name in owners.get(top, [top])}
    names |= {canonicalize_name(plugin) for name in names for plugin in PLUGINS.get(name, ())}
    pins = pins_of(LOCK_FILE)
    wanted = sorted(name for name in names if name not in CARRIERS)
    missing = [name for name in wanted if name not in pins]
    if missing:
        raise UserError(f"{LOCK_FILE}: does not pin {', '.join(missing)}; add what `pip freeze` says")
    return [pins[name] for name in wanted]


def expected() -> dict[Path, str]:
    """Every file of pins, as it should be."""
    lines = {stage: stage_pins(stage) for stage in STAGES} | {SERVING: pinned_requirements(LOCK_FILE)}
    return {PINS / f"{name}.txt": "\n".join(content) + "\n" for name, content in lines.items()}


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
