"""Pictures of ``locate``: places found by structure, and one search of the best and of the worst structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from components.ct.labels.stored import label_map_of, read_label_map
from components.ct.store import voxel_of
from components.figures.arrays import Array
from components.looking.volume import WINDOWS, upright
from components.tasks.interface import Question
from components.tasks.lattice import Lattice, Scan
from components.tasks.pictures import STYLE, peer_looks
from components.tasks.scores import ENCODER, RANDOM

BARS = {
    ENCODER: ("this encoder", "#1f5fbf"),
    RANDOM: ("untrained encoders, mean", "#8a8f98"),
    "histogram": ("histogram of the crops", "#d9822b"),
    "place": ("place in the body's box", "#9b51b0"),
}
Pictures = dict[str, tuple[Figure, str]]
ACROSS = 2  # superior, of a volume turned upright


def by_structure(pairs: pd.DataFrame) -> Figure:
    """Share of places found inside, a group of bars for each structure.

    Args:
        pairs: method, label, inside.
    """
    method = pairs["method"].where(~pairs["method"].str.startswith(f"{RANDOM}_"), RANDOM)
    shares = pairs.groupby([method, "label"])["inside"].mean().unstack(0)
    bars = BARS | peer_looks(pairs["method"])
    wide = 0.8 / len(bars)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(1.6 + 0.9 * len(shares) * len(bars) / len(BARS), 3.4))
        for rank, (name, (title, colour)) in enumerate(bars.items()):
            places = np.arange(len(shares)) + (rank - (len(bars) - 1) / 2) * wide
            axes.bar(places, shares[name], width=0.95 * wide, color=colour, label=title)
        axes.set_xticks(range(len(shares)), [str(label).replace("_", "\n") for label in shares.index])
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("places found inside")
        axes.grid(False, axis="x")
        axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.2), ncols=2, frameon=False, fontsize=8)
        figure.tight_layout()
    return figure


def typical(pairs: pd.DataFrame, best: bool) -> pd.Series[Any]:
    """Of the encoder's best or worst structure, the pair nearest to its median distance; the first of equals."""
    own = pairs[pairs["method"] == ENCODER]
    shares = own.groupby("label")[["inside", "distance_mm"]].mean()
    order = shares.assign(far=-shares["distance_mm"]).sort_values(["inside", "far"], ascending=not best, kind="stable")
    of = own[own["label"] == order.index[0]].sort_values("case")
    shown: pd.Series[Any] = of.loc[(of["distance_mm"] - of["distance_mm"].median()).abs().idxmin()]
    return shown


def search_shown(question: Question, pair: pd.Series[Any], alike: Array, lattice: Lattice) -> Figure:
    """The query's slice, the target's with the place found, and how alike the target's places are in that slice."""
    rows = question.rows.set_index("case")
    query = rows.loc[pair["case"].split(">")[0]]
    target = rows[(rows["split"] == "target") & (rows["patient"] == pair["patient"])].iloc[0]
    there, here = (Scan.of(question.volumes.open(str(volume))) for volume in (query["volume"], target["volume"]))
    found = pair[["x", "y", "z"]].to_numpy(dtype=np.float64)
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, row = plt.subplots(1, 3, figsize=(11, 3.9))
        place = _slice(row[0], there, query[["x", "y", "z"]].to_numpy(dtype=np.float64))
        row[0].plot(*place, "+", color="#ffd60a", markersize=14, markeredgewidth=2)
        row[0].set_title(f"query: {pair['label']}")
        for axes in row[1:]:
            place = _slice(axes, here, found)
            _outline(axes, here, str(target["volume"]), str(pair["label"]), found)
        row[1].plot(*place, "+", color="#ffd60a", markersize=14, markeredgewidth=2)
        row[1].set_title("found " + ("inside" if pair["inside"] else f"{pair['distance_mm']:.0f} mm off"))
        shown = _on_slice(here, _on_grid(alike, lattice, here), found)
        image = row[2].imshow(np.ma.masked_less(shown, -0.99), cmap="magma", alpha=0.65, **_frame(here))
        figure.colorbar(image, ax=row[2], shrink=0.8, label="likeness")
        row[2].set_title("likeness in this slice")
        figure.tight_layout()
    return figure


def _frame(scan: Scan) -> dict[str, Any]:
    _, affine = upright(scan.volume)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return {"origin": "lower", "aspect": spacing[1] / spacing[0], "interpolation": "nearest"}


def _on_slice(scan: Scan, values: npt.NDArray[Any], point_mm: Array) -> npt.NDArray[Any]:
    """The transverse slice through a point of values on the scan's grid, the patient's right at the left."""
    turned, affine = upright(type(scan.volume)(values, scan.volume.affine))
    number = int(np.clip(np.rint(voxel_of(affine, point_mm)[ACROSS]), 0, turned.shape[ACROSS] - 1))
    plane: npt.NDArray[Any] = turned[::-1, :, number].T
    return plane


def _slice(axes: Any, scan: Scan, point_mm: Array) -> tuple[float, float]:
    """Draw the slice through a point; returns where the point is in it."""
    level, width = WINDOWS["soft"]
    hu = _on_slice(scan, scan.volume.hu, point_mm)
    axes.imshow(hu, cmap="gray", vmin=level - width / 2, vmax=level + width / 2, **_frame(scan))
    axes.set_axis_off()
    turned, affine = upright(scan.volume)
    right, up, _ = voxel_of(affine, point_mm)
    return turned.shape[0] - 1 - float(right), float(up)


def _outline(axes: Any, scan: Scan, volume: str, structure: str, point_mm: Array) -> None:
    path = label_map_of(Path(volume))
    if path is None:
        return
    found = read_label_map(path)
    values = [value for value, name in found.names.items() if name == structure]
    mask = _on_slice(scan, np.isin(found.values, values).astype(np.int16), point_mm)
    if mask.any():
        axes.contour(mask, levels=[0.5], colors="#34c759", linewidths=1.2)


def _on_grid(alike: Array, lattice: Lattice, scan: Scan) -> npt.NDArray[np.float32]:
    """Likeness on the scan's grid, that of the nearest node."""
    axes = [
        np.clip(np.rint((np.arange(side) - first) / step), 0, count - 1).astype(np.intp)
        for side, first, step, count in zip(scan.volume.hu.shape, lattice.first, lattice.step, alike.shape, strict=True)
    ]
    return alike[np.ix_(*axes)].astype(np.float32)


def pictures(question: Question, pairs: pd.DataFrame, maps: dict[str, Array], lattices: dict[str, Lattice]) -> Pictures:
    """Bars, and the searches of the best and the worst structure.

    Args:
        question: of the task.
        pairs: as found by every method.
        maps: case to the encoder's likeness.
        lattices: target volume to lattice.
    """
    shown: Pictures = {
        "by_structure": (by_structure(pairs), "Share of places found inside the structure that was pointed at.")
    }
    volumes = question.rows[question.rows["split"] == "target"].set_index("patient")["volume"]
    for name, best in (("best", True), ("worst", False)):
        pair = typical(pairs, best)
        lattice = lattices[str(volumes[[pair["patient"]]].iloc[0])]
        caption = (
            f"{pair['label']}, the structure that is found {name}: the query's point, the place found in another "
            "patient with the structure's outline, and how alike the places of that slice are."
        )
        shown[name] = (search_shown(question, pair, maps[pair["case"]], lattice), caption)
    return shown
