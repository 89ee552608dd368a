"""A volume read in a process of its own: from a file from outside."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from components.confined import Bounds, Result, isolated
from components.ct.store import Volume


def volume_of(read: Callable[[], Volume], what: str) -> Volume:
    """``read()``, isolated within the environment's bounds. Raises UserError where it gives no volume."""

    def work(_: None) -> Result:
        volume = read()
        facts = {"shape": list(volume.hu.shape), "affine": volume.affine.tolist()}
        return Result(facts, np.ascontiguousarray(volume.hu).data.cast("B"))

    result = isolated(lambda: None, work, Bounds.from_environment(), what)
    hu = np.frombuffer(result.data, dtype=np.int16).reshape(result.content["shape"])
    return Volume(hu=hu, affine=np.asarray(result.content["affine"], dtype=np.float64))
