"""How a figure of merit is shown, bounded and compared."""

from __future__ import annotations

from dataclasses import dataclass

from components.figures.resampling import SHARE


@dataclass(frozen=True)
class Measure:
    """A figure of merit as it is shown and gated.

    Attributes:
        title: for people.
        bounds: possible values; intervals stay inside.
        lower_is_better: as for a distance or an error.
    """

    title: str
    bounds: tuple[float, float] = SHARE
    lower_is_better: bool = False
