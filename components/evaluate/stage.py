"""The evaluate stage: what the tasks found, in one table, one file of metrics and one report."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from components.command import data_dir
from components.ct.grid import GridConfig
from components.ct.labels.stored import label_map_of
from components.evaluate.cases import build_cases, write_cases
from components.evaluate.falls import falls_of
from components.evaluate.features import write_features
from components.evaluate.gallery import GROUPS, Picture, draw_groups, draw_overview, draw_projection, draw_task
from components.evaluate.layout import Layout, read_cases, read_places, table
from components.evaluate.published import PublishedConfig
from components.evaluate.report import Beside, Evaluated, part_of, render_report
from components.evaluate.subgroups import COLUMNS, blocks_of, compare, groups_of
from components.evaluate.task import CASES, FIGURES, METRICS, PLOTS, judge_task
from components.evaluate.untrained import untrained_encoders, write_untrained
from components.figures.families import holm
from components.files import read_json, sha256_file, write_json, write_text
from components.models.embed import Embedder, described
from components.settings import load_part, load_stage, shards
from components.sources.sets import sets_of
from components.tables import write_table
from components.tasks.adds import BOTH
from components.tasks.classify import ClassifyConfig
from components.tasks.config import EvaluateConfig
from components.tasks.features import Features, Volumes
from components.tasks.kinds import kind_of, measures, tasks_of
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
    collect(line, tasks_of(line, sets_of(line)), layout, config, volumes, beside_of(line))


def beside_of(line: str) -> Beside:
    """What is told beside a line's figures. Raises UserError where they are missing."""
    curated, cohort = table(data_dir(line, "curate") / "curated.parquet"), data_dir(line, "cohort")
    receipts = [table(data_dir(line, "acquire", shard) / "receipt.parquet") for shard in shards()]
    headers = pd.concat(receipts, ignore_index=True)
    published = load_stage(PublishedConfig, line, "published").figures
    masks, sets = read_json(data_dir(line, "curate") / "labels.json"), read_json(cohort / "labelled.json")
    return Beside(curated, sets, headers, table(cohort / "labelled.parquet"), published, masks)


def evaluate(
    inputs: Inputs, tasks: Mapping[str, Any], embedder: Embedder, layout: Layout, beside: Beside | None = None
) -> None:
    """All stages of evaluation in a row, for any encoder: cases, features, every task, the report.

    Args:
        inputs: of the line.
        tasks: by name.
        embedder: that is judged.
        layout: where everything is written.
        beside: what the report tells of the data; None for what ``inputs`` holds.

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
    collect(inputs.line, tasks, layout, config, volumes, beside or Beside(inputs.curated, {}))


def collect(
    line: str, tasks: Mapping[str, Any], layout: Layout, config: EvaluateConfig, volumes: Volumes, beside: Beside
) -> None:
    """Write ``tasks.parquet``, ``cases.parquet``, ``table.parquet``, ``subgroups.csv``, ``plots``, ``metrics.json``,
    ``primary.json`` and ``report.html``."""
    built = {name: read_cases(layout.cases, name) for name in tasks}
    found = {name: read_json(layout.task(name) / METRICS) for name in tasks}
    rows = task_table([of.table for of in built.values()])
    figures = _together([pd.read_csv(layout.task(name) / FIGURES) for name in tasks])
    cases = _together([table(layout.task(name) / CASES) for name in tasks])
    out = layout.evaluate
    shutil.rmtree(out / "plots", ignore_errors=True)  # those of a task that is no more
    write_table(out / "tasks.parquet", rows)
    write_table(out / "cases.parquet", cases)
    write_table(out / "table.parquet", figures)
    write_text(out / "plots" / "figures.csv", figures.to_csv(index=False, lineterminator="\n"))
    of_tasks = {part: numbers for of in found.values() for part, numbers in of["tasks"].items()}
    primary = {part: figure for of in found.values() for part, figure in of["primary"].items()}
    worse = holm([numbers[primary[part]]["p_worse"] for part, numbers in of_tasks.items()])
    metrics: dict[str, Any] = {
        "line": line,
        "patients": int(rows["patient"].nunique()),
        "evaluation_data": evaluation_digest(out / "tasks.parquet", rows, volumes),
        "tasks": of_tasks,
        "primary": primary,
        "adds_to": {part: of_part for of in found.values() for part, of_part in of.get("adds_to", {}).items()},
        "peers": {part: of_part for of in found.values() for part, of_part in of.get("peers", {}).items()},
        "worse": {part: round(float(p), DIGITS) for part, p in zip(of_tasks, worse, strict=True)},
        "not_evaluated": {part: why for of in built.values() for part, why in of.not_evaluated.items()},
        "too_few": sorted({part for of in built.values() for part in of.too_few}),
        "lower_is_better": sorted(name for name, measure in measures().items() if measure.lower_is_better),
        "falls": falls_of(tasks, of_tasks, measures(), tested(rows)),
    }
    groups = groups_of(rows, beside.headers, beside.labelled)
    subgroups, metrics["subgroups"] = _subgroups(tasks, metrics["tasks"], cases, groups, config)
    write_text(out / "subgroups.csv", subgroups.to_csv(index=False, lineterminator="\n"))
    write_json(out / "metrics.json", metrics)
    write_json(out / "primary.json", _at_a_glance(metrics))
    single = figures[~figures["method"].str.contains(BOTH, regex=False)]
    evaluated = Evaluated(line, tasks, metrics, single, cases, rows, _remarks(built, found), config, subgroups)
    features = Features.read(read_places(layout.cases), layout.features, layout.untrained)
    write_text(out / "report.html", render_report(evaluated, beside, _draw(layout, evaluated, found, features)))


def _subgroups(
    tasks: Mapping[str, Any], judged: Mapping[str, Any], cases: pd.DataFrame, groups: pd.DataFrame,
    config: EvaluateConfig,
) -> tuple[pd.DataFrame, dict[str, Any]]:  # fmt: skip
    """The table of all subgroups, and every task's and part's worst gaps by attribute."""
    tables, gaps = [pd.DataFrame(columns=COLUMNS)], {}
    for name, task in tasks.items():
        for block in blocks_of(part_of(name, cases), kind_of(task).figures, groups, judged):
            table, gaps[block.name] = compare(block, config)
            tables.append(table)
    return pd.concat(tables[1:] or tables, ignore_index=True), gaps


def tested(rows: pd.DataFrame) -> dict[str, int]:
    """Task, or part of one, to how many test patients it has; of a mean over parts, those of all its parts. ``rows``:
    the task table."""
    test = rows[rows["split"] == "test"]
    whole = test.assign(task=test["task"].str.rpartition("/")[0])
    counts = [table.groupby("task")["patient"].nunique() for table in (whole[whole["task"] != ""], test)]
    return {str(task): int(of) for table in counts for task, of in table.items()}


def _at_a_glance(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Of every task its first figure, by how much it is above untrained encoders, and by how much it falls on each
    external set (``fall_<set>``): what ``dvc metrics`` shows, a column a number. Parts of a task that has a figure of
    the whole are left to ``metrics.json``."""
    tasks, falls = metrics["tasks"], metrics["falls"]
    return {
        task: {name: figures[name]["value"], "above_untrained": figures[name]["difference"]}
        | {f"fall_{site}": of[name]["fall"] for site, of in falls.get(task, {}).items() if name in of}
        for task, figures in tasks.items()
        for name in [metrics["primary"][task]]
        if not ("/" in task and task.split("/")[0] in tasks)
    }


