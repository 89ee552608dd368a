"""Thresholds of the suite *headers*."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from components.params import StageConfig


class ScreenConfig(StageConfig):
    """Attributes:
    min_instances: fewer slices are no volume.
    thickness_mm: allowed slice thickness, lowest and highest.
    max_gap_ratio: largest gap between neighbouring slices over the median gap.
    max_tilt_degrees: gantry tilt; a sheared grid is not resampled as if it were straight.
    min_accepted_rate: below this share of accepted series the suite warns.
    """

    min_instances: Annotated[int, Field(ge=2)]
    thickness_mm: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0, le=50)]]
    max_gap_ratio: Annotated[float, Field(ge=1, le=10)]
    max_tilt_degrees: Annotated[float, Field(ge=0, le=45)]
    min_accepted_rate: Annotated[float, Field(ge=0, le=1)]
