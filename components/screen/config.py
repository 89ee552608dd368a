"""Thresholds of the suite *headers*."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from components.quality.derived import REGIONS
from components.settings import Ordered, StageConfig

Positive = Annotated[float, Field(gt=0)]
Ratio = Annotated[float, Field(ge=1, le=10)]


class ScreenConfig(StageConfig):
    """Attributes:
    body_parts: what the line is for, as BodyPartExamined says it in DICOM's terms (PS3.16 annex L), such as HEAD; where
        the header states another of these terms, the series is rejected. None: any. Voxels are judged in curation.
    min_instances: fewer slices are no volume.
    thickness_mm: allowed slice thickness, lowest and highest.
    slice_step_mm: allowed median distance from slice to slice.
    step_per_thickness: that distance over the thickness: below, slices overlap without end; above, tissue between
        them was never seen.
    max_gap_ratio: how many times longer, or shorter, than the median a gap between neighbouring slices may be; from 1.5
        on slices are missing, and no volume is read.
    max_off_line_mm: how far a slice may lie from the straight line through the first and the last.
    max_off_grid_mm: how far a slice may lie from its place in a stack of even steps from the first to the last: the
        volume's affine knows no other, so that labels and points in millimetres are off by as much.
    max_tilt_degrees: gantry tilt beyond it is rejected; up to it, preprocessing straightens the slices by shearing.
    pixel_mm, field_mm: allowed pixel spacing, and extent of a slice, in either direction.
    max_pixel_aspect: the larger pixel spacing over the smaller.
    min_matrix: fewest rows or columns.
    kvp: allowed tube voltage in kV.
    rescale_slope: allowed HU per stored step.
    accept_stated_deidentification: privacy findings only count where the header does not state that the patient's
        identity was removed; those where it does are reported.
    privacy: what a privacy finding that counts costs: ``critical`` the run, ``reject`` the series, ``warning`` nothing.
    min_accepted_rate: below this share of accepted series the suite warns.
    """

    body_parts: Annotated[tuple[str, ...], Field(min_length=1)] | None
    min_instances: Annotated[int, Field(ge=2, le=100_000)]
    thickness_mm: Annotated[tuple[Positive, Annotated[float, Field(gt=0, le=50)]], Ordered]
    slice_step_mm: Annotated[tuple[Positive, Positive], Ordered]
    step_per_thickness: Annotated[tuple[Positive, Positive], Ordered]
    max_gap_ratio: Annotated[float, Field(ge=1, le=1.5)]
    max_off_line_mm: Annotated[float, Field(ge=0)]
    max_off_grid_mm: Annotated[float, Field(gt=0)]
    max_tilt_degrees: Annotated[float, Field(ge=0, le=45)]
    pixel_mm: Annotated[tuple[Positive, Positive], Ordered]
    max_pixel_aspect: Ratio
    field_mm: Annotated[tuple[Positive, Positive], Ordered]
    min_matrix: Annotated[int, Field(ge=1, le=65_535)]
    kvp: Annotated[tuple[Positive, Positive], Ordered]
    rescale_slope: Annotated[tuple[Positive, Positive], Ordered]
    accept_stated_deidentification: bool
    privacy: Literal["critical", "reject", "warning"]
    min_accepted_rate: Annotated[float, Field(ge=0, le=1)]

    @field_validator("body_parts")
    @classmethod
    def _known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if unknown := sorted(set(value or ()) - REGIONS):
            raise ValueError(
                f"{unknown[0]!r} is no body part of DICOM PS3.16 annex L; allowed: {', '.join(sorted(REGIONS))}"
            )
        return value
