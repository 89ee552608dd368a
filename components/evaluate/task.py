"""``python -m components.evaluate.task``, stage ``task``: how the encoder does at one task, beside all others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from components.command import run_stage
from components.ct.grid import GridConfig
from components.evaluate.layout import Layout, read_cases, read_places
from components.evaluate.peers import PeersConfig, beside_peers, peers_of
from components.evaluate.untrained import untrained_encoders
from components.files import replacing, sha256_file, write_json, write_text
from components.models.embed import WEIGHTS, Embedder, described
from components.models.heads import Head
from components.models.segment_head import SegmentHead
from components.settings import load_part, load_stage
from components.sources.sets import sets_of
from components.tables import write_table
from components.tasks.config import EvaluateConfig
from components.tasks.features import Features, Peer, Volumes
from components.tasks.interface import Outcome, Question
from components.tasks.kinds import kind_of, tasks_of
from components.tasks.pictures import save
from components.tasks.scores import CASE_COLUMNS, ENCODER, figure_table, task_metrics

log = logging.getLogger(__name__)

FIGURES, CASES, METRICS, PLOTS, HEAD = "figures.csv", "cases.parquet", "metrics.json", "plots", "head"


def run(line: str, name: str) -> None:
    """Judge the line's encoder at one task and write ``data/<line>/tasks/<name>``.

    Raises:
        UserError: an input is missing.
    """
    layout = Layout.of(line)
    task = tasks_of(line, sets_of(line))[name]
    folder, config = layout.features / "encoder", load_stage(EvaluateConfig, line, "evaluate")
    embed = described(folder)
    encoders = {ENCODER: lambda: Embedder.load(folder, config.device)}
    volumes = Volumes(config, load_part(GridConfig, line, "preprocess"), embed.input.size_vox)
    peers = peers_of(line, load_stage(PeersConfig, line, "peers"), embed.input, config.device)
    judge_task(line, name, task, config, layout, encoders | untrained_encoders(embed, config), volumes, peers)


def judge_task(
    line: str,
    name: str,
    task: Any,
    config: EvaluateConfig,
    layout: Layout,
    encoders: Mapping[str, Callable[[], Embedder]],
    volumes: Volumes,
    peers: Mapping[str, Callable[[], Peer]] | None = None,
) -> None:
    """Judge the encoders at a task whose cases and features are written.

    Args:
        line, name: of the task.
        task: its block.
        config: of evaluation.
        layout: where cases and features lie, and results go.
        encoders: by method, see :class:`components.tasks.interface.Question`.
        volumes: opens what the cases name.
        peers: by method, as ``encoders``.
    """
    built = read_cases(layout.cases, name)
    features = Features.read(read_places(layout.cases), layout.features, layout.untrained)
    question = Question(line, name, task, built.table, config, features, encoders, volumes, peers or {})
    with threadpool_limits(1):  # sums in the same order, whatever the number of cores
        outcome = Outcome([], no_cases()) if built.table.empty else kind_of(task).judge(question)
        write_outcome(layout.task(name), task, outcome, layout.features / "encoder" / WEIGHTS)


def no_cases() -> pd.DataFrame:
    """The table of cases of a task that has none."""
    return pd.DataFrame({name: pd.Series(dtype="str") for name in CASE_COLUMNS}).astype({"score": "float64"})


def write_outcome(folder: Path, task: Any, outcome: Outcome, encoder: Path) -> None:
    """Write figures, cases, metrics, pictures and heads of a task; ``encoder`` is the file whose features it judged."""
    measures = kind_of(task).figures
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        table = figure_table(outcome.scores, measures)
        write_text(temporary / FIGURES, table.to_csv(index=False, lineterminator="\n"))
        for name, rows in sorted(outcome.tables.items()):
            write_text(temporary / f"{name}.csv", rows.to_csv(index=False, lineterminator="\n"))
        write_table(
            temporary / CASES,
            outcome.cases.sort_values(["task", "method", "probe", "case", "of_class"], ignore_index=True),
        )
        captions = {}
        for picture, (figure, caption) in sorted(outcome.pictures.items()):
            save(figure, temporary / PLOTS / f"{picture}.png")
            captions[picture] = caption
        for head in outcome.heads.values():
            write_head(temporary / HEAD, head, sha256_file(encoder))
        tasks = task_metrics(outcome.scores, measures)
        primary = {part: next(name for name in measures if name in of) for part, of in tasks.items()}
        found = {"tasks": tasks, "primary": primary, "remarks": outcome.remarks, "pictures": captions}
        peers = beside_peers(outcome.scores)
        write_json(temporary / METRICS, outcome.found | found | ({"peers": peers} if peers else {}))


def write_head(folder: Path, head: Head | SegmentHead, encoder: str) -> None:
    """Write a head below the task's folder of heads, by the name of its part: ``ich`` of ``findings/ich``."""
    told = head.description.model_copy(update={"encoder": encoder})
    replace(head, description=told).write(  # type: ignore[arg-type]  # each has its own kind of description
        folder / told.part.removeprefix(told.task).removeprefix("/")
    )


if __name__ == "__main__":
    run_stage("task", "Judge the encoder at one task, beside untrained encoders and baselines.", None, by_task=run)
