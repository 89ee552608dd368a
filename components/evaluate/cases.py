"""``python -m components.evaluate.cases``, stage ``cases``: what each task of a line asks, and where to look for it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.command import run_stage
from components.errors import UserError
from components.evaluate.layout import ACCOUNT, PLACES, TABLE, Layout, inputs_of
from components.files import replacing, write_json
from components.sources.sets import sets_of
from components.tables import write_table
from components.tasks.features import places_of
from components.tasks.kinds import kind_of, mistaken_index, of_points, tasks_of
from components.tasks.table import Built, Inputs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """A task and its cases, as they were written."""

    task: Any
    built: Built


def run(line: str) -> None:
    """Write the cases of every task of the line to ``data/<line>/cases``.

    Raises:
        UserError: an input is missing, the tasks are not those of ``tasks``, or cases cannot be built.
    """
    for mistake in mistaken_index():
        raise UserError(mistake)
    inputs, layout, tasks = inputs_of(line), Layout.of(line), tasks_of(line, sets_of(line))
    write_cases(layout.cases, build_cases(inputs, tasks))
    for folder in sorted(layout.tasks.glob("[!.]*")):  # of a task that is no more: stage `evaluate` depends on them all
        if folder.name not in tasks:
            shutil.rmtree(folder)


def build_cases(inputs: Inputs, tasks: Mapping[str, Any]) -> dict[str, Asked]:
    """The cases of every task, by its name.

    Raises:
        UserError: a task of points is asked of an encoder that sees whole scans.
    """
    for mistake in of_points(inputs.line, inputs.sees, tasks):
        raise UserError(mistake)
    inputs = replace(inputs, tasks=tasks)
    found = {name: Asked(task, kind_of(task).cases(name, task, inputs)) for name, task in tasks.items()}
    for name, asked in found.items():
        rows = asked.built.table
        log.info("task %s: %d cases of %d patients", name, len(rows), rows["patient"].nunique())
        for part, why in asked.built.not_evaluated.items():
            log.warning("task %s not evaluated: %s", part, why)
    return found


def write_cases(folder: Path, asked: Mapping[str, Asked]) -> None:
    """Write each task's table, what became of the rest of it, and the places whose features are wanted."""
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        for name, of in asked.items():
            write_table(temporary / name / TABLE, of.built.table)
            built = of.built
            account = {"not_evaluated": built.not_evaluated, "remarks": built.remarks, "too_few": built.too_few}
            write_json(temporary / name / ACCOUNT, account)
        placed = [of.built.table for of in asked.values() if kind_of(of.task).placed]
        write_table(temporary / PLACES, places_of(placed))


if __name__ == "__main__":
    run_stage("cases", "Say which places and scans each task asks for, and what is left out.", run)
