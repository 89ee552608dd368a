"""Parameters of pretraining: objectives and their views, optimiser and run; with input and encoder
(``models/config.py``) they are ``<line>.pretrain``."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from components.models.config import EncoderConfig, InputConfig, Side, VitConfig
from components.pretrain.start_config import StartConfig
from components.settings import Ordered, Seed, StageConfig

Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=1000)]
Width = Annotated[int, Field(ge=1, le=2**18)]  # of a layer; the widest published has 131,072 prototypes
Sigma = Annotated[float, Field(gt=0, le=64)]  # voxels
GLANCED_VOXELS = 2**22  # of crops that are looked at together: 8 of CT-FM's, some 3 GB


class CropViewsConfig(StageConfig):
    """Views of an encoder that sees crops (CT-FM): crops of one volume, two views of each."""

    crops_per_volume: Count
    body_fraction: Probability  # share of a crop's voxels above -500 HU that makes it acceptable
    scale: Annotated[tuple[Fraction, Fraction], Ordered]
    flip_probability: Probability
    histogram_probability: Probability
    histogram_points: Annotated[int, Field(ge=3, le=1000)]
    smooth_probability: Probability
    smooth_sigma_vox: Annotated[tuple[Sigma, Sigma], Ordered]


class NtXentConfig(StageConfig):
    """SimCLR head of two layers and NT-Xent: within each volume (CT-FM), or across all volumes of the batch.

    Attributes:
        hidden, projection: widths of the head; published 256 and 128.
    """

    kind: Literal["within_volume", "across_volume"]
    temperature: PositiveFloat
    hidden: Width
    projection: Width
    views: CropViewsConfig

    @model_validator(mode="after")
    def _negatives(self) -> NtXentConfig:
        if self.kind == "within_volume" and self.views.crops_per_volume < 2:
            raise ValueError("crops_per_volume 1 leaves within_volume no negative: at least 2")
        return self


class VicRegConfig(StageConfig):
    """Three layers with batch norm, then the weights of the loss's terms; published 25, 25, 1."""

    kind: Literal["vicreg"]
    invariance: Weight
    variance: Weight
    covariance: Weight
    hidden: Width
    projection: Width
    views: CropViewsConfig


class SimSiamConfig(StageConfig):
    """Three layers with batch norm, then a predictor that narrows to ``predictor``; published 2048, 2048, 512."""

    kind: Literal["simsiam"]
    hidden: Width
    projection: Width
    predictor: Width
    views: CropViewsConfig


TwoViewConfig = NtXentConfig | VicRegConfig | SimSiamConfig


class MultiCropConfig(StageConfig):
    """Views of an encoder that sees whole scans (FM-CT): global and local boxes, as fractions of the volume's sides,
    resized.

    Attributes:
        global_side, local_side: smallest and largest box side as a fraction of the volume's side.
        local_field: local boxes lie within the central field of this fraction.
        local_size_vox: cube to which local boxes are resized (global boxes: ``input.size_vox``).
        flip_probability: flip left-right.
        shift: largest intensity shift, in units of the window.
        smooth_sigma_vox: smoothing, applied to the first view of a kind.
        gamma: range of the exponent, applied to the others.
        cache_mb: windowed volumes that each worker keeps in memory, so that a small cohort is unpacked only once. For
            a GPU, which windows and resizes itself, nothing is kept.
    """

    globals: Annotated[int, Field(ge=2, le=1000)]
    locals: Annotated[int, Field(ge=0, le=1000)]
    global_side: Annotated[tuple[Fraction, Fraction], Ordered]
    local_side: Annotated[tuple[Fraction, Fraction], Ordered]
    local_field: Fraction
    local_size_vox: tuple[Side, Side, Side]
    flip_probability: Probability
    shift: Probability
    smooth_probability: Probability
    smooth_sigma_vox: Annotated[tuple[Sigma, Sigma], Ordered]
    gamma: Annotated[tuple[PositiveFloat, PositiveFloat], Ordered]
    cache_mb: Annotated[int, Field(ge=0)]


class DinoConfig(StageConfig):
    """Self-distillation: projection head, temperatures, centring and the teacher's moving average.

    Attributes:
        standardise: embeddings to zero mean and unit variance over the batch before they enter the head: ours, which
            runs of hundreds of steps want; published without.
        koleo_weight: of the term that keeps embeddings of different samples apart; 0 leaves it out (DINOv2: 0.1).
    """

    standardise: bool
    hidden: Width
    bottleneck: Width
    prototypes: Width
    student_temperature: PositiveFloat
    teacher_temperature: PositiveFloat
    centre_momentum: Probability
    ema_start: Probability
    ema_end: Probability
    koleo_weight: Weight


