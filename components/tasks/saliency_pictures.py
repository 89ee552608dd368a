"""Pictures of kind ``saliency``: deletion curves, and the cases where most and least of the saliency lies inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from components.ct.store import Volume
from components.figures.arrays import Array
from components.looking.volume import upright
from components.tasks.pictures import STYLE
from components.tasks.saliency_cases import CHANCE, DEVIATION, MIDDLE, region_of
from components.tasks.saliency_maps import STEPS
from components.tasks.scores import DIGITS, ENCODER

if TYPE_CHECKING:
    from components.tasks.interface import Question
    from components.tasks.saliency_cases import Case, Examined, Region

ORDERS = {
    "occlusion": ("occlusion", "#1f5fbf", "-"),
    "gradients": ("integrated gradients", "#9b51b0", "-"),
    DEVIATION: ("deviation from the mean HU", "#d9822b", "--"),
    MIDDLE: ("nearest to the middle", "#2e8b57", ":"),
    CHANCE: ("at random", "#8a8f98", "-"),
}
Pictures = dict[str, tuple[Figure, str]]


def curve_table(by_part: Mapping[str, Examined]) -> pd.DataFrame:
    """Mean deletion curves of the encoder's answer: task, order, share taken away, probability."""
    rows = [
        (part, order, step / STEPS, round(float(value), DIGITS))
        for part, examined in sorted(by_part.items())
        for order in ORDERS
        for step, value in enumerate(examined.curves[order].mean(axis=0))
    ]
    return pd.DataFrame(rows, columns=["task", "order", "taken", "probability"])


def draw_curves(curves: Mapping[str, Array]) -> Figure:
    """The answer's mean probability while blocks are taken away, an order a line."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.6, 3.4))
        for order, (title, colour, style) in ORDERS.items():
            mean = curves[order].mean(axis=0)
            axes.plot(np.arange(STEPS + 1) / STEPS, mean, color=colour, linestyle=style, label=title)
        axes.set_xlabel("share of the blocks taken away")
        axes.set_ylabel("probability of the class")
        axes.set_ylim(0, 1.02)
        axes.legend(frameon=False, fontsize=8)
        figure.tight_layout()
    return figure


def draw_case(region: Region, case: Case, maps: Mapping[str, Array]) -> Figure:
    """The section with most of the structure: as it is, and under each map with the structure's outline.

    Args:
        region: that is seen.
        case: of it.
        maps: title to (K,).
    """
    affine = region.scan.volume.affine
    mask, turned = upright(Volume(region.mask.astype(np.int16), affine))
    number = int(mask.sum(axis=(0, 1)).argmax())
    spacing = np.linalg.norm(turned[:3, :3], axis=0)
    frame = {"origin": "lower", "aspect": spacing[1] / spacing[0], "interpolation": "nearest"}

    def section(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        plane: npt.NDArray[Any] = upright(Volume(values, affine))[0][::-1, :, number].T
        return plane

    inside = region.hu[region.mask].astype(np.float64)
    width = max(80.0, 8 * float(inside.std()))
    low = float(inside.mean()) - width / 2
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, row = plt.subplots(1, 1 + len(maps), figsize=(3.4 * (1 + len(maps)), 3.3))
        for axes in row:
            axes.imshow(section(region.hu), cmap="gray", vmin=low, vmax=low + width, **frame)
            axes.set_axis_off()
        row[0].set_title("as it is")
        for axes, (title, of) in zip(row[1:], maps.items(), strict=True):
            voxels = (of / case.blocks.sizes)[_numbers(case, region.hu.shape)]
            largest = max(float(np.abs(voxels).max()), 1e-12)
            axes.imshow(section(voxels), cmap="coolwarm", vmin=-largest, vmax=largest, alpha=0.45, **frame)
            axes.contour(section(region.mask.astype(np.int16)), levels=[0.5], colors="#ffd60a", linewidths=1.2)
            axes.set_title(title)
        figure.tight_layout()
    return figure


def _numbers(case: Case, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """The block of each voxel of a region."""
    places = [
        np.minimum(np.arange(n) * seen // n, seen - 1) for n, seen in zip(shape, case.blocks.number.shape, strict=True)
    ]
    found: npt.NDArray[np.int64] = case.blocks.number[np.ix_(*places)]
    return found


def pictures(question: Question, part: str, cases: Sequence[Case], examined: Examined) -> Pictures:
    """Curves of a part, and its best and its worst case by the share that lies inside."""
    prefix = "" if part == question.name else part.removeprefix(f"{question.name}/") + "_"
    inside = examined.figures[ENCODER]["occlusion_inside"]
    told = f"The answer's probability, mean over {len(cases)} cases of {part}, while blocks are replaced by the mean."
    found = {f"{prefix}deletion": (draw_curves(examined.curves), told)}
    names = question.task.structures[dict(question.task.parts(question.name))[part][1]]
    for name, at in (("best", int(inside.argmax())), ("worst", int(inside.argmin()))):
        case = cases[at]
        region = region_of(question, case.row, case.blocks.number.shape, names)
        maps = {ORDERS[way][0]: of[at] for way, of in examined.maps.items()}
        caption = (
            f"{case.row['case']}, the case of {part} with the {'largest' if name == 'best' else 'smallest'} share of "
            f"occlusion's saliency inside the structure (outline), {inside[at]:.0%}. Red speaks for the class, blue "
            "against it."
        )
        found[f"{prefix}{name}"] = draw_case(region, case, maps), caption
    return found
