"""Parameters of pretraining: input, encoder, objective, optimiser and run, as in ``<line>.pretrain``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from components.params import StageConfig
from components.pretrain.objectives.config import HeadObjectiveConfig, ObjectiveConfig, Probability


class InputConfig(StageConfig):
    """What the encoder sees: a box of voxels and the CT windows that become its channels.

    Attributes:
        orientation: axis codes the stored volumes must have (nibabel's ``aff2axcodes``).
        spacing_mm: voxel size the stored volumes must have, per axis.
        size_vox: the encoder's input box. Whole body: a crop at the stored spacing. Head: a whole head, resized.
        windows: (centre, width) in HU; each is clipped and scaled to [0, 1] and becomes one channel. Ends and width are
            what int16, in which voxels are stored, can hold.
    """

    orientation: Literal["SPL", "RAS"]
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    size_vox: tuple[PositiveInt, PositiveInt, PositiveInt]
    windows: tuple[
        tuple[Annotated[float, Field(ge=-16_384, le=16_383)], Annotated[float, Field(gt=0, le=32_767)]], ...
    ] = Field(min_length=1)


class SegResConfig(StageConfig):
    """MONAI's SegResEncoder; the published size is 32 filters and blocks (1, 2, 2, 4, 4)."""

    kind: Literal["segres"]
    init_filters: PositiveInt
    blocks_down: tuple[PositiveInt, ...] = Field(min_length=2)


class VitConfig(StageConfig):
    """A 3D vision transformer; the published size is 96^3 input, patch 12, dim 768, depth 12, 12 heads, ratio 4.

    Attributes:
        position_waves: of the sine and cosine positions: from 3 patches to 4 ``grid`` sides (ours), or the
            ``customary`` ones up to 10,000, see ``vit.sincos_positions``.
        pooling: the embedding: the class token, the mean of the patch tokens, or both side by side.
    """

    kind: Literal["vit"]
    patch_vox: PositiveInt
    dim: PositiveInt
    depth: PositiveInt
    heads: PositiveInt
    mlp_ratio: PositiveFloat
    registers: Annotated[int, Field(ge=0)]
    position_waves: Literal["grid", "customary"]
    pooling: Literal["class", "mean", "class_mean"]

    @model_validator(mode="after")
    def _divisible(self) -> VitConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} must be divisible by heads {self.heads}")
        return self


Device = Literal["auto", "cuda", "cpu"]
EncoderConfig = Annotated[SegResConfig | VitConfig, Field(discriminator="kind")]


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

    seed: Annotated[int, Field(ge=0)]
    steps: PositiveInt
    volumes_per_step: PositiveInt
    candidates: Annotated[int, Field(ge=1, le=100)]
    accumulate: PositiveInt
    activation_checkpointing: bool
    sharded: bool
    compile: bool
    checkpoint_every: PositiveInt
    log_every: PositiveInt
    device: Device
    workers: int | tuple[int, int]
    loaders: Annotated[int, Field(ge=0)]
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
        if isinstance(self.encoder, SegResConfig):
            return "encoder 'segres', by its batch norms"
        if objective.kind in ("across_volume", "vicreg", "simsiam"):
            return f"objective {objective.kind!r}"
        if isinstance(objective, HeadObjectiveConfig) and objective.kind != "mae":
            if objective.dino.standardise:
                return "objective.dino.standardise"
            if objective.dino.koleo_weight:
                return "objective.dino.koleo_weight"
        return ""

    def candidate_steps(self) -> set[int]:
        """After which steps an encoder is kept beside the last one."""
        return {round(self.steps * part / self.candidates) for part in range(1, self.candidates)} - {0, self.steps}

    @model_validator(mode="after")
    def _consistent(self) -> PretrainConfig:
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
        sizes: tuple[int, ...] = self.input.size_vox
        if isinstance(self.objective, HeadObjectiveConfig):
            if not isinstance(self.encoder, VitConfig):
                raise ValueError(
                    f"encoder {self.encoder.kind!r} does not go with objective {self.objective.kind!r}: "
                    "dino, dino_ibot, mae and dino_mae want vit"
                )
            sizes += self.objective.views.local_size_vox
        if isinstance(self.encoder, VitConfig) and any(size % self.encoder.patch_vox for size in sizes):
            raise ValueError(f"sizes {sizes} must be multiples of encoder.patch_vox {self.encoder.patch_vox}")
        return self
