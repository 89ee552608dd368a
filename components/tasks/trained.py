"""Parameters of what a classify task trains besides its probes: the encoder itself, and attention over its tokens."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from components.settings import StageConfig

Rate = Annotated[float, Field(gt=0, le=1)]
Steps = Annotated[int, Field(ge=1, le=1_000_000)]
Untrained = Annotated[int, Field(ge=2, le=50)]  # of one there is no spread


class FineTuneConfig(StageConfig):
    """Encoder and linear heads trained together, from the released weights and from scratch at equal steps.

    Attributes:
        steps: of ``batch`` places each, of all training cases.
        few_shot_steps, few_shot_draws: the same with a few cases a class, for the first draws of ``few_shot``; 0 draws
            for no curve. Each draw is trained from scratch by an initialisation of its own.
        batch: places (whole scans, or crops round points) a step.
        learning_rate: of the encoder from the released weights.
        scratch_learning_rate: of the encoder from scratch, which wants a larger one.
        head_learning_rate: of the linear heads.
        layer_decay: each layer of the encoder from the released weights learns this much slower than the one above it.
        weight_decay: of matrices.
        flip_probability: of mirroring a place left to right; 0 where labels tell the sides apart.
        scratch: how many initialisations stand beside, those of the first ``random_seeds``.
    """

    steps: Steps
    few_shot_steps: Steps
    few_shot_draws: Annotated[int, Field(ge=0, le=5)]
    batch: Annotated[int, Field(ge=1, le=4096)]
    learning_rate: Rate
    scratch_learning_rate: Rate
    head_learning_rate: Rate
    layer_decay: Rate
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    flip_probability: Annotated[float, Field(ge=0, le=1)]
    scratch: Untrained


class AttentiveConfig(StageConfig):
    """Attention of a few learnt queries over the tokens of the frozen encoder's last level, then a linear classifier.

    Attributes:
        queries: of each part of the task.
        steps: of ``batch`` places each.
        batch: places a step.
        learning_rate: of queries and classifier.
        weight_decay: of both.
        untrained: how many untrained encoders stand beside, the first of ``random_seeds``.
    """

    queries: Annotated[int, Field(ge=1, le=64)]
    steps: Steps
    batch: Annotated[int, Field(ge=1, le=4096)]
    learning_rate: Rate
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    untrained: Untrained
