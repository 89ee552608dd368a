"""Pictures of kind ``retrieve``: a query that finds its like and one that does not, with the first that were found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from components.ct.store import AIR_HU, StoredVolume, voxel_of
from components.figures.arrays import Array, Bools, Integers
from components.looking.volume import WINDOWS, upright
from components.tasks.interface import Question
from components.tasks.judging import Part
from components.tasks.pictures import STYLE

FIRST = 5  # found ones that are shown
REACH_MM = 32.0  # shown to each side of a place


def found_by(
    question: Question, part: Part, alike: Array, queries: Integers, gallery: Bools
) -> dict[str, tuple[Figure, str]]:
    """The query whose first five are right most often, and the one of which fewest are; of equals the first.

    Args:
        question: of the task.
        part: its cases.
        alike: (queries, cases) by the encoder.
        queries: the case of each.
        gallery: (cases,) which of them may be found.
    """
    ranked = [_ranked(part, alike[row], int(case), gallery) for row, case in enumerate(queries)]
    right = np.array([(part.labels[of] == part.labels[case]).mean() for case, of in zip(queries, ranked, strict=True)])
    found = {}
    for name, row in (("best", int(right.argmax())), ("worst", int(right.argmin()))):
        case = int(queries[row])
        told = f"{part.rows['case'].iloc[case]} and the first {len(ranked[row])} that it finds; green: of its class."
        found[f"{part.name.rpartition('/')[2]}_{name}"] = _draw(question, part, case, ranked[row]), told
    return found


def _ranked(part: Part, alike: Array, case: int, gallery: Bools) -> Integers:
    others = np.flatnonzero((part.patients != part.patients[case]) & gallery)
    best: Integers = others[np.argsort(-alike[others], kind="stable")][:FIRST]
    return best


def _draw(question: Question, part: Part, case: int, ranked: Integers) -> Figure:
    level, width = WINDOWS["soft"]
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, row = plt.subplots(1, 1 + len(ranked), figsize=(1.9 * (1 + len(ranked)), 2.3))
        for axes, at in zip(row, [case, *ranked.tolist()], strict=True):
            section, aspect = section_of(question, part.rows.iloc[at].to_dict())
            axes.imshow(
                section, cmap="gray", vmin=level - width / 2, vmax=level + width / 2, origin="lower", aspect=aspect
            )
            axes.set_xticks([])
            axes.set_yticks([])
            colour = "#1f5fbf" if at == case else "#2e8b57" if part.labels[at] == part.labels[case] else "#c0392b"
            for spine in axes.spines.values():
                spine.set(visible=True, color=colour, linewidth=3)
            axes.set_title(f"query: {part.labels[at]}" if at == case else str(part.labels[at]), fontsize=8)
        figure.tight_layout()
    return figure


def section_of(question: Question, row: Mapping[str, Any]) -> tuple[npt.NDArray[np.int16], float]:
    """The transverse section through a place, or through the middle of a scan; and how high its voxels are to a width
    of 1. The patient's right is at the left."""
    opened = question.volumes.open(str(row["volume"]))
    hu, affine = upright(opened.read() if isinstance(opened, StoredVolume) else opened)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    aspect = float(spacing[1] / spacing[0])
    if np.isnan(row["x"]):
        return hu[::-1, :, hu.shape[2] // 2].T, aspect
    at = np.rint(voxel_of(affine, [row["x"], row["y"], row["z"]])).astype(np.int64)
    a, b = (max(1, round(REACH_MM / mm)) for mm in spacing[:2])
    plane = np.pad(hu[:, :, int(np.clip(at[2], 0, hu.shape[2] - 1))], ((a, a), (b, b)), constant_values=AIR_HU)
    x, y = (int(np.clip(at[axis], 0, hu.shape[axis] - 1)) for axis in (0, 1))
    return plane[x : x + 2 * a + 1, y : y + 2 * b + 1][::-1].T, aspect
