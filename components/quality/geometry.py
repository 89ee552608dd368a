"""When the geometry of a stack of slices is sound: one rule, for the suites and for the service alike.

Plain functions of one or more columns: Great Expectations takes seconds to import, and the service does not import it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

TOLERANCE = 1e-3  # of a direction cosine: headers carry six decimals, and some writers fewer


def orthonormal(text: str, tolerance: float = TOLERANCE) -> bool:
    """Whether ``ImageOrientationPatient``, as text with backslashes, is two unit vectors at a right angle
    (DICOM PS3.3 C.7.6.2.1.1)."""
    try:
        values = np.asarray([float(part) for part in text.split("\\")])
    except ValueError:
        return False
    if values.shape != (6,) or not np.isfinite(values).all():
        return False
    row, column = values[:3], values[3:]
    found = np.array([row @ row, column @ column, row @ column])
    return bool(np.abs(found - [1.0, 1.0, 0.0]).max() <= 2 * tolerance)


def even_stack(table: pd.DataFrame, max_gap_ratio: float, max_off_line_mm: float) -> pd.Series[bool]:
    """Row by row, whether slices lie on one straight line at even steps.

    Args:
        table: columns ``gap_ratio`` and ``gap_min_ratio`` (largest and smallest gap over the median gap) and
            ``off_line_mm`` (largest distance from the line through the first and the last slice).
        max_gap_ratio: a gap may be as many times longer, or shorter, than the median.
        max_off_line_mm: a slice may lie so far from the line. A tilted gantry moves all slices along one line.
    """
    largest, smallest, aside = (_floats(table[name]) for name in ("gap_ratio", "gap_min_ratio", "off_line_mm"))
    uneven = (largest > max_gap_ratio) | (smallest < 1 / max_gap_ratio) | (aside > max_off_line_mm)
    return ~uneven  # a comparison with a missing value is false: what was not measured is not judged


# Expectations of our own, as the service judges one row by them: columns and bounds are the rule's arguments.
OF_A_ROW: Mapping[str, Callable[[pd.DataFrame, Mapping[str, Any]], bool]] = {
    "ExpectSlicesToFormAnEvenStack": lambda row, of: bool(
        even_stack(row, of["max_gap_ratio"], of["max_off_line_mm"]).iloc[0]
    ),
    "ExpectColumnValuesToBeOrthonormalOrientation": lambda row, of: orthonormal(
        str(row[of["column"]].iloc[0]), of["tolerance"]
    ),
}


def _floats(column: pd.Series[Any]) -> pd.Series[float]:
    return pd.to_numeric(column, errors="coerce").astype(float)
