"""Parameters of evaluation on frozen features."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from components.settings import PARAMS_FILE, ParamsError, Seed, StageConfig, did_you_mean, parse, read_yaml, shown
from components.sources.lidc import ROOT as LIDC_ROOT
from components.sources.lidc import LidcPin
from components.sources.sets import LabelledSet

Task = Literal["organs", "lesions", "findings", "stability", "nodules"]
Figure = Literal[
    "linear_auc",
    "linear_balanced_accuracy",
    "knn_auc",
    "knn_balanced_accuracy",
    "retrieval_map",
    "retrieval_p1",
    "retrieval_p5",
]
FIGURES: tuple[str, ...] = get_args(Figure)
TASKS = "tasks"
TASK_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
BUILT_IN = (*get_args(Task), LIDC_ROOT)
OF_PAIRS = ("cosine", "identification")  # the figures of stability, which has nothing to classify
RATED = ("texture", "calcification", "malignancy")  # of nodules
OF_POINTS: frozenset[Task] = frozenset({"organs", "lesions", "nodules"})
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
    figure: Figure


class ClassifyConfig(StageConfig):
    """A block of ``<line>.tasks``: which class a labelled scan is of.

    Attributes:
        set: the labelled set.
        label: the column of its table that holds the class of each scan.
    """

    kind: Literal["classify"]
    set: Annotated[str, Field(min_length=1)]
    label: Annotated[str, Field(min_length=1)]


class EvaluateConfig(LidcPin):
    """How frozen features are judged. Everything here is fixed before any figure is seen.

    Attributes:
        tasks: plug-ins of ``components.evaluate.sources``. Those of points (organs, lesions, nodules) want an encoder
            that sees crops.
        selection: which of the encoders that ``pretrain.candidates`` keeps goes on; null for the last one.
        device: where encoders run: ``auto`` takes a GPU where there is one, ``cuda`` ends with a line where none is.
        seed: of the bootstrap and of the nodules' split.
        random_seeds: one randomly initialised encoder per seed; the baseline is the mean of their figures.
        bootstrap: replicates, drawn over patients.
        linear_c: inverse strength of the linear probe's L2 penalty, for features of mean squared norm 1.
        neighbours: k of the nearest-neighbour probe.
        minimum_patients: a class with fewer patients in train or in test is left out, and said to be.
        histogram: the intensity-histogram baseline.
        centre_mm: side of the central box of the HU-statistics baseline.
        stability_gallery: other patients' volumes among which a retest must be found; 0 leaves whole volumes out.
        nodule_window_mm: fixed window round a nodule along superior, posterior, left; fixed, since the extent
            of the files grows with the nodule and would tell its size.
    """

    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]
    selection: SelectionConfig | None
    device: Literal["auto", "cuda", "cpu"]
    seed: Seed
    random_seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=20)]
    bootstrap: Annotated[int, Field(ge=100, le=20_000)]
    linear_c: Annotated[float, Field(gt=0, le=1e4)]
    neighbours: Annotated[int, Field(ge=1, le=100)]
    minimum_patients: Annotated[int, Field(ge=2, le=1000)]
    histogram: HistogramConfig
    centre_mm: Annotated[float, Field(ge=1, le=300)]
    stability_gallery: Annotated[int, Field(ge=0, le=10_000)]
    nodule_window_mm: tuple[Window, Window, Window]

    @field_validator("random_seeds", "tasks")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each once")
        return value

    @model_validator(mode="after")
    def _of_tasks(self) -> EvaluateConfig:
        if self.lidc_nodules is not None and "nodules" not in self.tasks:
            raise ValueError("lidc_nodules is pinned, but tasks has no 'nodules': add it, or set lidc_nodules to null")
        return self


def mistaken_tasks(line: str, sees: str, config: EvaluateConfig) -> list[str]:
    """A line of text where tasks of points are asked of an encoder that sees whole scans."""
    wrong = [task for task in config.tasks if task in OF_POINTS and sees == "scan"]
    if not wrong:
        return []
    return [
        f"params.yaml: {line}.evaluate.tasks: {shown(wrong)} is not allowed with {line}.pretrain.input.sees 'scan': "
        "they are of points, and such an encoder has one vector for a whole scan"
    ]


def tasks_of(line: str, sets: Mapping[str, LabelledSet], path: Path = PARAMS_FILE) -> dict[str, ClassifyConfig]:
    """The user's own tasks of a line, in their order.

    Args:
        line: model line.
        sets: its labelled sets.
        path: of the file.

    Raises:
        ParamsError: one line per mistake.
    """
    of_line = read_yaml(path).get(line)
    blocks = of_line.get(TASKS) if isinstance(of_line, dict) else None
    if not isinstance(blocks, dict):
        raise ParamsError(f"params.yaml: {line}.{TASKS}: {shown(blocks)} is not allowed: a block per task, or {{}}")
    found, mistakes = {}, []
    for name, values in blocks.items():
        where = f"{line}.{TASKS}.{name}"
        if not isinstance(name, str) or not TASK_NAME.fullmatch(name) or name.startswith(BUILT_IN):
            mistakes.append(
                f"params.yaml: {line}.{TASKS}: {shown(name)} is not allowed: a-z, 0-9 and _, a letter first, at most "
                f"40, and not beginning with {', '.join(BUILT_IN)}"
            )
            continue
        try:
            found[name] = parse(ClassifyConfig, values, where)
        except ParamsError as error:
            mistakes.append(str(error))
            continue
        if found[name].set not in sets:
            allowed = f"one of {', '.join(sets)}" if sets else f"{line}.sets has none yet"
            told = f"{shown(found[name].set)} is not allowed: {allowed}{did_you_mean(found[name].set, list(sets))}"
            mistakes.append(f"params.yaml: {where}.set: {told}")
            continue
        config = sets[found[name].set].config
        if config.role == "external":
            mistakes.append(f"params.yaml: {where}.set: {shown(found[name].set)} is external: nothing is trained on it")
        if found[name].label == config.labels.column:
            mistakes.append(f"params.yaml: {where}.label: {shown(found[name].label)} is no label: it names the scans")
    if mistakes:
        raise ParamsError("\n".join(mistakes))
    return found
