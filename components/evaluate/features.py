"""``python -m components.evaluate.features``, stage ``features``: the encoder that is released, and what it sees."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from components.command import data_dir, run_stage
from components.ct.grid import GridConfig
from components.errors import UserError
from components.evaluate.layout import Layout, read_cases, read_places
from components.evaluate.selection import draw_selection, selected_step, selection_figures
from components.files import replacing, write_text
from components.models.embed import WEIGHTS, Embedder, load_candidates
from components.settings import load_part, load_stage
from components.sources.sets import sets_of
from components.tasks.classify import ClassifyConfig
from components.tasks.config import EvaluateConfig
from components.tasks.features import Volumes, encoder_method, extract
from components.tasks.kinds import tasks_of
from components.tasks.pictures import save
from components.tasks.scores import ENCODER

log = logging.getLogger(__name__)


def run(line: str) -> None:
    """Choose the encoder and write it and its features to ``data/<line>/features``.

    Raises:
        UserError: an input is missing, or there is nothing to choose from.
    """
    layout, config = Layout.of(line), load_stage(EvaluateConfig, line, "evaluate")
    grid = load_part(GridConfig, line, "preprocess")
    folder = data_dir(line, "pretrain") / "encoder"
    with replacing(layout.features) as temporary:
        temporary.mkdir(parents=True)
        if config.selection is None:
            embedder = Embedder.load(folder, config.device).pooled_by(config.pooling)
        else:
            embedder = chosen(line, config, grid, folder, _classified(line, layout), temporary)
        write_features(
            temporary, read_places(layout.cases), embedder, Volumes(config, grid, embedder.config.input.size_vox)
        )
        if config.selection is None:  # the very bytes: of weights that were given, their file
            shutil.copyfile(folder / WEIGHTS, temporary / "encoder" / WEIGHTS)


def write_features(folder: Path, places: pd.DataFrame, embedder: Embedder, volumes: Volumes) -> None:
    """Write the encoder, for what was judged is what is released, and the features of every place."""
    found = extract(places, {ENCODER: encoder_method(embedder)}, volumes, embedder.config.input.size_vox)
    found.write(folder)
    embedder.save(folder / "encoder")


def _classified(line: str, layout: Layout) -> pd.DataFrame:
    tasks = tasks_of(line, sets_of(line))
    names = [name for name, task in tasks.items() if isinstance(task, ClassifyConfig)]
    return pd.concat([read_cases(layout.cases, name).table for name in names], ignore_index=True)


def chosen(
    line: str, config: EvaluateConfig, grid: GridConfig, folder: Path, table: pd.DataFrame, out: Path
) -> Embedder:
    """The encoder that ``evaluate.selection`` names, one of ``pretrain.candidates``.

    Writes ``selection.csv`` and ``selection.png`` to ``out``.

    Raises:
        UserError: there is nothing to choose from.
    """
    selection = config.selection
    assert selection is not None
    kept = load_candidates(folder, config.device)
    candidates: Mapping[int, Embedder] = {step: one.pooled_by(config.pooling) for step, one in kept.items()}
    if len(candidates) < 2:
        raise UserError(
            f"{line}.evaluate.selection: the run kept its last encoder only; set {line}.pretrain.candidates above 1, "
            "or the selection to null"
        )
    volumes = Volumes(config, grid, next(iter(candidates.values())).config.input.size_vox)
    figures = selection_figures(table, candidates, volumes, config)
    step = selected_step(figures)
    log.info("encoder of step %d chosen of %s, by %s of %s", step, sorted(candidates), selection.figure, selection.task)
    write_text(out / "selection.csv", figures.to_csv(index=False, lineterminator="\n"))
    save(draw_selection(figures, selection), out / "selection.png")
    return candidates[step]


if __name__ == "__main__":
    run_stage("features", "Choose the encoder and embed the cases by it.", run)
