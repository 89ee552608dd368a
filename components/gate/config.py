"""Parameters of the gate: what a release must reach."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from components.settings import StageConfig

Name = Annotated[str, Field(min_length=1)]


class BetterThanRandom(StageConfig):
    """By how much the encoder is better than an untrained one must be above the bound, at the level at which at most
    5 % of untrained encoders would pass (``least_gain`` of the metrics)."""

    task: Name
    figure: Name
    minimum_gain: Annotated[float, Field(ge=-1, le=1)]


class Floor(StageConfig):
    """The figure itself must be at least the bound."""

    task: Name
    figure: Name
    minimum: Annotated[float, Field(ge=-1, le=1)]


class NotWorse(StageConfig):
    """The figure must be at least the champion's on the same cases less the tolerance, and not clearly below it."""

    task: Name
    figure: Name
    tolerance: Annotated[float, Field(ge=0, le=1)]


class GateConfig(StageConfig):
    """Bounds of a line. Leakage has no parameter: the number of shared patients must be 0. What a list leaves empty is
    reported as not judged.

    Attributes:
        max_reject_rate: rejected series over all series that came in.
        worse_alpha: chance at which an encoder that is no worse than untrained ones, at any evaluated task, is refused
            all the same; null judges nothing. A figure is a task's first.
        better_than_random: beside untrained encoders.
        floors: absolute.
        champion: against the release now in use, where there is one; judged by stage ``champion``.
    """

    max_reject_rate: Annotated[float, Field(ge=0, le=1)]
    worse_alpha: Annotated[float, Field(gt=0, le=0.5)] | None
    better_than_random: tuple[BetterThanRandom, ...]
    floors: tuple[Floor, ...]
    champion: tuple[NotWorse, ...]
