"""The evaluate stage: task table, features, figures, pictures, report."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from components.command import data_dir
from components.ct.grid import GridConfig
from components.errors import UserError
from components.evaluate.config import EvaluateConfig, mistaken_tasks, tasks_of
from components.evaluate.features import Features, Method, Volumes, baselines, encoder_method, extract
from components.evaluate.own import classify
from components.evaluate.plots import draw_all, draw_projection, save
from components.evaluate.report import render_report
from components.evaluate.scores import ENCODER, RANDOM, figure_table, score_all, task_metrics
from components.evaluate.selection import draw_selection, selected_step, selection_figures
from components.evaluate.sources import SOURCES
from components.evaluate.tasks import STABILITY, Built, Inputs, check_splits, task_table, usable
from components.files import sha256_file, write_json, write_text
from components.models.embed import Embedder, described, load_candidates, random_embedder
from components.settings import load_part, load_stage
from components.sources.sets import sets_of
from components.tables import read_table, write_table

log = logging.getLogger(__name__)


def run(line: str) -> None:
    """Evaluate the line's encoder and write ``data/<line>/evaluate``.

    Raises:
        UserError: an input is missing, or the nodules are not the pinned ones.
    """
    config = load_stage(EvaluateConfig, line, "evaluate")
    preprocess = load_part(GridConfig, line, "preprocess")
    curate = data_dir(line, "curate")
    curated, annotations = _table(curate / "curated.parquet"), _table(curate / "annotations.parquet")
    encoder = data_dir(line, "pretrain") / "encoder"
    inputs = Inputs(line, described(encoder).input.sees, curated, annotations, config, preprocess)
    out = data_dir(line, "evaluate")
    built = build_tasks(inputs)
    embedder = chosen(inputs, built.table, encoder, out)
    evaluate(inputs, built, embedder, out)
    embedder.save(out / "encoder")  # what was judged is what is released


def chosen(inputs: Inputs, table: pd.DataFrame, folder: Path, out: Path) -> Embedder:
    """The encoder that ``evaluate.selection`` names: the last one, or one of ``pretrain.candidates``.

    Writes ``selection.csv`` and ``plots/selection.png`` to ``out`` where there is a choice.

    Raises:
        UserError: there is nothing to choose from.
    """
    selection, device = inputs.config.selection, inputs.config.device
    if selection is None:
        return Embedder.load(folder, device)
    candidates = load_candidates(folder, device)
    if len(candidates) < 2:
        raise UserError(
            f"{inputs.line}.evaluate.selection: the run kept its last encoder only; set "
            f"{inputs.line}.pretrain.candidates above 1, or the selection to null"
        )
    volumes = Volumes(inputs.config, inputs.preprocess, next(iter(candidates.values())).config.input.size_vox)
    figures = selection_figures(table, candidates, volumes, inputs.config)
    step = selected_step(figures)
    log.info("encoder of step %d chosen of %s, by %s of %s", step, sorted(candidates), selection.figure, selection.task)
    write_text(out / "selection.csv", figures.to_csv(index=False, lineterminator="\n"))
    save(draw_selection(figures, selection), out / "plots" / "selection.png")
    return candidates[step]


def evaluate(inputs: Inputs, built: Built, embedder: Embedder, out: Path) -> None:
    """Score the tasks, and write every output to ``out``."""
    config = inputs.config
    log.info(
        "%d cases in %d tasks, %d tasks not evaluated",
        len(built.table), built.table["task"].nunique(), len(built.not_evaluated),
    )  # fmt: skip
    patch = embedder.config.input.size_vox
    volumes = Volumes(config, inputs.preprocess, patch)
    features = extract(built.table, _methods(embedder, config), volumes, patch)
    with threadpool_limits(1):  # sums in the same order, whatever the number of cores
        scored = score_all(built.table, features, config)
        figures = figure_table(scored.scores)
        tasks = task_metrics(scored.scores)
        write_table(out / "tasks.parquet", built.table)
        write_table(out / "cases.parquet", scored.cases.sort_values(["task", "method", "probe", "case", "of_class"]))
        write_table(out / "table.parquet", figures)
        plots = out / "plots"
        write_text(plots / "figures.csv", figures.to_csv(index=False, lineterminator="\n"))
        draw_all(plots, figures, scored.cases, _differences(tasks))
        _project(plots / "projection.png", built.table, features, config)
    metrics = {
        "line": inputs.line,
        "patients": int(built.table["patient"].nunique()),
        "evaluation_data": evaluation_digest(out / "tasks.parquet", built.table, volumes),
        "tasks": tasks,
        "not_evaluated": built.not_evaluated,
    }
    write_json(out / "metrics.json", metrics)
    sources = sorted(inputs.scans()["source"].unique())
    averaged = sorted(task.removeprefix("findings/") for task in tasks if task.startswith("findings/"))
    remarks = built.remarks | {"findings": f"Mean over {len(averaged)} findings: {', '.join(averaged)}."}
    html = render_report(plots, metrics, figures, built.table, remarks, sources, config.bootstrap)
    write_text(out / "report.html", html)


def build_tasks(inputs: Inputs) -> Built:
    """The usable task table of all of the line's plug-ins."""
    for mistake in mistaken_tasks(inputs.line, inputs.sees, inputs.config):
        raise UserError(mistake)
    parts = [SOURCES[task](inputs) for task in inputs.config.tasks] + own_tasks(inputs)
    together = Built(
        table=task_table(part.table for part in parts),
        not_evaluated={task: reason for part in parts for task, reason in part.not_evaluated.items()},
        remarks={task: remark for part in parts for task, remark in part.remarks.items()},
    )
    check_splits(together.table)
    return usable(together, inputs.config.minimum_patients)


def own_tasks(inputs: Inputs) -> list[Built]:
    """The tasks of ``<line>.tasks``, of the labelled sets."""
    sets = sets_of(inputs.line)
    tasks = tasks_of(inputs.line, sets)
    if not tasks:
        return []
    labelled = _table(data_dir(inputs.line, "cohort") / "labelled.parquet")
    return [classify(name, task, sets[task.set], labelled, inputs.curated) for name, task in tasks.items()]


def evaluation_digest(tasks_file: Path, table: pd.DataFrame, volumes: Volumes) -> str:
    """Hex SHA-256 of the task table's bytes and of every volume it names: figures compare only where it is equal."""
    digest = hashlib.sha256(sha256_file(tasks_file).encode())
    for name in sorted(table["volume"].unique()):
        digest.update(f"\n{name}\0{volumes.sha256(name)}".encode())
    return digest.hexdigest()


def _table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"{path}: not found; run `dvc repro` so that the stages before this one are done")
    return read_table(path)


def _methods(embedder: Embedder, config: EvaluateConfig) -> dict[str, Method]:
    encoders = {ENCODER: embedder}
    encoders |= {f"{RANDOM}_{seed}": random_embedder(embedder, seed) for seed in config.random_seeds}
    return {name: encoder_method(own) for name, own in encoders.items()} | baselines(config)


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
    probes = table[~table["task"].str.startswith(STABILITY)]
    if probes.empty:
        draw_projection(path, {}, [], "")
        return
    classes = probes.groupby("task")["label"].nunique()
    task = str(classes.idxmax())
    rows = probes[probes["task"] == task]
    seed = config.random_seeds[0]
    shown = {"this encoder": ENCODER, f"random encoder, seed {seed}": f"{RANDOM}_{seed}"}
    panels = {title: features.of(name, rows) for title, name in shown.items()}
    draw_projection(path, panels, rows["label"].tolist(), task)
