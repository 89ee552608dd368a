"""Thresholds of the suite *volumes*."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from components.params import StageConfig


class CurateConfig(StageConfig):
    """Attributes:
    min_extent_mm: shortest scan, from the first to the last slice.
    min_body_fraction: share of the volume that is the patient.
    body_median_hu: allowed median of the patient's voxels above -500 HU: soft tissue lies near 40 HU, so a wrong
        rescale shows.
    max_darkest_hu: the first percentile of a scan is air, or at least fat; where it is not, the intercept is wrong.
    max_constant_slices: slices whose voxels all have one value.
    min_accepted_rate: below this share of accepted series the suite warns.
    """

    min_extent_mm: Annotated[float, Field(ge=0)]
    min_body_fraction: Annotated[float, Field(ge=0, le=1)]
    body_median_hu: tuple[int, int]
    max_darkest_hu: Annotated[int, Field(ge=-1024, le=0)]
    max_constant_slices: Annotated[int, Field(ge=0)]
    min_accepted_rate: Annotated[float, Field(ge=0, le=1)]
