"""Labels read in a process of their own: files from outside, like the scans that they are of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

import numpy as np

from components.confined import Bounds, Result, isolated
from components.ct.labels.onto_grid import Labels, Segment, read_labels
from components.ct.origin import Origin
from components.ct.store import FloatArray


def read_labels_apart(
    path: Path,
    affine: FloatArray,
    shape: tuple[int, ...],
    scan: Origin | None = None,
    only: Collection[str] = (),
) -> Labels:
    """As :func:`components.ct.labels.onto_grid.read_labels`, in a child and within the environment's bounds.

    Raises:
        UserError: as it does; and, in one line, for a file that crashes its reader or needs more memory or time.
    """

    def work(_: None) -> Result:
        labels = read_labels(path, affine, shape, scan, only)
        segments = [asdict(segment) for segment in labels.segments]
        return Result(
            {"shape": list(labels.layers.shape), "segments": segments},
            np.ascontiguousarray(labels.layers).data.cast("B"),
        )

    result = isolated(lambda: None, work, Bounds.from_environment(), f"labels {path.name}")
    layers = np.frombuffer(result.data, dtype=np.uint16).reshape(result.content["shape"])
    return Labels(layers, affine, tuple(Segment(**segment) for segment in result.content["segments"]))
