"""Families of gates: p-values by counting replicates, how many replicates a family takes, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from components.figures.arrays import Array
from components.figures.resampling import drawn_figures


def p_value(figures: Array, bound: float = 0.0, two_sided: bool = False) -> float:
    """By counting: share of replicates (all but row 0) that are not above ``bound``, (c + 1) / (R + 1).

    The one added keeps it above 0, as a test of R draws must be (Davison and Hinkley, Bootstrap Methods, 1997, 4.2). It
    agrees with :func:`percentile_interval`, and is as narrow; how many replicates it takes, see
    :func:`replicates_needed`. :class:`Estimate` has p-values without either.

    Args:
        figures: (replicates + 1,), as a rule a difference.
        bound: what they are held against.
        two_sided: twice the smaller of both sides.

    Raises:
        ValueError: fewer than half of the replicates have a figure.
    """
    finite = drawn_figures(figures)
    above = float(1 + (finite <= bound).sum()) / (len(finite) + 1)
    if not two_sided:
        return above
    below = float(1 + (finite >= bound).sum()) / (len(finite) + 1)
    return min(1.0, 2 * min(above, below))


def replicates_needed(gates: int, alpha: float = 0.05, two_sided: bool = False, precision: float | None = None) -> int:
    """Replicates that :func:`p_value` takes for Holm's first step, alpha / ``gates``.

    Without ``precision``: the fewest by which a figure that is never past its bound is significant. With it: so many
    that a p-value at the threshold has this relative standard error; .2 asks for 25 replicates past the bound.
    """
    threshold = alpha / gates / (2 if two_sided else 1)
    if precision is None:
        return math.ceil(round(1 / threshold, 6)) - 1
    return math.ceil(round((1 - threshold) / (threshold * precision**2), 6))


def holm(p_values: Sequence[float]) -> Array:
    """Adjusted p-values (gates,) in the order given: those below alpha are significant, at most alpha of all families
    without an effect having any (Holm, Scand. J. Stat. 1979). Any dependence among gates is allowed.

    For a family of which one significant figure has a consequence. Where all gates must pass, each may be held at alpha
    itself: an encoder without an effect passes all no more often than one (Berger, Technometrics 1982).

    Raises:
        ValueError: a p-value outside 0 to 1, such as NaN.
    """
    found = np.asarray(p_values, dtype=np.float64)
    wrong = [float(p) for p in found if not 0 <= p <= 1]
    if wrong:
        raise ValueError(f"Holm: a p-value of {wrong[0]} is not allowed: 0 to 1")
    order = np.argsort(found, kind="stable")
    stepped = np.maximum.accumulate(found[order] * np.arange(len(found), 0, -1))
    adjusted: Array = np.empty_like(found)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
