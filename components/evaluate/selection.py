"""Which of a run's encoders goes on: the one that a task tells apart best on the training half of its cases.

CT-FM chose its checkpoint by a downstream task (arXiv 2501.09001). Test cases take no part, or their figures would be
those of the luckiest of several encoders.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from components.errors import UserError
from components.models.embed import Embedder
from components.tasks.classify import FIGURES
from components.tasks.config import EvaluateConfig, SelectionConfig
from components.tasks.features import Volumes, encoder_method, extract, places_of
from components.tasks.judging import score_task
from components.tasks.nodules import half_of
from components.tasks.pictures import STYLE
from components.tasks.table import Built, usable


def selection_figures(
    table: pd.DataFrame, candidates: Mapping[int, Embedder], volumes: Volumes, config: EvaluateConfig
) -> pd.DataFrame:
    """Each candidate's figure on training cases: one half of the patients judged by the other, and the reverse.

    Args:
        table: cases of the tasks that classify; its test cases are not looked at.
        candidates: step to encoder, of which there are several.
        volumes: opens what the table names.
        config: ``config.selection`` names task and figure.

    Returns:
        Sorted by step: ``step`` and ``figure``, the mean over the two directions and over the task's parts.

    Raises:
        UserError: no such task, or too few patients in its training half.
    """
    wanted = config.selection
    assert wanted is not None
    of_task = (table["task"] == wanted.task) | table["task"].str.startswith(f"{wanted.task}/")
    rows = table[of_task & (table["split"] == "train")]
    halves = rows["patient"].map(lambda patient: half_of(config.seed + 1, patient))
    directions = (halves, halves.map({"train": "test", "test": "train"}))
    tables = [usable(Built(rows.assign(split=split)), config.minimum_patients).table for split in directions]
    if any(part.empty for part in tables):
        raise UserError(
            f"evaluate.selection: task {wanted.task!r} has no two classes of {config.minimum_patients} patients in "
            "each half of its training cases; name another task, or null"
        )
    methods = {str(step): encoder_method(embedder) for step, embedder in candidates.items()}
    patch = next(iter(candidates.values())).config.input.size_vox
    features = extract(places_of([rows]), methods, volumes, patch)
    found = pd.DataFrame(
        [
            {"step": int(score.method), "figure": score.value}
            for table_of in tables
            for task, part in table_of.groupby("task")
            for score in score_task(str(task), part, {m: features.of(m, part) for m in methods}, config)[0]
            if score.figure == wanted.figure
        ]
    )
    return found.groupby("step")["figure"].mean().round(6).reset_index()


def selected_step(figures: pd.DataFrame) -> int:
    """The step of the best figure; of equals the first."""
    return int(figures["step"].iloc[int(figures["figure"].argmax())])


def draw_selection(figures: pd.DataFrame, wanted: SelectionConfig) -> Figure:
    """The figure over the steps, the chosen one marked."""
    best = figures[figures["step"] == selected_step(figures)]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6, 3))
        axes.plot(figures["step"], figures["figure"], marker="o", color="#6b7280")
        axes.plot(best["step"], best["figure"], marker="o", color="#c2410c", linestyle="none")
        axes.annotate("chosen", (best["step"].item(), best["figure"].item()), (0, 8), textcoords="offset points")
        axes.set(title=f"{wanted.task}, training cases", xlabel="step", ylabel=FIGURES[wanted.figure].title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(y=0.2)
    return figure
