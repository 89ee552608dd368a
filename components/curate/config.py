"""Thresholds of the suite *volumes*, and of *release*, which is held to the champion's profile."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from components.quality.drift import DriftConfig
from components.settings import Apart, StageConfig, StoredHU

Fraction = Annotated[float, Field(ge=0, le=1)]


class CurateConfig(StageConfig):
    """Attributes:
    min_extent_mm: shortest scan, from the first to the last slice.
    min_body_fraction: share of the volume that is the patient.
    body_median_hu: allowed median of the patient's voxels above -500 HU: soft tissue lies near 40 HU, so a wrong
        rescale shows.
    max_darkest_hu: the first percentile of a scan is air, or at least fat; where it is not, the intercept is wrong.
    max_constant_slices: slices whose voxels all have one value.
    max_extent_mm: longest scan.
    max_air_fraction: share of the volume that is no tissue.
    brightest_hu: allowed 99th percentile: some bone or contrast, and no scan of metal.
    max_saturated_fraction: share of the tissue that has the highest value of all: more was clipped to a window.
    min_levels: distinct HU values; 256 are a picture, not a scan.
    noise_hu: allowed noise: none means smoothed or painted pixels.
    max_duplicate_slices: slices whose pixels are those of another.
    max_slice_jump: largest difference between neighbouring slices over the median one: slices of another scan.
    max_border_fraction: share of the planes' edges that lies in the patient, above which the field was cut (warning).
    body_area_cm2: allowed median area of the patient's transverse sections: what the line is for, a head or a trunk.
    min_bone_fraction: smallest share of tissue as bright as bone; a head has more of it than a trunk. None: any.
    max_lung_fraction: largest amount of what is as dark as lung, over that of tissue. None: any.
    max_cut_fraction: share of what is denser than air, tables included, that the crop to the patient leaves out, above
        which parts of the patient may have been lost (warning).
    min_accepted_rate: below this share of accepted series the suite warns.
    drift: of the training set from the champion's.
    """

    min_extent_mm: Annotated[float, Field(ge=0)]
    min_body_fraction: Annotated[float, Field(ge=0, le=1)]
    body_median_hu: Annotated[tuple[StoredHU, StoredHU], Apart]
    max_darkest_hu: Annotated[int, Field(ge=-1024, le=0)]
    max_constant_slices: Annotated[int, Field(ge=0)]
    max_extent_mm: Annotated[float, Field(gt=0)]
    max_air_fraction: Fraction
    brightest_hu: Annotated[tuple[StoredHU, StoredHU], Apart]
    max_saturated_fraction: Fraction
    min_levels: Annotated[int, Field(ge=2, le=65_536)]
    noise_hu: Annotated[tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]], Apart]
    max_duplicate_slices: Annotated[int, Field(ge=0)]
    max_slice_jump: Annotated[float, Field(ge=1)]
    max_border_fraction: Fraction
    body_area_cm2: Annotated[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], Apart]
    min_bone_fraction: Fraction | None
    max_lung_fraction: Annotated[float, Field(ge=0)] | None
    max_cut_fraction: Fraction
    min_accepted_rate: Annotated[float, Field(ge=0, le=1)]
    drift: DriftConfig

    @model_validator(mode="after")
    def _extents(self) -> CurateConfig:
        if self.min_extent_mm >= self.max_extent_mm:
            raise ValueError(
                f"min_extent_mm {self.min_extent_mm} is not allowed with max_extent_mm {self.max_extent_mm}: "
                "the lower first"
            )
        return self