class IbotConfig(StageConfig):
    """Masked tokens, besides self-distillation: the student sees some global views with patches replaced by a token,
    and has to name the teacher's prototypes of what lies there.

    Attributes:
        weight: beside the loss of the whole views.
        prototypes: of the patches' own head, whose other sizes are those of ``dino``.
        masked_views: share of a volume's global views that are masked, at least one.
        mask_ratio: range of the share of a masked view's patches.
    """

    weight: PositiveFloat
    prototypes: Width
    masked_views: Fraction
    mask_ratio: Annotated[tuple[Fraction, Fraction], Ordered]


class MaeConfig(StageConfig):
    """Masked image modelling: share of hidden patches and the decoder.

    Attributes:
        normalise: targets with zero mean and unit variance per patch, instead of raw window values.
    """

    mask_ratio: Annotated[float, Field(gt=0, lt=1)]
    decoder_dim: Annotated[int, Field(ge=1, le=8192)]
    decoder_depth: Annotated[int, Field(ge=1, le=128)]
    decoder_heads: PositiveInt
    normalise: bool


class HeadObjectiveConfig(StageConfig):
    """DINO, DINO with masked tokens, MAE, or DINO and MAE added. A block counts only where its part is on."""

    kind: Literal["dino", "dino_ibot", "mae", "dino_mae"]
    mae_weight: PositiveFloat
    dino: DinoConfig
    ibot: IbotConfig
    mae: MaeConfig
    views: MultiCropConfig


ObjectiveConfig = Annotated[
    NtXentConfig | VicRegConfig | SimSiamConfig | HeadObjectiveConfig, Field(discriminator="kind")
]


Device = Literal["auto", "cuda", "cpu"]


class OptimiserConfig(StageConfig):
    """AdamW with linear warm-up, then cosine; the weight decay goes from its first to its second value by cosine.

    Attributes:
        betas: decay of the running mean of the gradient and of its square; runs of few steps want a shorter second.
        warmup: share of the steps.
        clip_norm: largest norm of the gradient; null for no limit.
    """

    learning_rate: PositiveFloat
    final_learning_rate: Annotated[float, Field(ge=0)]
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    weight_decay: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]
    warmup: Probability
    clip_norm: PositiveFloat | None


class CollapseConfig(StageConfig):
    """When a run has failed: the embedding's spread stays below a bound after the warm-up.

    Attributes:
        min_spread: of unit-length embeddings, 1 is spread evenly, 0 one vector for all; see ``monitors.spread``.
        patience: so many logged steps in a row end the run.
    """

    min_spread: Probability
    patience: PositiveInt


