"""The model card: what a release is, made from and worth, every figure read from the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import pandas as pd
import yaml

from components.bundle.config import BundleConfig
from components.models.heads import HeadDescription
from components.models.segment_head import SegmentDescription

TEMPLATE = "MODEL_CARD.md.j2"


@dataclass(frozen=True)
class CardFacts:
    """Everything the card says.

    Attributes:
        line: the model line.
        config: words of the `bundle` block.
        parameters: the line's whole block of ``params.yaml``.
        funnel: ``funnel.json``: counts in, accepted, no CT, rejected by reason.
        metrics: ``metrics.json`` of evaluation.
        figures: ``figures.csv`` of evaluation: task, method, figure, value, low, high, n_cases, n_patients.
        decision: ``decision.json`` of the gate.
        licences: see :func:`components.bundle.licences.licence_table`.
        inputs: hashes of code, parameters, pinned versions and data.
        heads: of the tasks that are served and classify.
        segmenters: of those that segment.
    """

    line: str
    config: BundleConfig
    parameters: dict[str, Any]
    funnel: dict[str, Any]
    metrics: dict[str, Any]
    figures: pd.DataFrame
    decision: dict[str, Any]
    licences: pd.DataFrame
    inputs: dict[str, str]
    heads: Sequence[HeadDescription]
    segmenters: Sequence[SegmentDescription] = ()


def model_card(facts: CardFacts) -> str:
    """The card as Markdown. Equal facts give equal text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("components.bundle", ""),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, read as text
    )
    environment.filters |= {"cell": cell, "figure": figure, "limits": limits}
    return environment.get_template(TEMPLATE).render(
        facts=facts,
        licences=facts.licences.to_dict("records"),
        heads=[head_row(head) for head in facts.heads],
        evaluation=evaluation_rows(facts.metrics, facts.figures),
        preprocess=_yaml(facts.parameters["preprocess"]),
        pretrain=_yaml(facts.parameters["pretrain"]),
        start=start_row(facts.parameters["pretrain"]),
    )


def evaluation_rows(metrics: dict[str, Any], figures: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per task and figure of ``metrics.json``, sorted, with the plain baselines' figures beside it."""
    plain = figures[~figures["method"].str.match(r"encoder$|random($|_)|.*\+")]  # two together are no baseline
    rows: list[dict[str, Any]] = []
    for task, numbers_by_figure in sorted(metrics["tasks"].items()):
        for name, numbers in sorted(numbers_by_figure.items()):
            beside = plain[(plain["task"] == task) & (plain["figure"] == name)].sort_values("method")
            baselines = [
                f"{r.method} {figure(r.value)} [{figure(r.low)}, {figure(r.high)}]" for r in beside.itertuples()
            ]
            counts = figures[(figures["task"] == task) & (figures["figure"] == name) & (figures["method"] == "encoder")]
            patients = int(counts["n_patients"].iloc[0]) if len(counts) else None
            rows.append({"task": task, "figure": name, **numbers, "baselines": baselines, "patients": patients})
    return rows


def head_row(head: HeadDescription) -> dict[str, Any]:
    """A head as the card's table shows it."""
    point, decided = head.operating_point, "none"
    if point is not None:
        decided = (
            f"{head.positive} from {figure(point.threshold)} on: sensitivity {limits(point.sensitivity)}, "
            f"specificity {limits(point.specificity)}"
        )
    return {"head": head, "point": decided}


def start_row(pretrain: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where the weights came from that pretraining began with, as the card tells it; None where it began with none."""
    start = pretrain.get("start")
    if start is None:
        return None
    place = {
        "file": "file {file}",
        "release": "release {release}",
        "hub": "{file} of {repository} at {revision}, Hugging Face hub",
    }[start["kind"]]
    return {**start, "place": place.format_map(start), "steps": pretrain["steps"], "input": pretrain["input"]}


def limits(numbers: Mapping[str, float]) -> str:
    """A figure with its interval."""
    return f"{figure(numbers['value'])} [{figure(numbers['low'])}, {figure(numbers['high'])}]"


def cell(value: object) -> str:
    """Text of a Markdown table's cell: on one line, bars escaped; nothing is said as such."""
    if value is None:
        return "none"
    return " ".join(str(value).split()).replace("|", "\\|")


def figure(value: float | None) -> str:
    """A number to three decimals, or n/a."""
    return "n/a" if value is None or math.isnan(value) else f"{value:.3f}"


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=True, default_flow_style=None, width=100).rstrip("\n")
