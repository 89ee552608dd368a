"""Which pictures the report shows of a task, and what is said below and instead of them."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components.evaluate import plots
from components.evaluate.words import count, verdict
from components.figures.arrays import Array
from components.tasks.attributes import ATTRIBUTES
from components.tasks.interface import Measure
from components.tasks.pictures import save
from components.tasks.scores import ENCODER

OVERVIEW = "difference.png"
GROUPS = "subgroups"
SHARES = (-1.0, 1.0)  # figures that lie between these are drawn on one axis
DOTS_PER_INCH = 110  # at which a picture has the size of the text round it
Features = Callable[[pd.DataFrame], Mapping[str, Array]]


@dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Attributes:
        path: PNG.
        caption: below it.
        alt: for those who do not see it: what is drawn, and where its numbers stand.
    """

    path: Path
    caption: str
    alt: str


def embedded(picture: Picture) -> dict[str, Any]:
    """A picture as the template shows it: its bytes, its size beside text, caption and alternative text."""
    content = picture.path.read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    scale = DOTS_PER_INCH / _resolution(content)
    source = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
    size = {"width": round(width * scale), "height": round(height * scale)}
    return {"source": source, "caption": picture.caption, "alt": picture.alt, **size}


def _resolution(png: bytes) -> float:
    """Dots per inch, by the chunk pHYs (PNG, 11.3.5.3: dots per metre); 110 where it says none."""
    at = png.find(b"pHYs")
    return struct.unpack(">I", png[at + 4 : at + 8])[0] * 0.0254 if at > 0 else DOTS_PER_INCH


def draw_overview(folder: Path, metrics: Mapping[str, Any], measures: Mapping[str, Measure]) -> list[Picture]:
    """The differences of all tasks on one axis, those of figures that are no shares (millimetres, days) left out."""
    lines = []
    for task, figures in sorted(metrics["tasks"].items()):
        name = metrics["primary"][task]
        numbers, measure = figures[name], measures[name]
        if SHARES[0] <= measure.bounds[0] and measure.bounds[1] <= SHARES[1]:
            of = (numbers["difference"], numbers["difference_low"], numbers["difference_high"])
            lines.append(plots.Line(task, *of, verdict(numbers, measure)))
    if not lines:
        return []
    save(plots.forest(lines, "this encoder less one more untrained encoder"), folder / OVERVIEW)
    return [
        Picture(
            folder / OVERVIEW,
            "Each task's first figure: this encoder less one more untrained encoder, with the 95 % interval. Triangle "
            "up, blue: better. Triangle down, orange: worse. Grey circle: undecided.",
            f"Differences to untrained encoders of {count(len(lines), 'task')}; the table above holds the numbers.",
        )
    ]


def draw_task(
    folder: Path,
    name: str,
    metrics: Mapping[str, Any],
    measures: Mapping[str, Measure],
    figures: pd.DataFrame,
    cases: pd.DataFrame,
) -> list[Picture]:
    """Figures of a task and its parts, and what lies behind the linear probe's.

    Args:
        folder: where to.
        name: of the task.
        metrics: content of ``metrics.json``.
        measures: of its kind.
        figures, cases: the rows of the task and its parts.
    """
    parts = sorted(figures["task"].unique())
    pictures = []
    if name in parts and len(parts) > 1:
        of = measures[metrics["primary"][name]]
        inner = figures[(figures["task"] != name) & (figures["figure"] == metrics["primary"][name])]
        beside = inner.assign(part=inner["task"].str.removeprefix(f"{name}/"))
        hidden = beside["method"] != ENCODER
        beside.loc[hidden, ["low", "high"]] = np.nan
        path = folder / f"{name}.png"
        save(plots.parts_beside(beside, of.title), path)
        caption = f"{of.title}. Of this encoder with the 95 % interval. Ticks: single untrained encoders; grey: "
        pictures.append(
            Picture(path, f"{caption}the range that they span.", f"{of.title} of {len(parts) - 1} parts of {name}, by "
                    "method; the tables of the parts hold the numbers.")
        )  # fmt: skip
    for part in [name] if name in parts else parts:
        path = folder / f"{part.replace('/', '_')}_figures.png"
        save(plots.small_multiples(figures[figures["task"] == part], measures), path)
        told = f"of {part}, every method with its 95 % interval. Ticks: single untrained encoders; grey: the range"
        pictures.append(Picture(path, f"Figures {told} that they span. Each panel has its own axis.",
                                f"Figures of {part}, a panel each; the table above holds the numbers."))  # fmt: skip
    return pictures + _of_probe(folder, name, cases[cases["probe"] == "linear"])


