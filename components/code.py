"""Which of our modules a piece of code is made of, and one digest of them: what results are kept under.

Imports are read from the source (AST), late ones within functions too, so that no list has to be kept by hand.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Collection, Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "components"
# They read parameters and write tables: no measurement, voxel or weight changes with them.
FORM = (
    f"{PACKAGE}/settings.py",
    f"{PACKAGE}/yaml12.py",
    f"{PACKAGE}/errors.py",
    f"{PACKAGE}/files.py",
    f"{PACKAGE}/tables.py",
)


@cache
def imports(module: str) -> frozenset[str]:
    """Our modules that ``module`` imports by itself, as paths relative to the project's root, as it is one."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(path for name in names if (path := _path(name)))


def _path(name: str) -> str:
    """Of a module or package of ours; '' for others, and for names within a module."""
    if name.partition(".")[0] != PACKAGE:
        return ""
    stem = name.replace(".", "/")
    return next((path for path in (f"{stem}.py", f"{stem}/__init__.py") if (ROOT / path).is_file()), "")


def entry_point(command: str) -> str:
    """The module that a command with ``python -m`` runs, as a path relative to the project's root."""
    match = re.search(r"python -m (\S+)", command)
    stem = match[1].replace(".", "/") if match else ""
    path = f"{stem}.py"
    return path if (ROOT / path).is_file() else f"{stem}/__main__.py"


def closure(modules: Iterable[str], apart: Collection[str] = ()) -> frozenset[str]:
    """``modules`` and all that they import, directly or not; without those ``apart``, and what these alone import."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found and module not in apart:
            found.add(module)
            waiting += sorted(imports(module))
    return frozenset(found)


@cache
def code_digest(modules: tuple[str, ...], libraries: tuple[str, ...]) -> str:
    """Hex SHA-256 of the closure of ``modules``, without :data:`FORM`, and of the versions of ``libraries``."""
    digest = hashlib.sha256()
    for path in sorted(closure(modules, FORM)):
        content = (ROOT / path).read_bytes()
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    digest.update(" ".join(f"{name} {version(name)}" for name in libraries).encode())
    return digest.hexdigest()
