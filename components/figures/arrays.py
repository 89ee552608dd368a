"""Types of the arrays that figures are made of, and what is asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]
Labels = npt.NDArray[np.str_]


def check(figure: str, weights: Array, **by_case: npt.NDArray[Any]) -> None:
    """Hold every array to one row per case, and to finite numbers: sorting would put NaN at one end in silence.

    Raises:
        ValueError: naming the figure, the array, the case and its value.
    """
    cases = weights.shape[1]
    if not cases:
        raise ValueError(f"{figure}: no case; at least one is needed")
    for name, values in by_case.items():
        if len(values) != cases:
            raise ValueError(f"{figure}: {name}: {len(values)} cases, but weights for {cases}; one each is needed")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            first = tuple(np.argwhere(~np.isfinite(values))[0])
            raise ValueError(f"{figure}: {name}: {values[first]} for case {first[0]}; a finite number is needed")


def check_classes(figure: str, labels: Labels, classes: Sequence[str]) -> None:
    """Raise ValueError for a label that is no class."""
    unknown = sorted(set(labels.tolist()) - set(classes))
    if unknown:
        raise ValueError(f"{figure}: label {unknown[0]!r}; {', '.join(classes)} are allowed")