def _of_probe(folder: Path, name: str, cases: pd.DataFrame) -> list[Picture]:
    pictures: list[Picture] = []
    several: dict[str, pd.DataFrame] = {}
    binary: list[pd.DataFrame] = []
    for part, of in cases.groupby("task"):
        if of["of_class"].nunique() > 1:
            several[str(part)] = of
        else:
            binary.append(of)
    for part, of in several.items():
        path = folder / f"{part.replace('/', '_')}_classes.png"
        save(plots.parts_beside(plots.class_aucs(of), "AUC of the class against all others, linear probe"), path)
        number = of["of_class"].nunique()
        pictures.append(Picture(path, f"Linear probe of {part}: how well each class is told from all others. Ticks: "
                                "single untrained encoders.",
                                f"Area under the ROC curve of {number} classes, by method."))  # fmt: skip
    if binary:
        path = folder / f"{name}_roc.png"
        save(plots.rocs(pd.concat(binary)), path)
        shown = f"{count(len(binary), 'task')} of two classes"
        pictures.append(Picture(path, "ROC curves of the linear probe on test patients. Grey: the range of untrained "
                                "encoders.", f"ROC curves of {shown}; their areas are in the tables."))  # fmt: skip
    return pictures


def groups_file(part: str) -> str:
    """Name of the picture of a part's subgroups."""
    return f"{part.replace('/', '_')}_{GROUPS}.png"


def draw_groups(folder: Path, part: str, title: str, table: pd.DataFrame, whole: float) -> list[Picture]:
    """The figure in every group that has one, attribute by attribute.

    Args:
        folder: where to.
        part: the task or a part of it.
        title: of its figure.
        table: its rows of the table of subgroups.
        whole: the figure of all cases.
    """
    large = table[table["why_not"] == ""]
    if large.empty:
        return []
    lines: list[plots.Line | None] = []
    for attribute, rows in large.groupby("attribute", sort=False):
        lines += [None] * bool(lines)
        for row in rows.to_dict("records"):
            named = f"{ATTRIBUTES[str(attribute)]} {row['group']} ({row['patients']})"
            lines.append(plots.Line(named, float(row["value"]), float(row["low"]), float(row["high"])))
    path = folder / groups_file(part)
    save(plots.forest(lines, title, whole), path)
    caption = (
        f"{title} of {part} by group, with 95 % intervals; in parentheses the number of patients. The rule is the "
    )
    alt = f"{title} of {count(len(large), 'group')} of test cases; the table below holds the numbers."
    return [Picture(path, f"{caption}figure of all cases.", alt)]


def draw_projection(folder: Path, name: str, panels: Mapping[str, Array], labels: Sequence[str]) -> list[Picture]:
    """The features of a task's cases, as :func:`plots.projection` shows them."""
    path = folder / f"{name}_projection.png"
    save(plots.projection(panels, labels), path)
    return [Picture(path, "First two principal components of the features, beside those of one untrained encoder. Two "
                    "components are not all: classes that overlap here may be apart.",
                    f"Scatter plots of the features of {count(len(labels), 'case')}, coloured by class.")]  # fmt: skip
