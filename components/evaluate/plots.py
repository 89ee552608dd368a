"""Pictures of the figures, drawn from the tables alone; equal tables give equal bytes.

Methods differ in colour (Okabe and Ito's, told apart by the colour-blind) and in shape. Untrained encoders, twenty and
more of them, are ticks and the band that they span.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.preprocessing import StandardScaler

from components.evaluate.words import BETTER, UNDECIDED, WORSE, method_name
from components.figures.arrays import Array
from components.tasks.interface import Measure
from components.tasks.pictures import STYLE
from components.tasks.scores import ENCODER, RANDOM

CRISP = STYLE | {"figure.dpi": 165, "axes.titlesize": 9, "font.size": 8.5}
INK, RULE, SEED, BAND = "#1c2430", "#9aa1ab", "#6b7280", "#e3e6ea"
LOOKS = {
    ENCODER: ("#0072b2", "o"),
    RANDOM: (SEED, "|"),
    "histogram": ("#b35900", "s"),
    "hu_statistics": ("#007a5a", "D"),
    "radiomics": ("#a0407a", "^"),
    "windows": ("#56749c", "v"),
}
OTHERS = tuple(product(("#7a6a00", INK, "#a0407a", "#56749c"), ("P", "X", "<", ">")))
VERDICTS = {BETTER: ("#0072b2", "^"), UNDECIDED: (SEED, "o"), WORSE: ("#c1440e", "v")}
CLASS_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#1c2430")
CLASS_MARKERS = ("o", "^", "s", "D", "v", "P")
LONGEST = 44  # letters of a name in a picture


@dataclass(frozen=True)
class Line:
    """One row of a forest.

    Attributes:
        name: at its left.
        value, low, high: figure and limits.
        verdict: one of :data:`VERDICTS`.
    """

    name: str
    value: float
    low: float
    high: float
    verdict: str = UNDECIDED


def looks(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method, the encoder first; untrained encoders are one of them."""
    shown = {RANDOM if name.startswith(f"{RANDOM}_") else name for name in methods}
    known = [name for name in LOOKS if name in shown]
    other = sorted(shown - set(LOOKS))
    return {name: LOOKS[name] for name in known} | dict(zip(other, OTHERS, strict=False))


