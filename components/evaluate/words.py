"""What evaluation's names and numbers are called where people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from components.sources.lidc import ROOT as LIDC_ROOT
from components.tasks.classify import DIAMETER, FINDINGS, ClassifyConfig
from components.tasks.config import LINE, STRUCTURE
from components.tasks.interface import Measure
from components.tasks.retrieve import RetrieveConfig
from components.tasks.saliency import SaliencyConfig
from components.tasks.saliency_cases import CHANCE, DEVIATION, MIDDLE
from components.tasks.scores import ENCODER, RANDOM
from components.tasks.stability import StabilityConfig

METHODS = {
    ENCODER: "This encoder",
    RANDOM: "Untrained encoders",
    "histogram": "HU histogram",
    "hu_statistics": "HU statistics",
    "radiomics": "Radiomics",
    "windows": "Window statistics",
    DIAMETER: "Diameter alone",
    DEVIATION: "Deviation from the mean HU",
    MIDDLE: "Nearest to the middle",
    CHANCE: "By chance",
}
OF_LINE = {
    "organ": "Which organ lies at the centre of the crop?",
    "lesion": "A lesion, or healthy tissue of the same organ?",
    FINDINGS: "Is the finding present in the head?",
}
BETTER, UNDECIDED, WORSE = "better", "undecided", "worse"
FALLS, NO_FALL = "falls", "no fall shown"
MINUS = "\N{MINUS SIGN}"


def method_name(method: str) -> str:
    """``hu_statistics`` as people read it; of a method that is not known here, its own name."""
    return METHODS.get(method) or method.replace("_", " ").capitalize()


def question(task: Any) -> str:
    """What a task asks, in a sentence."""
    if isinstance(task, StabilityConfig):
        whose = "a patient" if task.set == LINE else f"a patient of set {task.set}"
        return f"Does a second scan of {whose} give the vector of the first?"
    if isinstance(task, ClassifyConfig):
        if task.set == LINE:
            return OF_LINE[task.label]
        if task.set == LIDC_ROOT:
            return "How did readers rate this nodule?"
        if task.label == STRUCTURE:
            return f"Which structure of the masks of set {task.set} lies at the centre?"
        return f"Of which class is the scan, as column {task.label} of set {task.set} says?"
    if isinstance(task, SaliencyConfig):
        return f"Do positive answers of task {task.of} rest on the structures they should rest on?"
    if isinstance(task, RetrieveConfig):
        what = f"{task.label}, set {task.set}" + (f", protocol {task.protocol}" if task.protocol else "")
        return f"Is the like of a case found in other patients ({what})?"
    block = task.model_dump()
    return f"Kind {block.pop('kind')}: {', '.join(f'{name} {value}' for name, value in block.items())}."


def verdict(numbers: Mapping[str, float], measure: Measure) -> str:
    """Better or worse than one more untrained encoder, where the interval of the difference excludes zero."""
    above, below = numbers["difference_low"] > 0, numbers["difference_high"] < 0
    if measure.lower_is_better:
        above, below = below, above
    return BETTER if above else WORSE if below else UNDECIDED


def verdict_of_fall(numbers: Mapping[str, float]) -> str:
    """Whether a figure is clearly worse on an external set: whether all of the fall's interval lies above zero."""
    return FALLS if numbers["fall_low"] > 0 else NO_FALL


def number(value: float, signed: bool = False) -> str:
    """Three decimals, or four digits of a large number; a minus that is one; ``none`` where there is no number."""
    if not math.isfinite(value):
        return "none" if math.isnan(value) else f"{MINUS if value < 0 else ''}infinite"
    digits = ".3f" if abs(value) < 10 else ".4g"
    return f"{value:{'+' if signed else ''}{digits}}".replace("-", MINUS)


def with_interval(value: float, low: float, high: float, signed: bool = False) -> str:
    """A figure with its 95 % limits."""
    return f"{number(value, signed)} [{number(low, signed)}, {number(high, signed)}]"


def count(of: int, name: str, many: str = "") -> str:
    """``1 patient``, ``2 patients``."""
    return f"{of:,} {name if of == 1 else many or name + 's'}"
