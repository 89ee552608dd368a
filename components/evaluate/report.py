"""The evaluation report: one HTML file that carries its pictures with it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from components.tasks.classify import DIAMETER
from components.tasks.kinds import measures
from components.tasks.scores import ENCODER, RANDOM

BASELINES = {"histogram": "Histogram", "hu_statistics": "HU statistics", DIAMETER: "Diameter"}
PICTURES = {
    "difference": "Better than random? Encoder less the mean of the random encoders, paired over patients, with 95 % "
    "intervals. Blue: the interval lies above zero. Red: below zero. Grey: undecided.",
    "auc": "Area under the ROC curve (mean of one-against-rest where there are more than two classes), 95 % intervals. "
    "Grey ticks: single random encoders.",
    "balanced_accuracy": "Balanced accuracy, 95 % intervals.",
    "retrieval": "Retrieval in other patients, mean over classes, 95 % intervals.",
    "roc": "ROC curves of the linear probes on test patients.",
    "stability": "Test-retest stability, 95 % intervals.",
    "projection": "First two principal components of the features, beside those of one random encoder.",
}


@dataclass(frozen=True)
class Row:
    """One line of the report's table; numbers as text."""

    figure: str
    encoder: str
    random: str
    difference: str
    verdict: str
    baselines: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """One task of the report."""

    task: str
    size: str
    remark: str
    baselines: tuple[str, ...]
    rows: tuple[Row, ...]


def render_report(
    plots: Path,
    metrics: Mapping[str, Any],
    figures: pd.DataFrame,
    table: pd.DataFrame,
    remarks: Mapping[str, str],
    sources: Sequence[str],
    replicates: int,
) -> str:
    """The report's HTML.

    Args:
        plots: folder with the pictures.
        metrics: content of ``metrics.json``.
        figures: table of all methods' figures.
        table: the task table.
        remarks: task to what was left out of it.
        sources: kinds of source of the line's scans, such as ``phantom``.
        replicates: of the bootstrap.
    """
    pictures = [(_embedded(plots / f"{name}.png"), caption, name) for name, caption in PICTURES.items()]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("report.html.j2").render(
        line=metrics["line"],
        patients=metrics["patients"],
        evaluation_data=metrics["evaluation_data"],
        sections=[_section(task, metrics["tasks"][task], figures, table, remarks) for task in sorted(metrics["tasks"])],
        not_evaluated=sorted(metrics["not_evaluated"].items()),
        pictures=pictures,
        sources=sorted(sources),
        replicates=replicates,
        nodules=any(task.startswith("lidc_nodules/") for task in metrics["tasks"]),
    )


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _section(
    task: str, of_task: Mapping[str, Any], figures: pd.DataFrame, table: pd.DataFrame, remarks: Mapping[str, str]
) -> Section:
    own = figures[figures["task"] == task]
    encoder = own[own["method"] == ENCODER].iloc[0]
    shown = {method: name for method, name in BASELINES.items() if method in set(own["method"])}
    rows = tuple(_row(name, of_task[name], own, shown) for name in measures() if name in of_task)
    return Section(
        task=task,
        size=f"{encoder['n_cases']} test cases of {encoder['n_patients']} patients{_classes(task, table)}",
        remark=remarks.get(task, ""),
        baselines=tuple(shown.values()),
        rows=rows,
    )


def _classes(task: str, table: pd.DataFrame) -> str:
    rows = table[table["task"] == task]
    if rows.empty or (rows["split"] == "retest").any():
        return ""
    train = int((rows["split"] == "train").sum())
    counts = rows[rows["split"] == "test"]["label"].value_counts().sort_index()
    return f" ({', '.join(f'{count} {name}' for name, count in counts.items())}); {train} training cases"


def _row(name: str, numbers: Mapping[str, float], own: pd.DataFrame, baselines: Mapping[str, str]) -> Row:
    low, high = numbers["difference_low"], numbers["difference_high"]
    values = own[own["figure"] == name].set_index("method")
    return Row(
        figure=measures()[name].title,
        encoder=_with_interval(numbers["value"], numbers["low"], numbers["high"]),
        random=_with_range(numbers["random"], values[values.index.str.startswith(f"{RANDOM}_")]["value"]),
        difference=_with_interval(numbers["difference"], low, high, signed=True),
        verdict="better" if low > 0 else "worse" if high < 0 else "undecided",
        baselines=tuple(
            _with_interval(*(float(values.loc[method, column]) for column in ("value", "low", "high")))  # type: ignore[arg-type]
            if method in values.index
            else ""
            for method in baselines
        ),
    )


def _with_interval(value: float, low: float, high: float, signed: bool = False) -> str:
    number = "{:+.3f}" if signed else "{:.3f}"
    return f"{number.format(value)} [{number.format(low)}, {number.format(high)}]".replace("-", "\N{MINUS SIGN}")


def _with_range(mean: float, seeds: pd.Series) -> str:
    return f"{mean:.3f} ({seeds.min():.3f} to {seeds.max():.3f})".replace("-", "\N{MINUS SIGN}")