def short(name: str) -> str:
    """A name that fits beside a picture."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def forest(lines: Sequence[Line | None], along: str, rule: float = 0.0) -> Figure:
    """Figures with their intervals, one below the other.

    Args:
        lines: from the top; None leaves one free.
        along: title of the axis.
        rule: where one is drawn.
    """
    with plt.rc_context(CRISP):
        figure, axes = plt.subplots(figsize=(7.2, 0.75 + 0.27 * len(lines)))
        axes.axvline(rule, color=INK, linewidth=0.9)
        for place, line in enumerate(lines):
            if line is None:
                continue
            colour, marker = VERDICTS[line.verdict]
            axes.hlines(place, line.low, line.high, color=colour, linewidth=2)
            axes.plot(line.value, place, marker, color=colour, markersize=6)
        _names(axes, [line.name if line else "" for line in lines])
        axes.set_xlabel(along)
        figure.tight_layout()
    return figure


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def small_multiples(figures: pd.DataFrame, measures: Mapping[str, Measure]) -> Figure:
    """A panel per figure of one task; in it a row per method, over the band that untrained encoders span.

    Args:
        figures: rows of one task of :func:`components.tasks.scores.figure_table`.
        measures: those of its kind; their order is the panels'.
    """
    shown = [name for name in measures if name in set(figures["figure"])]
    methods = looks(figures["method"].unique().tolist())
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    with plt.rc_context(CRISP):
        size = (0.4 + 2.55 * columns + 1.2, lines * (0.75 + 0.2 * len(methods)))
        figure, panels = plt.subplots(lines, columns, figsize=size, squeeze=False, sharey=True)
        for axes in panels.ravel()[len(shown) :]:
            axes.axis("off")
        for axes, name in zip(panels.ravel(), shown, strict=False):
            of = figures[figures["figure"] == name].set_index("method")
            for place, (method, (colour, marker)) in enumerate(methods.items()):
                if method == RANDOM:
                    _seeds(axes, of[of.index.str.startswith(f"{RANDOM}_")]["value"].to_numpy(), place)
                elif method in of.index:
                    axes.hlines(place, of.loc[method, "low"], of.loc[method, "high"], color=colour, linewidth=1.8)
                    axes.plot(of.loc[method, "value"], place, marker, color=colour, markersize=5)
            axes.set_title(measures[name].title.replace(", ", ",\n", 1))
            _names(axes, [method_name(method) for method in methods])
            axes.locator_params(axis="x", nbins=5)
        figure.tight_layout()
    return figure


def _seeds(axes: Axes, values: Array, place: int) -> None:
    if len(values):
        axes.axvspan(values.min(), values.max(), color=BAND, zorder=0)
        axes.plot(values, np.full(len(values), place), "|", color=SEED, markersize=8, markeredgewidth=0.9)


def parts_beside(values: pd.DataFrame, along: str) -> Figure:
    """Rows of parts, such as classes or findings; of each, every method and the band of untrained encoders.

    Args:
        values: columns ``part``, ``method``, ``value``, and for the encoder ``low`` and ``high``, which may be NaN.
        along: title of the axis.
    """
    parts = sorted(values["part"].unique())
    methods = looks(values["method"].unique().tolist())
    with plt.rc_context(CRISP):
        figure, axes = plt.subplots(figsize=(7.2, 1.1 + 0.3 * len(parts)))
        for method, (colour, marker) in reversed(methods.items()):
            for index, part in enumerate(parts):
                of = values[values["part"] == part]
                if method == RANDOM:
                    seeds = of.loc[of["method"].str.startswith(f"{RANDOM}_"), "value"].to_numpy()
                    if len(seeds):
                        axes.barh(index, np.ptp(seeds), left=seeds.min(), height=0.72, color=BAND, zorder=0)
                        axes.plot(seeds, np.full(len(seeds), index), "|", color=SEED, markersize=6, alpha=0.8)
                    continue
                own = of[of["method"] == method]
                axes.hlines([index] * len(own), own["low"], own["high"], color=colour, linewidth=1.8)
                axes.plot(own["value"], [index] * len(own), marker, color=colour, markersize=5, clip_on=False)
        for method, (colour, marker) in methods.items():
            axes.plot([], [], marker, color=colour, markersize=6, label=method_name(method))
        _names(axes, parts)
        axes.set_xlabel(along)
        figure.legend(loc="outside upper left", ncols=3, frameon=False)
        figure.set_layout_engine("constrained")
    return figure


def class_aucs(cases: pd.DataFrame) -> pd.DataFrame:
    """AUC of every class against the rest, by every method, as :func:`parts_beside` takes it.

    Args:
        cases: scores of one task's linear probe.
    """
    rows = [
        (of_class, method, roc_auc_score(of["label"] == of_class, of["score"]), np.nan, np.nan)
        for (of_class, method), of in cases.groupby(["of_class", "method"])
    ]
    return pd.DataFrame(rows, columns=["part", "method", "value", "low", "high"])


def rocs(cases: pd.DataFrame) -> Figure:
    """ROC curves of tasks of two classes, a panel each; of untrained encoders the band that their curves span.

    Args:
        cases: scores of the linear probe.
    """
    tasks = sorted(cases["task"].unique())
    methods = looks(cases["method"].unique().tolist())
    columns = min(4, max(2, len(tasks)))
    lines = -(-len(tasks) // columns)
    with plt.rc_context(CRISP):
        size = (2.35 * columns, 2.45 * lines + 0.4)
        figure, panels = plt.subplots(lines, columns, figsize=size, squeeze=False, sharex=True, sharey=True)
        for axes in panels.ravel()[len(tasks) :]:
            axes.axis("off")
        for axes, task in zip(panels.ravel(), tasks, strict=False):
            _roc(axes, cases[cases["task"] == task], methods)
            axes.set_title(short(task.rpartition("/")[2]))
        handles, names = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=3, frameon=False)
        figure.supxlabel("1 − specificity", fontsize="medium")
        figure.supylabel("sensitivity", fontsize="medium")
        figure.set_layout_engine("constrained")
    return figure


def _roc(axes: Axes, rows: pd.DataFrame, methods: Mapping[str, tuple[str, str]]) -> None:
    along = np.linspace(0, 1, 201)
    axes.plot([0, 1], [0, 1], color=RULE, linewidth=0.8)
    axes.set_aspect("equal")
    styles = dict(zip(methods, ("-", "-", "--", "-.", ":"), strict=False))
    for method, (colour, _) in methods.items():
        if method == RANDOM:
            seeds = [of for name, of in rows.groupby("method") if str(name).startswith(f"{RANDOM}_")]
            curves = np.stack([np.interp(along, *_curve(of)) for of in seeds])
            axes.fill_between(along, curves.min(axis=0), curves.max(axis=0), color="#cfd4da", zorder=0, linewidth=0,
                              label=method_name(RANDOM))  # fmt: skip
            continue
        axes.plot(*_curve(rows[rows["method"] == method]), color=colour, linestyle=styles.get(method, ":"),
                  linewidth=2 if method == ENCODER else 1.2, label=method_name(method))  # fmt: skip


def _curve(rows: pd.DataFrame) -> tuple[Array, Array]:
    false_rate, true_rate, _ = roc_curve(rows["label"] == rows["of_class"], rows["score"])
    return false_rate, true_rate


def projection(panels: Mapping[str, Array], labels: Sequence[str]) -> Figure:
    """The first two principal components of features, one panel per method, a colour and marker per class.

    Args:
        panels: title to features (cases, dimension).
        labels: (cases,).
    """
    classes = sorted(set(labels))
    with plt.rc_context(CRISP):
        figure, row = plt.subplots(1, len(panels), figsize=(3.8 * len(panels), 3.5), squeeze=False)
        for axes, (title, features) in zip(row[0], panels.items(), strict=True):
            places, explained = principal_components(features)
            for index, name in enumerate(classes):
                colour = CLASS_COLOURS[index % len(CLASS_COLOURS)]
                marker = CLASS_MARKERS[(index // len(CLASS_COLOURS) + index) % len(CLASS_MARKERS)]
                of_class = np.asarray(labels) == name
                axes.scatter(*places[of_class].T, s=14, color=colour, marker=marker, alpha=0.8, linewidths=0)
                axes.scatter([], [], s=22, color=colour, marker=marker, linewidths=0, label=short(name))
            axes.set_title(title)
            axes.set_xlabel(f"component 1 ({explained[0]:.0%} of variance)")
            axes.set_ylabel(f"component 2 ({explained[1]:.0%})")
        handles, names = row[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=6, frameon=False, fontsize="small")
        figure.set_layout_engine("constrained")
    return figure


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
