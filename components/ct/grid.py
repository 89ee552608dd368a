"""The standard grid that training, evaluation and serving share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from components.settings import Apart, StageConfig, StoredHU

Millimetres = Annotated[float, Field(gt=0.1, le=20.0)]


class GridConfig(StageConfig):
    """Standard grid of a line.

    Attributes:
        orientation: axis codes of the stored array, such as SPL (first axis grows to superior) or RAS.
        spacing_mm: voxel size along the stored array's axes.
        enlarging: interpolation within the plane where voxels get smaller; where they grow, area averaging.
        foreground_hu: voxels above it count as body when the volume is cropped to the patient.
        foreground_margin_mm: kept around the body.
        clip_hu: range to which HU are clipped in the store.
    """

    orientation: str
    spacing_mm: tuple[Millimetres, Millimetres, Millimetres]
    enlarging: Literal["linear", "cubic"]
    foreground_hu: Annotated[int, Field(ge=-1000, le=1000)]
    foreground_margin_mm: Annotated[float, Field(ge=0, le=100)]
    clip_hu: Annotated[tuple[StoredHU, StoredHU], Apart]

    @property
    def grid(self) -> dict[str, Any]:
        """All that a stored volume depends on, as plain values."""
        return self.model_dump(mode="json", include=set(GridConfig.model_fields))

    @field_validator("orientation")
    @classmethod
    def _axes(cls, value: str) -> str:
        pairs = ("RL", "AP", "SI")
        if len(value) != 3 or sorted(sum(c in p for c in value) for p in pairs) != [1, 1, 1]:
            raise ValueError("allowed: three letters, one of R/L, one of A/P, one of S/I, such as SPL or RAS")
        return value
