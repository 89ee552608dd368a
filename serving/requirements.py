"""What the service needs at run time: the closure of its requirements, at the versions of the lock file."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from components.errors import UserError

# What serving/ and the parts of components/ under it import; the tests compare this list with what gets imported.
ROOTS = (
    "anyio", "bentoml", "blosc2", "cryptography", "dicomsdl", "dicomweb-client", "highdicom", "httpx", "monai",
    "nibabel", "numpy", "opencv-python-headless", "pandas", "prometheus-client", "pg8000",
    "pydantic", "pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pynetdicom", "python-multipart",
    "pyyaml", "requests", "retrying", "safetensors", "scipy", "sqlalchemy", "starlette", "torch", "urllib3",
)  # fmt: skip


def runtime_closure(roots: tuple[str, ...] = ROOTS) -> tuple[NormalizedName, ...]:
    """Canonical names of ``roots`` and all they require, from the metadata of what is installed, sorted.

    Raises:
        UserError: a required distribution is not installed.
    """
    seen: set[tuple[NormalizedName, str]] = set()
    waiting: list[tuple[NormalizedName, str]] = [(canonicalize_name(name), "") for name in roots]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            raise UserError(
                f"package {name}: not installed, but the service needs it; make the environment again"
            ) from None
        for requirement in map(Requirement, required):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                key = canonicalize_name(requirement.name)
                waiting.extend((key, wanted) for wanted in ("", *requirement.extras))
    return tuple(sorted({name for name, _ in seen}))


def pinned_requirements(lock_file: Path, roots: tuple[str, ...] = ROOTS) -> list[str]:
    """``name==version`` lines of the closure, as ``lock_file`` pins them; its index options first.

    Raises:
        UserError: the lock file is missing or does not pin a package of the closure.
    """
    options = [line for line in _lines(lock_file) if line.startswith("--") and "==" not in line]
    pins = pins_of(lock_file)
    missing = [name for name in runtime_closure(roots) if name not in pins]
    if missing:
        raise UserError(f"{lock_file.name}: does not pin {', '.join(missing)}; add what `pip freeze` says")
    return options + [pins[name] for name in runtime_closure(roots)]


def pins_of(lock_file: Path) -> dict[NormalizedName, str]:
    """Canonical name to its ``name==version`` line. Raises UserError where the lock file is missing."""
    return {
        canonicalize_name(re.split(r"[=<>!~\[; ]", line, maxsplit=1)[0]): line
        for line in _lines(lock_file)
        if "==" in line
    }


def _lines(lock_file: Path) -> list[str]:
    try:
        return [line.partition("#")[0].strip() for line in lock_file.read_text().splitlines()]
    except FileNotFoundError:
        raise UserError(f"{lock_file}: not found; run from the project's root") from None
