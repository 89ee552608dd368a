"""Inputs of tasks, small enough to be written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from components.ct.grid import GridConfig
from components.figures.arrays import Array
from components.settings import parse
from components.tasks.config import EvaluateConfig
from components.tasks.features import Features, place_of
from components.tasks.interface import Question
from components.tasks.table import Inputs

EVALUATE: dict[str, Any] = {
    "selection": None, "device": "cpu", "pooling": "own", "seed": 1, "random_seeds": [1, 2, 3],
    "bootstrap": 100, "linear_c": 10.0,
    "neighbours": 3, "minimum_patients": 2, "histogram": {"bins": 8, "low_hu": -1000, "high_hu": 1000},
    "centre_mm": 8.0, "nodule_window_mm": [6.0, 24.0, 24.0], "lidc_nodules": None,
}  # fmt: skip
GRID = {
    "orientation": "SPL", "spacing_mm": [3.0, 1.0, 1.0], "enlarging": "linear", "foreground_hu": -500,
    "foreground_margin_mm": 5.0, "clip_hu": [-1024, 3071],
}  # fmt: skip
AFFINE = np.array([[0, 0, -1.0, 20], [0, -1.0, 0, 20], [3.0, 0, 0, 0], [0, 0, 0, 1]])


def evaluation(**changed: Any) -> EvaluateConfig:
    return parse(EvaluateConfig, EVALUATE | changed, "t")


def inputs(scans: Sequence[tuple[str, str, str]], points: Sequence[tuple[str, str, float, float, float]]) -> Inputs:
    """``scans``: series, patient, split. ``points`` of organs: series, structure, x, y, z."""
    curated = pd.DataFrame(scans, columns=["series", "patient", "split"])
    curated = curated.assign(role="evaluation", status="accepted", retest_of="", volume="v/" + curated["series"])
    notes = pd.DataFrame(points, columns=["series", "structure", "x", "y", "z"])
    notes = notes.assign(patient="", kind="organ", present=True, volume_ml=1.0)
    return Inputs("wholebody", "crop", curated, notes, evaluation(), parse(GridConfig, GRID, "t"))


def question(name: str, task: Any, rows: pd.DataFrame, vectors: Mapping[str, Array], **given: Any) -> Question:
    """``vectors``: method to (rows, dimension), in the order of ``rows``."""
    places = {place: row for row, place in enumerate(place_of(rows))}
    asked: dict[str, Any] = {"encoders": {}, "volumes": None, "config": evaluation()} | given
    return Question("wholebody", name, task, rows, features=Features(places, dict(vectors)), **asked)
