"""Pictures of a run: the history's curves and a sheet of what the model sees."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from components.files import replacing

matplotlib.use("Agg")
STABLE = {"Software": None}  # matplotlib's version in the file would change its bytes


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100, metadata=STABLE)


def plot_history(history: pd.DataFrame, path: Path) -> None:
    """One panel per column of the history, over the steps; the number of workers only where it changed."""
    still = [name for name in ("workers", "batch") if history[name].nunique() == 1]
    columns = [name for name in history.columns if name not in ("step", *still)]
    rows = -(-len(columns) // 3)
    figure = Figure(figsize=(12, 3 * rows), layout="constrained")
    for index, name in enumerate(columns):
        axes = figure.add_subplot(rows, 3, index + 1)
        axes.plot(history["step"], history[name], linewidth=1.5, marker="o" if len(history) == 1 else "")
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.grid(alpha=0.3)
    _save(figure, path)


def plot_views(rows: list[list[npt.NDArray[np.float32]]], path: Path) -> None:
    """Grey slices in [0, 1], one row of the sheet per list."""
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(1.6 * columns, 1.6 * len(rows)), layout="constrained")
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            axes = figure.add_subplot(len(rows), columns, r * columns + c + 1)
            axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_axis_off()
    _save(figure, path)