class PretrainConfig(StageConfig):
    """The whole block.

    Attributes:
        start: weights that the run begins with; null for fresh ones.
        steps: 0, with ``start`` only, leaves its weights as they are: the release is those.
        volumes_per_step: volumes in the global batch, shared out over the workers.
        candidates: encoders kept, evenly over the run, the last one among them; ``evaluate.selection`` chooses.
        accumulate: parts into which each worker's share is cut, one after the other, where memory is short. More than 1
            only where that trains the same model, see ``compares_volumes``.
        activation_checkpointing: keep each block's input only and compute the rest again, where memory is shorter.
        sharded: each worker keeps a share of the parameters, of the optimiser's state and of the teacher (FSDP), where
            a model does not fit; the last bits differ.
        compile: run the models' blocks through torch.compile, which needs a C++ compiler and takes a minute that the
            run must earn back; the last bits differ.
        device: ``cuda`` wants a GPU for each worker and ends with a line where there are fewer; ``auto`` takes them
            where they are, else the CPU, and says so; the outputs name which it was.
        workers: training processes; 0 trains in this process, without Ray. Or the least and the most: as many as the
            cluster has room for, which may change on the way. The global batch stays as it is; the last bits do not.
        loaders: processes per worker that read volumes ahead; 0 reads in the worker. Changes nothing in the result.
        unreadable: what follows on a volume that cannot be read: ``stop`` ends the run with its name; ``skip`` sees
            another volume in its place, and the outputs name and count it.
        precision: ``bfloat16`` switches autocast on; it pays only where the processor has bf16 arithmetic.
    """

    seed: Seed
    start: StartConfig | None
    steps: Annotated[int, Field(ge=0, le=10**9 - 1)]  # nine digits name a kept encoder's file
    volumes_per_step: Annotated[int, Field(ge=1, le=10**6)]
    candidates: Annotated[int, Field(ge=1, le=100)]
    accumulate: PositiveInt
    activation_checkpointing: bool
    sharded: bool
    compile: bool
    checkpoint_every: PositiveInt
    log_every: PositiveInt
    device: Device
    workers: int | tuple[int, int]
    loaders: Annotated[int, Field(ge=0, le=1000)]
    unreadable: Literal["stop", "skip"]
    precision: Literal["float32", "bfloat16"]
    input: InputConfig
    encoder: EncoderConfig
    objective: ObjectiveConfig
    optimiser: OptimiserConfig
    collapse: CollapseConfig

    @field_validator("workers", mode="plain")
    @classmethod
    def _count_or_range(cls, value: Any) -> Any:
        pair = value if isinstance(value, tuple) and len(value) == 2 else (value, value)
        least = 1 if pair is value else 0
        if not all(type(number) is int for number in pair) or not least <= pair[0] <= pair[1]:
            raise ValueError("a number from 0 on, or [least, most] from 1 on")
        return value

    @property
    def least_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    def compares_volumes(self) -> str:
        """What of a step is taken over all its volumes at once, and would be another for parts of them; or nothing.

        A gradient is a mean over volumes and comes out of parts the same, and the centres of self-distillation are
        moved once a step by all parts; statistics and neighbours are not to be had without the whole.
        """
        objective = self.objective
        if self.encoder.batch_norms:
            return f"encoder {self.encoder.kind!r}, by its batch norms"
        if objective.kind in ("across_volume", "vicreg", "simsiam"):
            return f"objective {objective.kind!r}"
        if isinstance(objective, HeadObjectiveConfig) and objective.kind != "mae":
            if objective.dino.standardise:
                return "objective.dino.standardise"
            if objective.dino.koleo_weight:
                return "objective.dino.koleo_weight"
        return ""

    def glance(self) -> PretrainConfig:
        """The block for a look at weights that are not trained: few volumes and crops, in the plainest way, so that the
        published sizes fit a machine that only evaluates."""
        alone: dict[str, Any] = {"accumulate": 1, "precision": "float32"}
        alone |= {"activation_checkpointing": False, "sharded": False, "compile": False}
        if isinstance(self.objective, HeadObjectiveConfig):
            return self.model_copy(update=alone | {"volumes_per_step": min(self.volumes_per_step, 8)})
        views, volumes = self.objective.views, min(self.volumes_per_step, 2)
        room = GLANCED_VOXELS // (2 * volumes * math.prod(self.input.size_vox))
        seen = views.model_copy(update={"crops_per_volume": min(views.crops_per_volume, max(2, room))})
        objective = self.objective.model_copy(update={"views": seen})
        return self.model_copy(update=alone | {"volumes_per_step": volumes, "objective": objective})

    def candidate_steps(self) -> set[int]:
        """After which steps an encoder is kept beside the last one."""
        return {round(self.steps * part / self.candidates) for part in range(1, self.candidates)} - {0, self.steps}

    @model_validator(mode="after")
    def _consistent(self) -> PretrainConfig:
        if self.steps == 0 and self.start is None:
            raise ValueError("steps 0 is not allowed without start: untrained weights are no release; at least 1")
        if self.steps == 0 and self.candidates > 1:
            raise ValueError(f"candidates {self.candidates} is not allowed with steps 0: there is one encoder, so 1")
        for count in range(max(1, self.least_workers), max(1, self.most_workers) + 1):
            if self.volumes_per_step % (count * self.accumulate):
                raise ValueError(
                    f"volumes_per_step {self.volumes_per_step} must be a multiple of workers x accumulate, "
                    f"{count} x {self.accumulate}"
                )
        if self.accumulate > 1 and self.compares_volumes():
            raise ValueError(
                f"accumulate {self.accumulate} would train another model with {self.compares_volumes()}, which looks "
                "at all volumes of a step together: 1; where memory is short, activation_checkpointing, sharded or "
                "more workers"
            )
        sees = "scan" if isinstance(self.objective, HeadObjectiveConfig) else "crop"
        if self.input.sees != sees:
            raise ValueError(
                f"input.sees {self.input.sees!r} does not go with objective {self.objective.kind!r}, whose views are "
                f"made of a {sees}: set it to {sees!r}"
            )
        sizes: tuple[int, ...] = self.input.size_vox
        if isinstance(self.objective, HeadObjectiveConfig):
            if not isinstance(self.encoder, VitConfig):
                raise ValueError(
                    f"encoder {self.encoder.kind!r} does not go with objective {self.objective.kind!r}: "
                    "dino, dino_ibot, mae and dino_mae want vit"
                )
            sizes += self.objective.views.local_size_vox
        if isinstance(self.encoder, VitConfig) and any(size % self.encoder.patch_vox for size in sizes):
            raise ValueError(f"sizes {list(sizes)} must be multiples of encoder.patch_vox {self.encoder.patch_vox}")
        return self
