"""Where the stages of evaluation write, and what the later ones of them read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from components.command import DATA, data_dir
from components.ct.grid import GridConfig
from components.errors import UserError
from components.files import read_json
from components.models.config import InputConfig
from components.settings import block_of, load_part, load_stage, parse
from components.tables import read_table
from components.tasks.config import EvaluateConfig
from components.tasks.table import Built, Inputs

TABLE, ACCOUNT, PLACES = "table.parquet", "account.json", "places.parquet"


@dataclass(frozen=True)
class Layout:
    """Folders of an evaluation.

    Attributes:
        root: ``data/<line>``, or where another encoder is evaluated on the line's data.
    """

    root: Path

    @classmethod
    def of(cls, line: str) -> Layout:
        """Of a line's own encoder."""
        return cls(DATA / line)

    @property
    def cases(self) -> Path:
        return self.root / "cases"

    @property
    def untrained(self) -> Path:
        return self.root / "untrained"

    @property
    def features(self) -> Path:
        return self.root / "features"

    @property
    def tasks(self) -> Path:
        return self.root / "tasks"

    def task(self, name: str) -> Path:
        return self.tasks / name

    @property
    def evaluate(self) -> Path:
        return self.root / "evaluate"


def inputs_of(line: str, view: InputConfig | None = None) -> Inputs:
    """What the cases of a line are built from.

    Args:
        line: model line.
        view: what the encoder sees; None for ``<line>.pretrain.input``.

    Raises:
        UserError: curation has not run.
    """
    if view is None:
        view = parse(InputConfig, block_of(line, "pretrain").get("input"), f"{line}.pretrain.input")
    curate = data_dir(line, "curate")
    return Inputs(
        line,
        view.sees,
        table(curate / "curated.parquet"),
        table(curate / "annotations.parquet"),
        load_stage(EvaluateConfig, line, "evaluate"),
        load_part(GridConfig, line, "preprocess"),
        table(data_dir(line, "cohort") / "labelled.parquet"),
    )


def table(path: Path) -> pd.DataFrame:
    """A table that an earlier stage wrote. Raises UserError where it is missing."""
    if not path.is_file():
        raise UserError(f"{path}: not found; run `dvc repro` so that the stages before this one are done")
    return read_table(path)


def read_cases(folder: Path, name: str) -> Built:
    """One task's cases. Raises UserError where stage ``cases`` has not run."""
    rows = table(folder / name / TABLE)
    return Built(rows, **read_json(folder / name / ACCOUNT))


def read_places(folder: Path) -> pd.DataFrame:
    """The places whose features are wanted. Raises UserError as :func:`read_cases`."""
    return table(folder / PLACES)
