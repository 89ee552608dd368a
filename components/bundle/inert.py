"""Nothing in a release runs: it holds text and safetensors, and no pickle or program under their names."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from components.errors import UserError

TEXT = (".csv", ".html", ".json", ".md", ".txt")
WEIGHTS = ".safetensors"
HEADER_DIGITS = 8  # bytes of the number that says how long a safetensors header is
MAX_HEADER = 100_000_000  # bytes, as safetensors itself allows


def require_inert(folder: Path, paths: Iterable[str]) -> None:
    """Refuse what could run when it is read.

    Args:
        folder: the release folder.
        paths: of its files, relative to it.

    Raises:
        UserError: naming the first file of another kind, or that is not of the kind that its name says.
    """
    for path in sorted(paths):
        suffix = Path(path).suffix
        if suffix not in (*TEXT, WEIGHTS):
            raise UserError(
                f"bundle {folder.name}: {path}: a file of this kind may run when it is read; allowed: "
                f"{', '.join((*TEXT, WEIGHTS))}"
            )
        fits = _is_weights(folder / path) if suffix == WEIGHTS else _is_text(folder / path, suffix)
        if not fits:
            raise UserError(
                f"bundle {folder.name}: {path}: is not what its name says, and may run when it is read; allowed: UTF-8 "
                f"text, JSON as {TEXT[2]}, weights as {WEIGHTS}"
            )


def _is_text(path: Path, suffix: str) -> bool:
    """UTF-8 without zeros; a ``.json`` file is JSON."""
    try:
        text = path.read_text(encoding="utf-8")
        if suffix == ".json":
            json.loads(text)
    except (ValueError, RecursionError):
        return False
    return "\0" not in text


def _is_weights(path: Path) -> bool:
    """Begins with a safetensors header: its length, and JSON of just that length."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(HEADER_DIGITS), "little")
        if not 0 < length <= min(MAX_HEADER, path.stat().st_size - HEADER_DIGITS):
            return False
        try:
            return isinstance(json.loads(stream.read(length)), dict)
        except (ValueError, RecursionError):
            return False