def _draw(
    layout: Layout, evaluated: Evaluated, found: Mapping[str, Any], features: Features
) -> dict[str, list[Picture]]:
    """The pictures of every task, and under '' those of all."""
    plots, metrics = layout.evaluate / "plots", evaluated.metrics
    pictures = {"": draw_overview(plots, metrics, measures()), GROUPS: []}
    for name, task in evaluated.tasks.items():
        figures, cases, rows = (part_of(name, table) for table in (evaluated.figures, evaluated.cases, evaluated.rows))
        pictures[name] = []
        if not figures.empty:
            pictures[name] += draw_task(plots, name, metrics, kind_of(task).figures, figures, cases)
        if isinstance(task, ClassifyConfig) and rows["task"].nunique() == 1:
            seed = evaluated.config.random_seeds[0]
            shown = {"This encoder": ENCODER, f"Untrained encoder, seed {seed}": f"{RANDOM}_{seed}"}
            panels = {title: features.of(method, rows) for title, method in shown.items()}
            pictures[name] += draw_projection(plots, name, panels, rows["label"].tolist())
        pictures[GROUPS] += _draw_groups(plots, name, evaluated)
        pictures[name] += [
            Picture(
                layout.task(name) / PLOTS / f"{picture}.png", caption, f"{name}, {picture.replace('_', ' ')}: {caption}"
            )
            for picture, caption in found[name]["pictures"].items()
        ]
    return pictures


def _draw_groups(plots: Path, name: str, evaluated: Evaluated) -> list[Picture]:
    own = part_of(name, evaluated.subgroups)
    parts = own["task"].unique().tolist()
    pictures = []
    for part in [name] if name in parts else parts:
        table = own[own["task"] == part]
        figure = str(table["figure"].iloc[0])
        whole = evaluated.metrics["tasks"][part][figure]["value"]
        pictures += draw_groups(plots, part, measures()[figure].title, table, whole)
    return pictures


def _together(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    kept = [part for part in parts if len(part)]
    joined = pd.concat(kept or parts[:1], ignore_index=True)
    return joined.sort_values([str(name) for name in joined if name not in ("value", "low", "high")], ignore_index=True)


def _remarks(built: Mapping[str, Built], found: Mapping[str, Any]) -> dict[str, str]:
    told = [of.remarks for of in built.values()] + [of["remarks"] for of in found.values()]
    parts = sorted({part for of in told for part in of})
    return {part: " ".join(of[part] for of in told if part in of) for part in parts}


def evaluation_digest(tasks_file: Path, table: pd.DataFrame, volumes: Volumes) -> str:
    """Hex SHA-256 of the task table's bytes, of every volume it names and of its label map: figures compare only where
    it is equal."""
    digest = hashlib.sha256(sha256_file(tasks_file).encode())
    for name in sorted(table["volume"].unique()):
        digest.update(f"\n{name}\0{volumes.sha256(name)}".encode())
        if (labels := label_map_of(Path(name))) is not None:
            digest.update(f"\0{sha256_file(labels)}".encode())
    return digest.hexdigest()
