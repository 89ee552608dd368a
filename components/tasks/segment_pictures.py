"""Pictures of kind ``segment``: the worst and the best scan, Dice by structure, Dice by labelled scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from components.ct.store import Volume
from components.tasks.pictures import STYLE, peer_looks
from components.tasks.scores import ENCODER, RANDOM
from components.tasks.segment_scans import Scan

METHODS = {
    ENCODER: ("this encoder, frozen", "#1f5fbf"),
    RANDOM: ("untrained encoders, frozen", "#8a8f98"),
}
SHOWN_HU = (-160, 240)
UPRIGHT = "SPL"  # slices from below, rows to the back, columns to the left: as radiologists look


@dataclass(frozen=True)
class Slice:
    """One transverse slice of a scan, upright.

    Attributes:
        series: whose it is.
        hu, truth, predicted: (rows, columns).
        pixel_mm: of a row and a column.
    """

    series: str
    hu: npt.NDArray[np.int16]
    truth: npt.NDArray[np.uint8]
    predicted: npt.NDArray[np.uint8]
    pixel_mm: tuple[float, float]


def shown(scan: Scan, predicted: npt.NDArray[np.uint8]) -> Slice:
    """The slice with most different structures; of equals, the one with most of them."""
    hu = _upright(scan.volume.hu, scan.volume)
    truth, found = (_upright(array, scan.volume) for array in (scan.classes, predicted))
    many = np.stack(
        [(truth == code).any(axis=(1, 2)) for code in range(1, int(truth.max()) + 1)] or [truth.any((1, 2))]
    )
    rank = many.sum(axis=0) + (truth > 0).mean(axis=(1, 2))
    best = int(np.argmax(rank))
    axes = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt(tuple(UPRIGHT)), nib.orientations.io_orientation(scan.volume.affine)
    )
    mm = [scan.volume.spacing[int(axes[axis, 0])] for axis in (1, 2)]
    return Slice(scan.series, hu[best].copy(), truth[best].copy(), found[best].copy(), (mm[0], mm[1]))


def _upright(array: npt.NDArray[Any], volume: Volume) -> npt.NDArray[Any]:
    wanted = nib.orientations.axcodes2ornt(tuple(UPRIGHT))
    change = nib.orientations.ornt_transform(nib.orientations.io_orientation(volume.affine), wanted)
    turned: npt.NDArray[Any] = nib.orientations.apply_orientation(array, change)
    return turned


def pictures(table: pd.DataFrame, slices: Sequence[Slice], structures: Sequence[str]) -> dict[str, tuple[Figure, str]]:
    """Name to picture and caption.

    Args:
        table: series, method, scans, structure, dice; a row for each.
        slices: of every tested scan, with the encoder's labels.
        structures: in the order of their numbers.
    """
    most = int(table["scans"].max())
    ours = table[(table["method"] == ENCODER) & (table["scans"] == most)]
    of_scan = ours.groupby("series")["dice"].mean().sort_values(kind="stable")
    by_series = {part.series: part for part in slices}
    with plt.rc_context(STYLE):
        found = {
            f"{name}_case": (
                _outlines(by_series[str(series)], structures),
                f"The {name} of {len(of_scan)} tested scans by the encoder's mean Dice over structures, {dice:.3f}: "
                "labels as solid lines, the prediction as dashed ones.",
            )
            for name, series, dice in (
                ("worst", of_scan.index[0], of_scan.iloc[0]),
                ("best", of_scan.index[-1], of_scan.iloc[-1]),
            )
        }
        found["dice_by_structure"] = (
            _by_structure(table[table["scans"] == most], structures),
            f"Dice of each structure with {most} labelled scans: the mean over {len(of_scan)} tested scans, each scan "
            "a small dot; of untrained encoders the mean over them.",
        )
        found["dice_by_scans"] = (
            _by_scans(table),
            "Mean Dice over structures and tested scans against the number of labelled scans that were learned from.",
        )
    return found


def _outlines(part: Slice, structures: Sequence[str]) -> Figure:
    rows, columns = part.hu.shape
    high, wide = rows * part.pixel_mm[0], columns * part.pixel_mm[1]
    figure, axes = plt.subplots(figsize=(7.5, 7.5 * high / wide * 0.8))
    axes.imshow(part.hu, cmap="gray", vmin=SHOWN_HU[0], vmax=SHOWN_HU[1], aspect=part.pixel_mm[0] / part.pixel_mm[1])
    colours = plt.get_cmap("tab20")
    for code, name in enumerate(structures, start=1):
        colour = colours((code - 1) % 20)
        for mask, line in ((part.truth == code, "solid"), (part.predicted == code, "dashed")):
            if mask.any() and not mask.all():
                axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.4, linestyles=line)
        if (part.truth == code).any() or (part.predicted == code).any():
            axes.plot([], [], color=colour, label=name)
    axes.set_axis_off()
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _methods(table: pd.DataFrame) -> pd.DataFrame:
    """Untrained encoders together."""
    random = table["method"].str.startswith(f"{RANDOM}_")
    return table.assign(method=table["method"].where(~random, RANDOM))


def _by_structure(table: pd.DataFrame, structures: Sequence[str]) -> Figure:
    figure, axes = plt.subplots(figsize=(6.5, 0.9 + 0.38 * len(structures)))
    together = _methods(table)
    looks = METHODS | peer_looks(together["method"])
    apart, middle = min(0.22, 0.66 / (len(looks) - 1)), max(1.0, (len(looks) - 1) / 2)
    for rank, (method, (label, colour)) in enumerate(looks.items()):
        rows = together[together["method"] == method]
        means = rows.groupby("structure")["dice"].mean().reindex(list(structures))
        places = np.arange(len(structures)) + (rank - middle) * apart
        of_scans = rows.groupby(["structure", "series"])["dice"].mean().reset_index()
        small = of_scans["structure"].map(dict(zip(structures, places, strict=True)))
        axes.plot(of_scans["dice"], small, ".", color=colour, markersize=3, alpha=0.45, label="_scans")
        axes.plot(means, places, "o", color=colour, markersize=6, label=label)
    axes.set_yticks(range(len(structures)), structures)
    axes.set_ylim(len(structures) - 0.5, -0.5)
    _dice_axis(axes, "x")
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.12), ncols=1, frameon=False)
    return figure


def _by_scans(table: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots(figsize=(5.2, 3.4))
    looks = METHODS | peer_looks(table["method"])
    means = table.groupby(["method", "scans"])["dice"].mean().reset_index()
    for method, rows in means.groupby("method", sort=True):
        of = RANDOM if str(method).startswith(f"{RANDOM}_") else str(method)
        label, colour = looks[of]
        seen = axes.get_legend_handles_labels()[1]
        wide = 1.0 if of == RANDOM else 2.0
        axes.plot(rows["scans"], rows["dice"], "o-", color=colour, linewidth=wide, markersize=4,
                  label=label if label not in seen else "_more")  # fmt: skip
    axes.set_xscale("log", base=2)
    numbers = sorted(table["scans"].unique())
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.minorticks_off()
    axes.set_xlabel("labelled scans")
    _dice_axis(axes, "y")
    axes.legend(frameon=False)
    return figure


def _dice_axis(axes: Axes, which: str) -> None:
    (axes.set_xlim if which == "x" else axes.set_ylim)(0.0, 1.0)
    (axes.set_xlabel if which == "x" else axes.set_ylabel)("Dice")
