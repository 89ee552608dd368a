"""Parameters of the gate: what a release must reach."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from components.settings import StageConfig, did_you_mean
from components.tasks.attributes import ATTRIBUTES

Name = Annotated[str, Field(min_length=1)]
ALL = "all"


class BetterThanRandom(StageConfig):
    """By how much the encoder is better than an untrained one must be above the bound, at the level at which at most
    5 % of untrained encoders would pass (``least_gain`` of the metrics)."""

    task: Name
    figure: Name
    minimum_gain: float


class Floor(StageConfig):
    """The figure itself must be at least ``minimum``; or, of an error or a distance, at most ``maximum``."""

    task: Name
    figure: Name
    minimum: Annotated[float, Field(ge=-1, le=1)] | None = None
    maximum: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _one_side(self) -> Floor:
        if (self.minimum is None) == (self.maximum is None):
            raise ValueError("write minimum, or maximum where lower is better: one of them")
        return self

    @property
    def bound(self) -> float:
        return next(bound for bound in (self.minimum, self.maximum) if bound is not None)

    def met(self, value: float) -> bool:
        return value <= self.bound if self.minimum is None else value >= self.bound


class NotWorse(StageConfig):
    """The figure must be at least the champion's on the same cases less the tolerance, and not clearly below it."""

    task: Name
    figure: Name
    tolerance: Annotated[float, Field(ge=0)]


class SubgroupGap(StageConfig):
    """No group of the task's test cases may be clearly worse than all others by more than ``maximum``, in the figure's
    unit: refused where the near end of the gap's interval is above it. Where fewer than two groups have
    ``evaluate.minimum_patients`` patients (of each class) it is off, and says so."""

    task: Name
    attribute: str
    maximum: Annotated[float, Field(ge=0)]

    @field_validator("attribute")
    @classmethod
    def _is_known(cls, name: str) -> str:
        known = [ALL, *ATTRIBUTES]
        if name not in known:
            raise ValueError(f"one of {', '.join(known)}{did_you_mean(name, known)}")
        return name


class ExternalFall(StageConfig):
    """The figure at an external set of the task may not be clearly worse than on the task's own by more than
    ``maximum``: refused where the near end of the fall's interval is above it. Where the set has too few patients to be
    evaluated it is off, and says so."""

    task: Name
    set: Name
    figure: Name
    maximum: Annotated[float, Field(ge=0)]


class GateConfig(StageConfig):
    """Bounds of a line. Leakage has no parameter: the number of shared patients must be 0. What a list leaves empty is
    reported as not judged.

    Attributes:
        max_reject_rate: rejected series over all series that came in.
        worse_alpha: chance at which an encoder that is no worse than untrained ones, at any evaluated task, is refused
            all the same; null judges nothing. A figure is a task's first.
        better_than_random: beside untrained encoders.
        floors: absolute.
        subgroup_gaps: from the worst group of patients to all others.
        external_falls: from the task's own set to another site's.
        champion: against the release now in use, where there is one; judged by stage ``champion``.
    """

    max_reject_rate: Annotated[float, Field(ge=0, le=1)]
    worse_alpha: Annotated[float, Field(gt=0, le=0.5)] | None
    better_than_random: tuple[BetterThanRandom, ...]
    floors: tuple[Floor, ...]
    subgroup_gaps: tuple[SubgroupGap, ...]
    external_falls: tuple[ExternalFall, ...]
    champion: tuple[NotWorse, ...]
