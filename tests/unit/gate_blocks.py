"""A line's ``gate`` for tests of other things: the shipped block that asks nothing, and what a test asks besides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.settings import read_yaml

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"


def asking(**wanted: Any) -> dict[str, Any]:
    """The block with every list of gates empty but those of ``wanted``, so that a new kind of gate is no other test's
    concern."""
    shipped = read_yaml(PARAMS)["wholebody"]["gate"]
    return {key: [] if isinstance(value, list) else value for key, value in shipped.items()} | wanted


def params(**wanted: Any) -> dict[str, Any]:
    """All of a ``params.yaml`` that the gates read."""
    return {"lines": ["wholebody"], "wholebody": {"reproducible": "machine", "gate": asking(**wanted)}}
