"""Pictures of the figures, drawn from the tables alone; equal tables give equal bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.metrics import roc_curve
from sklearn.preprocessing import StandardScaler

from components.figures.arrays import Array
from components.tasks.classify import DIAMETER
from components.tasks.kinds import measures
from components.tasks.pictures import STYLE, save
from components.tasks.scores import ENCODER, RANDOM

METHODS = {
    ENCODER: ("this encoder", "#1f5fbf"),
    RANDOM: ("untrained encoders, mean", "#8a8f98"),
    "histogram": ("intensity histogram", "#d9822b"),
    "hu_statistics": ("HU statistics of the centre", "#2f9e7e"),
    DIAMETER: ("diameter alone", "#9b51b0"),
}
PANELS = {
    "auc": ("linear_auc", "knn_auc"),
    "balanced_accuracy": ("linear_balanced_accuracy", "knn_balanced_accuracy"),
    "retrieval": ("retrieval_map", "retrieval_p1", "retrieval_p5"),
    "stability": ("cosine", "identification"),
}
COMPARED = ("linear_auc", "knn_auc", "retrieval_map")


def draw_all(folder: Path, figures: pd.DataFrame, cases: pd.DataFrame, differences: pd.DataFrame) -> None:
    """Write auc, balanced_accuracy, retrieval, stability, difference and roc (.png) to ``folder``.

    Args:
        folder: where to.
        figures: as :func:`components.tasks.scores.figure_table`.
        cases: per-case predictions.
        differences: task, figure, difference, difference_low, difference_high.
    """
    with plt.rc_context(STYLE):
        for name, shown in PANELS.items():
            save(_forest(figures, shown), folder / f"{name}.png")
        save(_differences(differences), folder / "difference.png")
        save(_rocs(cases), folder / "roc.png")


def _nothing(text: str) -> Figure:
    figure, axes = plt.subplots(figsize=(6, 1.2))
    axes.axis("off")
    axes.text(0.0, 0.5, text, va="center")
    return figure


def _forest(figures: pd.DataFrame, shown: Sequence[str]) -> Figure:
    """One panel per figure; per task and method the value and its 95 % interval."""
    rows = figures[figures["figure"].isin(shown)]
    if rows.empty:
        return _nothing("No task with these figures was evaluated.")
    tasks = sorted(rows["task"].unique())
    methods = [name for name in METHODS if name in set(rows["method"])]
    height = 0.7 + len(tasks) * (0.14 * len(methods) + 0.12)
    figure, panels = plt.subplots(1, len(shown), figsize=(4.6 * len(shown), height), sharey=True, squeeze=False)
    for axes, name in zip(panels[0], shown, strict=True):
        of_figure = rows[rows["figure"] == name]
        for rank, method in enumerate(methods):
            _intervals(axes, of_figure[of_figure["method"] == method], tasks, method, rank, len(methods))
        seeds = of_figure[of_figure["method"].str.startswith(f"{RANDOM}_")]
        offset = _offset(methods.index(RANDOM), len(methods)) if RANDOM in methods else 0.0
        places = seeds["task"].map(tasks.index).to_numpy(dtype=np.float64) + offset
        axes.plot(seeds["value"], places, "|", color=METHODS[RANDOM][1], markersize=7, alpha=0.7, label="_seeds")
        axes.set_title(measures()[name].title)
        if name.endswith("_auc"):
            axes.axvline(0.5, color="#9aa1ab", linewidth=0.8, linestyle=":")  # chance
        axes.set_xlim(-0.02 if rows["low"].min() >= 0 else rows["low"].min() - 0.05, 1.02)
    panels[0][0].set_yticks(range(len(tasks)), tasks)
    panels[0][0].set_ylim(len(tasks) - 0.5, -0.5)
    figure.tight_layout()
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="upper left", bbox_to_anchor=(0.0, 0.0), ncols=3, frameon=False)
    return figure


def _offset(rank: int, count: int) -> float:
    return (rank - (count - 1) / 2) * 0.8 / count


def _intervals(axes: Axes, rows: pd.DataFrame, tasks: list[str], method: str, rank: int, count: int) -> None:
    label, colour = METHODS[method]
    places = rows["task"].map(tasks.index).to_numpy(dtype=np.float64) + _offset(rank, count)
    axes.hlines(places, rows["low"], rows["high"], color=colour, linewidth=2.2 if method == ENCODER else 1.3)
    axes.plot(rows["value"], places, "o", color=colour, markersize=5.5 if method == ENCODER else 4, label=label)


def _differences(differences: pd.DataFrame) -> Figure:
    rows = differences[differences["figure"].isin(COMPARED)]
    if rows.empty:
        return _nothing("No task was evaluated: there is no difference to show.")
    tasks = sorted(rows["task"].unique())
    size = (4.6 * len(COMPARED), 0.9 + 0.28 * len(tasks))
    figure, panels = plt.subplots(1, len(COMPARED), figsize=size, sharey=True, sharex=True, squeeze=False)
    for axes, name in zip(panels[0], COMPARED, strict=True):
        part = rows[rows["figure"] == name]
        places = part["task"].map(tasks.index).to_numpy(dtype=np.float64)
        axes.axvline(0, color="#333", linewidth=0.8)
        for place, row in zip(places, part.itertuples(), strict=True):
            low, high = float(str(row.difference_low)), float(str(row.difference_high))
            colour = "#1f5fbf" if low > 0 else "#c0392b" if high < 0 else "#8a8f98"
            axes.hlines(place, low, high, color=colour, linewidth=2)
            axes.plot(float(str(row.difference)), place, "o", color=colour, markersize=5)
        axes.set_title(measures()[name].title)
        axes.set_xlabel("encoder less an untrained one")
    panels[0][0].set_yticks(range(len(tasks)), tasks)
    panels[0][0].set_ylim(len(tasks) - 0.5, -0.5)
    figure.tight_layout()
    return figure


def _rocs(cases: pd.DataFrame) -> Figure:
    """Linear probes: binary tasks one curve per method; a task with more classes one curve per class of the encoder."""
    linear = cases[cases["probe"] == "linear"]
    tasks = sorted(linear["task"].unique())
    if not tasks:
        return _nothing("No classification task was evaluated: there is no ROC curve to show.")
    columns = min(4, len(tasks))
    lines = -(-len(tasks) // columns)
    figure, panels = plt.subplots(lines, columns, figsize=(3.4 * columns, 3.3 * lines), squeeze=False)
    for axes in panels.ravel()[len(tasks) :]:
        axes.axis("off")
    for axes, task in zip(panels.ravel(), tasks, strict=False):
        rows = linear[linear["task"] == task]
        axes.plot([0, 1], [0, 1], color="#c9ccd1", linewidth=0.8)
        classes = sorted(rows["of_class"].unique())
        if len(classes) == 1:
            _binary_roc(axes, rows, classes[0])
        else:
            for index, name in enumerate(classes):
                own = rows[(rows["method"] == ENCODER) & (rows["of_class"] == name)]
                _curve(axes, own, name, f"C{index}", 1.3)
        axes.set_title(task)
        axes.set_xlabel("1 - specificity")
        axes.set_ylabel("sensitivity")
        axes.set_aspect("equal")
        axes.legend(fontsize=6.5, frameon=False, loc="lower right")
    figure.tight_layout()
    return figure


def _binary_roc(axes: Axes, rows: pd.DataFrame, positive: str) -> None:
    rows = rows[rows["of_class"] == positive]
    for method in sorted(rows["method"].unique()):
        if method.startswith(f"{RANDOM}_"):
            label = "untrained encoders" if method == f"{RANDOM}_{_first_seed(rows)}" else "_seed"
            _curve(axes, rows[rows["method"] == method], label, METHODS[RANDOM][1], 0.8)
    for method, (label, colour) in reversed(METHODS.items()):
        if method in set(rows["method"]):
            _curve(axes, rows[rows["method"] == method], label, colour, 2.2 if method == ENCODER else 1.2)


def _first_seed(rows: pd.DataFrame) -> str:
    names = [name for name in rows["method"].unique() if name.startswith(f"{RANDOM}_")]
    return str(min(names)).removeprefix(f"{RANDOM}_")


def _curve(axes: Axes, rows: pd.DataFrame, label: str, colour: str, width: float) -> None:
    false_rate, true_rate, _ = roc_curve(rows["label"] == rows["of_class"], rows["score"])
    axes.plot(false_rate, true_rate, color=colour, linewidth=width, label=label)


def draw_projection(path: Path, panels: dict[str, Array], labels: Sequence[str], task: str) -> None:
    """The first two principal components of features, one panel per method, coloured by label.

    Args:
        path: PNG.
        panels: title to features (cases, dimension); empty where nothing was evaluated.
        labels: (cases,).
        task: whose cases they are, for the title.
    """
    with plt.rc_context(STYLE):
        if not panels:
            save(_nothing("No classification task was evaluated: there is nothing to project."), path)
            return
        figure, axes_row = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.6), squeeze=False)
        for axes, (title, features) in zip(axes_row[0], panels.items(), strict=True):
            places, explained = principal_components(features)
            for index, name in enumerate(sorted(set(labels))):
                of_class = np.asarray(labels) == name
                axes.scatter(*places[of_class].T, s=16, color=f"C{index}", alpha=0.85, linewidths=0, label=name)
            axes.set_title(f"{task}: {title}")
            axes.set_xlabel(f"component 1 ({explained[0]:.0%} of variance)")
            axes.set_ylabel(f"component 2 ({explained[1]:.0%})")
        axes_row[0][0].legend(fontsize=7, frameon=False)
        figure.tight_layout()
        save(figure, path)


def principal_components(features: Array) -> tuple[Array, Array]:
    """First two principal components (cases, 2) of standardised features and the shares of variance of all.

    Signs are fixed by the largest loading. Features that are all constant have no variance to share: zeros.
    """
    standard = StandardScaler().fit_transform(features)
    with np.errstate(invalid="ignore"):  # of constant features the shares are 0 / 0
        pca = PCA(svd_solver="full").fit(standard)
    places: Array = pca.transform(standard)[:, :2]
    share: Array = np.nan_to_num(pca.explained_variance_ratio_)
    if places.shape[1] < 2:  # a single feature
        places, share = np.column_stack([places, np.zeros(len(places))]), np.append(share, 0.0)
    return places, share
