"""The evaluate stage: what the tasks found, in one table, one file of metrics and one report."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from components.ct.grid import GridConfig
from components.ct.labels.stored import label_map_of
from components.evaluate.cases import build_cases, write_cases
from components.evaluate.features import write_features
from components.evaluate.layout import Layout, read_cases, read_places, table
from components.evaluate.plots import draw_all, draw_projection
from components.evaluate.report import render_report
from components.evaluate.task import CASES, FIGURES, METRICS, judge_task
from components.evaluate.untrained import untrained_encoders, write_untrained
from components.figures.families import holm
from components.files import read_json, sha256_file, write_json, write_text
from components.models.embed import Embedder, described
from components.settings import load_part, load_stage
from components.sources.sets import sets_of
from components.tables import write_table
from components.tasks.classify import ClassifyConfig
from components.tasks.config import EvaluateConfig
from components.tasks.features import Features, Volumes
from components.tasks.kinds import tasks_of
from components.tasks.scores import DIGITS, ENCODER, RANDOM
from components.tasks.table import Built, Inputs, task_table

log = logging.getLogger(__name__)


def run(line: str) -> None:
    """Collect what the line's tasks found and write ``data/<line>/evaluate``.

    Raises:
        UserError: an input is missing.
    """
    layout, config = Layout.of(line), load_stage(EvaluateConfig, line, "evaluate")
    patch = described(layout.features / "encoder").input.size_vox
    volumes = Volumes(config, load_part(GridConfig, line, "preprocess"), patch)
    curated = table(layout.root / "curate" / "curated.parquet")
    collect(line, tasks_of(line, sets_of(line)), layout, config, volumes, curated)


def evaluate(inputs: Inputs, tasks: Mapping[str, Any], embedder: Embedder, layout: Layout) -> None:
    """All stages of evaluation in a row, for any encoder: cases, features, every task, the report.

    Args:
        inputs: of the line.
        tasks: by name.
        embedder: that is judged.
        layout: where everything is written.

    Raises:
        UserError: as the stages.
    """
    config, embed = inputs.config, embedder.config
    volumes = Volumes(config, inputs.preprocess, embed.input.size_vox)
    write_cases(layout.cases, build_cases(inputs, tasks))
    places = read_places(layout.cases)
    write_untrained(layout.untrained, places, embed, config, volumes)
    write_features(layout.features, places, embedder, volumes)
    for name, task in tasks.items():
        encoders = {ENCODER: lambda: embedder} | untrained_encoders(embed, config)
        judge_task(inputs.line, name, task, config, layout, encoders, volumes)
    collect(inputs.line, tasks, layout, config, volumes, inputs.curated)


def collect(
    line: str, tasks: Mapping[str, Any], layout: Layout, config: EvaluateConfig, volumes: Volumes, curated: pd.DataFrame
) -> None:
    """Write ``tasks.parquet``, ``cases.parquet``, ``plots``, ``metrics.json`` and ``report.html``."""
    built = {name: read_cases(layout.cases, name) for name in tasks}
    found = {name: read_json(layout.task(name) / METRICS) for name in tasks}
    rows = task_table([of.table for of in built.values()])
    figures = _together([pd.read_csv(layout.task(name) / FIGURES) for name in tasks])
    cases = _together([table(layout.task(name) / CASES) for name in tasks])
    out, plots = layout.evaluate, layout.evaluate / "plots"
    write_table(out / "tasks.parquet", rows)
    write_table(out / "cases.parquet", cases)
    write_table(out / "table.parquet", figures)
    write_text(plots / "figures.csv", figures.to_csv(index=False, lineterminator="\n"))
    of_tasks = {part: numbers for of in found.values() for part, numbers in of["tasks"].items()}
    primary = {part: figure for of in found.values() for part, figure in of["primary"].items()}
    worse = holm([numbers[primary[part]]["p_worse"] for part, numbers in of_tasks.items()])
    metrics: dict[str, Any] = {
        "line": line,
        "patients": int(rows["patient"].nunique()),
        "evaluation_data": evaluation_digest(out / "tasks.parquet", rows, volumes),
        "tasks": of_tasks,
        "primary": primary,
        "worse": {part: round(float(p), DIGITS) for part, p in zip(of_tasks, worse, strict=True)},
        "not_evaluated": {part: why for of in built.values() for part, why in of.not_evaluated.items()},
    }
    draw_all(plots, figures, cases, _differences(metrics["tasks"]))
    features = Features.read(read_places(layout.cases), layout.features, layout.untrained)
    classified = {name: of for name, of in built.items() if isinstance(tasks[name], ClassifyConfig)}
    _project(plots / "projection.png", task_table([of.table for of in classified.values()]), features, config)
    write_json(out / "metrics.json", metrics)
    sources = sorted(_scans(curated)["source"].unique())
    html = render_report(plots, metrics, figures, rows, _remarks(built, found), sources, config.bootstrap)
    write_text(out / "report.html", html)


def _scans(curated: pd.DataFrame) -> pd.DataFrame:
    return curated[(curated["status"] == "accepted") & (curated["role"] == "evaluation")]


def _together(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    kept = [part for part in parts if len(part)]
    joined = pd.concat(kept or parts[:1], ignore_index=True)
    return joined.sort_values([str(name) for name in joined if name not in ("value", "low", "high")], ignore_index=True)


def _remarks(built: Mapping[str, Built], found: Mapping[str, Any]) -> dict[str, str]:
    remarks = {part: remark for of in built.values() for part, remark in of.remarks.items()}
    return remarks | {part: remark for of in found.values() for part, remark in of["remarks"].items()}


def evaluation_digest(tasks_file: Path, table: pd.DataFrame, volumes: Volumes) -> str:
    """Hex SHA-256 of the task table's bytes, of every volume it names and of its label map: figures compare only where
    it is equal."""
    digest = hashlib.sha256(sha256_file(tasks_file).encode())
    for name in sorted(table["volume"].unique()):
        digest.update(f"\n{name}\0{volumes.sha256(name)}".encode())
        if (labels := label_map_of(Path(name))) is not None:
            digest.update(f"\0{sha256_file(labels)}".encode())
    return digest.hexdigest()


def _differences(tasks: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> pd.DataFrame:
    columns = ["task", "figure", "difference", "difference_low", "difference_high"]
    rows = [
        (task, figure, *(numbers[name] for name in columns[2:]))
        for task, figures in tasks.items()
        for figure, numbers in figures.items()
    ]
    return pd.DataFrame(rows, columns=columns).sort_values(["task", "figure"], ignore_index=True)


def _project(path: Path, table: pd.DataFrame, features: Features, config: EvaluateConfig) -> None:
    """Project the task with the most classes; of equals, the first by name."""
    if table.empty:
        draw_projection(path, {}, [], "")
        return
    classes = table.groupby("task")["label"].nunique()
    task = str(classes.idxmax())
    rows = table[table["task"] == task]
    seed = config.random_seeds[0]
    shown = {"this encoder": ENCODER, f"untrained encoder, seed {seed}": f"{RANDOM}_{seed}"}
    panels = {title: features.of(name, rows) for title, name in shown.items()}
    draw_projection(path, panels, rows["label"].tolist(), task)
