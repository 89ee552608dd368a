"""A contact sheet: many series at a glance, those that were rejected first, each with its fate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from components.ct.store import StoredVolume
from components.files import replacing
from components.looking.volume import DOTS_PER_INCH, PLANES, WINDOWS, cut, upright

COLUMNS, TILES = 6, 48
TILE_INCHES = 1.9
SHOWN = ("axial", "coronal")  # side by side in a tile
FATES = {True: "#34c759", False: "#ff6b60"}


def chosen(curated: pd.DataFrame, stored: dict[str, Path], tiles: int = TILES) -> pd.DataFrame:
    """Rows to show: of the rejected series that have a volume at most half of the tiles, all reasons by turns; then
    accepted ones, evenly from the whole table."""
    there = curated[curated["series"].isin(list(stored))].sort_values("series", kind="stable")
    rejected = there[~there["accepted"]]
    turn = rejected.groupby("reason").cumcount()
    rejected = rejected.assign(turn=turn).sort_values(["turn", "reason", "series"]).head(tiles // 2)
    accepted = there[there["accepted"]]
    places = np.unique(np.linspace(0, len(accepted) - 1, min(len(accepted), tiles - len(rejected))).round().astype(int))
    return pd.concat([rejected.sort_values(["reason", "series"]), accepted.iloc[places]])


def contact_sheet(curated: pd.DataFrame, store: Path, target: Path, window: str) -> int:
    """Write a PNG of series' middle planes.

    Args:
        curated: one row per series; columns series, accepted, reason.
        store: ``data/<line>/preprocess``; series that were rejected by their headers have no volume in it.
        target: PNG.
        window: a name in ``volume.WINDOWS``.

    Returns:
        How many series are on it; nothing is written where none has a volume.
    """
    stored = {path.stem: path for path in sorted(store.glob("*/volumes/*.b2nd"))}
    rows = chosen(curated, stored)
    if rows.empty:
        return 0
    lines = -(-len(rows) // COLUMNS)
    figure = Figure(figsize=(COLUMNS * TILE_INCHES, lines * (TILE_INCHES * 0.6)), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
    level, width = WINDOWS[window]
    for axis in axes:
        axis.set_axis_off()
    for axis, row in zip(axes, rows.to_dict("records"), strict=False):
        axis.imshow(_tile(stored[row["series"]]), cmap="gray", vmin=level - width / 2, vmax=level + width / 2)
        first, *more = row["reason"].split(";")
        fate = "accepted" if row["accepted"] else first + (f" +{len(more)}" if more else "")
        axis.set_title(f"{row['series'][:9]}  {fate}", color=FATES[bool(row["accepted"])], fontsize=7, pad=3)
    figure.tight_layout(pad=0.4)
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=DOTS_PER_INCH, format="png", facecolor="black", metadata={"Software": None})
    return len(rows)


def _tile(path: Path, pixels: int = 128) -> npt.NDArray[np.float32]:
    """The middle planes, each in a square of air, true to millimetres."""
    hu, affine = upright(StoredVolume(path).read())
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    reach = float((np.array(hu.shape) * spacing).max())
    squares = []
    for name in SHOWN:
        across, along, _ = PLANES[name]
        plane = cut(hu, across, np.array(hu.shape) // 2)[::-1]  # rows downwards, as pixels are drawn
        high, wide = (max(1, round(plane.shape[n] * spacing[along[1 - n]] / reach * pixels)) for n in (0, 1))
        down, right = (np.arange(n) * size // n for n, size in zip((high, wide), plane.shape, strict=True))
        square = np.full((pixels, pixels), -1024, np.float32)
        top, left = (pixels - high) // 2, (pixels - wide) // 2
        square[top : top + high, left : left + wide] = plane[np.ix_(down, right)]
        squares.append(square)
    return np.concatenate(squares, axis=1)
