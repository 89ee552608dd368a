"""How pictures of evaluation look and are written; equal figures give equal bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from components.figures.arrays import Array
from components.files import replacing
from components.tasks.scores import PEER

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.axisbelow": True,
    "figure.dpi": 110,
    "text.parse_math": False,  # a class or a column may hold a dollar
}


PEER_COLOURS = ("#007a5a", "#a0407a", "#7a6a00", "#56749c", "#1c2430")  # told apart from those of our own methods


def peer_looks(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Of each peer among ``methods``, in order, its title and colour; more peers than colours begin anew."""
    peers = sorted({method for method in methods if method.startswith(PEER)})
    return {method: (method.replace("_", " "), colour) for method, colour in zip(peers, cycle(PEER_COLOURS))}


def save(figure: Figure, path: Path) -> None:
    """Write a PNG without software or time stamp, and close the figure."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None}, bbox_inches="tight")
    plt.close(figure)


def projected(panels: Mapping[str, Array], labels: Sequence[str]) -> Figure:
    """First two principal components of vectors, a panel for each, coloured by class.

    Args:
        panels: title to (cases, dimension).
        labels: (cases,).
    """
    classes = np.asarray(labels, dtype=np.str_)
    with plt.rc_context(STYLE):
        figure, row = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.6), squeeze=False)
        for axes, (title, vectors) in zip(row[0], panels.items(), strict=True):
            places, share = two_components(vectors)
            for index, name in enumerate(np.unique(classes)):
                axes.scatter(*places[classes == name].T, s=16, color=f"C{index}", alpha=0.85, linewidths=0, label=name)
            axes.set_title(title)
            axes.set_xlabel(f"component 1 ({share[0]:.0%} of variance)")
            axes.set_ylabel(f"component 2 ({share[1]:.0%})")
        row[0][0].legend(fontsize=7, frameon=False)
        figure.tight_layout()
    return figure


def two_components(vectors: Array) -> tuple[Array, Array]:
    """First two principal components (cases, 2) and their shares of the variance (2,).

    Signs are fixed by the largest loading, so that equal vectors give equal pictures. Vectors that are all equal have
    no variance to share: zeros.
    """
    centred = vectors - vectors.mean(axis=0)
    _, lengths, loadings = np.linalg.svd(centred, full_matrices=False)
    largest = np.take_along_axis(loadings, np.abs(loadings).argmax(axis=1)[:, None], axis=1)
    turned = loadings * np.where(largest < 0, -1.0, 1.0)
    variance = lengths**2
    shares = variance / max(float(variance.sum()), np.finfo(np.float64).tiny)
    missing = max(0, 2 - len(shares))  # of a single dimension, or a single case
    places: Array = np.pad((centred @ turned.T)[:, :2], ((0, 0), (0, missing)))
    return places, np.pad(shares[:2], (0, missing))
