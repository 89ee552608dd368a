"""The head of a part: the very probe whose figures were measured, and what a user must know of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from components.figures.arrays import Bools
from components.figures.calibration import TEMPERATURES
from components.models.heads import Head, HeadDescription, OperatingPoint
from components.tasks.crossfit import Fitted
from components.tasks.judging import Part

SHOWN = ("value", "low", "high", "random", "difference", "difference_low", "difference_high")
OF_THE_HEAD = ("linear_auc", "linear_balanced_accuracy", "average_precision", "brier", "ece")
FEW = 20  # patients of a class, below which its figures are told to be unsure
Numbers = Mapping[str, float]


def head_of(task: str, part: Part, fitted: Fitted, found: Mapping[str, Numbers]) -> Head:
    """The encoder's head on one part; ``encoder`` is filled in where it is written.

    Args:
        task: its name in the parameters.
        part: the cases.
        fitted: the probe of the encoder.
        found: the part's numbers, as in :func:`components.tasks.scores.task_metrics`.
    """
    figures = {name: {key: found[name][key] for key in SHOWN} for name in OF_THE_HEAD}
    point = None
    if fitted.threshold is not None and np.isfinite(fitted.threshold) and part.specificity is not None:
        rates = {name: {key: found[name][key] for key in SHOWN[:3]} for name in ("sensitivity", "specificity")}
        point = OperatingPoint(wanted_specificity=part.specificity, threshold=fitted.threshold, **rates)
    counts = {side: _counts(part, of) for side, of in (("train", ~part.test), ("test", part.test))}
    description = HeadDescription(
        format=1,
        kind="classify",
        task=task,
        part=part.name,
        classes=tuple(part.classes),
        positive=part.classes[1] if len(part.classes) == 2 else None,
        sees="point" if part.rows["x"].notna().all() else "scan",
        dim=fitted.linear.weight.shape[1],
        encoder="",
        temperature=fitted.temperature,
        priors=fitted.priors,
        operating_point=point,
        figures=figures,
        counts=counts,
        limits=tuple(_limits(part, fitted, found, counts)),
    )
    return Head(description, fitted.linear)


def _counts(part: Part, side: Bools) -> dict[str, dict[str, int]]:
    found = {}
    for name in part.classes:
        inside = side & (part.labels == name)
        found[name] = {"patients": len(set(part.patients[inside].tolist())), "cases": int(inside.sum())}
    return found


def _limits(
    part: Part, fitted: Fitted, found: Mapping[str, Numbers], counts: Mapping[str, Mapping[str, Mapping[str, int]]]
) -> list[str]:
    auc = found["linear_auc"]
    told = []
    if auc["low"] <= 0.5:
        told.append(f"Its AUC {_interval(auc)} may be chance: do not use it.")
    if auc["difference_low"] <= 0:
        told.append(f"Its AUC is not clearly above that of untrained encoders, {auc['random']:.3f} on average.")
    for side, of in counts.items():
        few = [f"{name} {count['patients']}" for name, count in of.items() if count["patients"] < FEW]
        if few:
            told.append(f"Few patients in {side}: {', '.join(few)}.")
    if fitted.temperature >= TEMPERATURES[1]:
        told.append("Cross-validation found nothing in its scores: it answers with the frequencies of the classes.")
    shares = ", ".join(f"{name} {share:.0%}" for name, share in zip(part.classes, fitted.priors, strict=True))
    told.append(f"Probabilities hold where classes are as frequent as among its training cases: {shares}.")
    told.append(f"It knows {len(part.classes)} classes and answers with one of them, whatever it is shown.")
    if part.specificity is not None and not np.isfinite(np.inf if fitted.threshold is None else fitted.threshold):
        told.append(f"No operating point: no threshold reaches specificity {part.specificity:g} on training cases.")
    elif part.specificity is not None and found["specificity"]["high"] < part.specificity:
        told.append(f"Its specificity on test cases is clearly below the {part.specificity:g} it was chosen for.")
    return told


def _interval(numbers: Numbers) -> str:
    return f"{numbers['value']:.3f} [{numbers['low']:.3f}, {numbers['high']:.3f}]"
