"""Pictures of a head: its ROC curve with the operating point, and whether its probabilities are what they say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from components.figures.calibration import judged, reliability
from components.figures.resampling import figure as estimate_of
from components.tasks.judging import Judged, Part
from components.tasks.pictures import STYLE

COLUMNS, BINS = 4, 10
LINE, DOT, CHANCE = "#1f5fbf", "#c2410c", "#c9ccd1"
Shown = tuple[Part, Judged]


def pictures(parts: Sequence[Shown]) -> dict[str, tuple[Figure, str]]:
    """``operating_point`` and ``reliability``, a panel each part, with their captions.

    Args:
        parts: cases, and the encoder's figures on them.
    """
    pointed = any(part.specificity is not None for part, _ in parts)
    curve = "ROC curves of the linear probe on test cases; of more than two classes, each against the others."
    point = " The dot is the operating point that was chosen on training cases, with 95 % limits over patients."
    told = (
        f"Calibrated probabilities of the linear probe on test cases in {BINS} bins, beside the share of cases in "
        "which they came true: of two classes the second's, of more the highest. Areas are numbers of cases; on the "
        "line, probabilities are what they say."
    )
    return {
        "operating_point": (_panels(parts, _roc), curve + point * pointed),
        "reliability": (_panels(parts, _reliability), told),
    }


def _panels(parts: Sequence[Shown], draw: Callable[[Axes, Part, Judged], None]) -> Figure:
    columns = min(COLUMNS, len(parts))
    lines = -(-len(parts) // columns)
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(lines, columns, figsize=(3.2 * columns, 3.2 * lines), squeeze=False)
        for axes in panels.ravel()[len(parts) :]:
            axes.axis("off")
        for axes, (part, found) in zip(panels.ravel(), parts, strict=False):
            axes.plot([0, 1], [0, 1], color=CHANCE, linewidth=0.8)
            draw(axes, part, found)
            axes.set(title=part.name, xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        figure.tight_layout()
    return figure


def _roc(axes: Axes, part: Part, found: Judged) -> None:
    labels, binary = part.labels[part.test], len(part.classes) == 2
    for index, name in list(enumerate(part.classes))[1 if binary else 0 :]:
        false_rate, true_rate, _ = roc_curve(labels == name, found.probabilities[:, index])
        axes.plot(false_rate, true_rate, color=LINE if binary else f"C{index}", linewidth=1.4, label=name)
    rates = limits(found)
    if rates:
        (x, x_low, x_high), (y, y_low, y_high) = rates["specificity"], rates["sensitivity"]
        axes.hlines(y, 1 - x_high, 1 - x_low, color=DOT, linewidth=1)
        axes.vlines(1 - x, y_low, y_high, color=DOT, linewidth=1)
        axes.plot(1 - x, y, "o", color=DOT, markersize=5)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity")
    axes.legend(fontsize=6.5, frameon=False, loc="lower right")


def limits(found: Judged) -> Mapping[str, tuple[float, float, float]]:
    """Sensitivity and specificity at the operating point with their limits; empty where there is none."""
    rates = {}
    for score in found.scores:
        if score.figure in ("sensitivity", "specificity"):
            estimate = estimate_of(np.clip(score.replicates, 0.0, 1.0), score.sample)
            rates[score.figure] = (estimate.value, *estimate.interval())
    return rates


def _reliability(axes: Axes, part: Part, found: Judged) -> None:
    told = judged(found.probabilities, part.labels[part.test], part.classes)
    table = reliability(*told, np.ones((1, len(told[0]))), BINS)
    drawn = table.weight[0] > 0
    said, share, cases = table.predicted[0][drawn], table.observed[0][drawn], table.weight[0][drawn]
    axes.plot(said, share, color=LINE, linewidth=1)
    axes.scatter(said, share, s=4 + 180 * cases / cases.sum(), color=LINE, alpha=0.6, linewidths=0)
    what = f"of {part.classes[1]}" if len(part.classes) == 2 else "of the likeliest class"
    axes.set(xlabel=f"probability {what}", ylabel="share of cases")
