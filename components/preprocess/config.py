"""Parameters of preprocessing."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from components.ct.grid import GridConfig


class PreprocessConfig(GridConfig):
    """The standard grid, and what a worker may take for one series.

    Attributes:
        max_memory_gib: a series that needs more is rejected. No voxel depends on it.
    """

    max_memory_gib: Annotated[float, Field(ge=0.1)]
