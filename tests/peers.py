"""lightly, an independent library of self-supervised losses. Some of its files import torchvision, of whose wheel no
build fits every build of torch; the losses use nothing of it, so that an empty module in its place does."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any


class _Empty(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@cache
def lightly_losses() -> Any:
    """The package ``lightly.loss``."""
    bare = ModuleType("lightly.models")  # without its architectures
    bare.__path__ = [str(Path(str(importlib.import_module("lightly").__file__)).parent / "models")]
    absent = {part: _Empty(part) for part in ("torchvision", "torchvision.ops")} | {"lightly.models": bare}
    sys.modules.update(absent)
    try:
        return importlib.import_module("lightly.loss")
    finally:
        for part in absent:
            del sys.modules[part]  # others ask whether there is a torchvision
