"""Parameters of evaluation that all tasks of a line share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from components.errors import UserError
from components.models.pooling import Pooling
from components.settings import Seed, StageConfig
from components.sources.lidc import LidcPin

TASKS = "tasks"
TASK_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
LINE = "line"  # as the set of a task: the line's own evaluation scans, with the annotations of their source
STRUCTURE = "structure"  # in place of a column: what a case is says the label map that it lies in
Window = Annotated[float, Field(ge=2, le=100)]


class HistogramConfig(StageConfig):
    """The intensity-histogram baseline: equal bins between two HU; what lies outside counts in the end bins."""

    bins: Annotated[int, Field(ge=2, le=512)]
    low_hu: Annotated[int, Field(ge=-1024, le=3071)]
    high_hu: Annotated[int, Field(ge=-1023, le=3072)]

    @model_validator(mode="after")
    def _range(self) -> HistogramConfig:
        if self.low_hu >= self.high_hu:
            raise ValueError(f"low_hu {self.low_hu} is not allowed with high_hu {self.high_hu}: the lower first")
        return self


class SelectionConfig(StageConfig):
    """The figure by which one of a run's encoders is chosen, on the training half of a task.

    Attributes:
        task: as in the task table, or the first part of several: organs, findings, lidc_nodules/texture.
    """

    task: str
    figure: str


class EvaluateConfig(LidcPin):
    """How frozen features are judged. Everything here is fixed before any figure is seen.

    Attributes:
        selection: which of the encoders that ``pretrain.candidates`` keeps goes on; null for the last one.
        device: where encoders run: ``auto`` takes a GPU where there is one, ``cuda`` ends with a line where none is.
        pooling: from the encoder's feature maps to its vector, the same for untrained ones and the release: ``own``,
            by which it was trained; ``levels``, the means of all levels; ``centre``, also mean and maximum of each
            level's middle, for what is small and lies at the point.
        seed: of the bootstrap and of the nodules' split.
        random_seeds: one untrained encoder per seed, of the same architecture. How much their figures differ counts in
            every comparison; with few of them only a large difference is one.
        bootstrap: replicates, drawn over patients.
        linear_c: inverse strength of the linear probe's L2 penalty, for features of mean squared norm 1.
        neighbours: k of the nearest-neighbour probe.
        minimum_patients: a class with fewer patients in train or in test is left out, and said to be.
        histogram: the intensity-histogram baseline.
        centre_mm: side of the central box of the HU-statistics baseline.
        nodule_window_mm: fixed window round a nodule along superior, posterior, left; fixed, since the extent
            of the files grows with the nodule and would tell its size.
    """

    selection: SelectionConfig | None
    device: Literal["auto", "cuda", "cpu"]
    pooling: Pooling
    seed: Seed
    random_seeds: Annotated[tuple[Seed, ...], Field(min_length=2, max_length=200)]
    bootstrap: Annotated[int, Field(ge=100, le=20_000)]
    linear_c: Annotated[float, Field(gt=0, le=1e4)]
    neighbours: Annotated[int, Field(ge=1, le=100)]
    minimum_patients: Annotated[int, Field(ge=2, le=1000)]
    histogram: HistogramConfig
    centre_mm: Annotated[float, Field(ge=1, le=300)]
    nodule_window_mm: tuple[Window, Window, Window]

    @field_validator("random_seeds")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each once")
        return value


def check_reserved(columns: Iterable[str], where: str) -> None:
    """Raise UserError where a table has a column that ``label: structure`` could be taken to ask for."""
    if STRUCTURE in set(columns):
        raise UserError(
            f"{where} {STRUCTURE!r} is not allowed: it asks for the structures of the set's masks, and the table "
            "has a column of that name; rename the column"
        )
