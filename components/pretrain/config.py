"""Parameters of pretraining: encoder, input, views, objective, optimiser and run, as in ``<line>.pretrain``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from components.params import StageConfig

Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]


class InputConfig(StageConfig):
    """What the encoder sees: a box of voxels and the CT windows that become its channels.

    Attributes:
        orientation: axis codes the stored volumes must have (nibabel's ``aff2axcodes``).
        spacing_mm: voxel size the stored volumes must have, per axis.
        size_vox: the encoder's input box. Whole body: a crop at the stored spacing. Head: a whole head, resized.
        windows: (centre, width) in HU; each is clipped and scaled to [0, 1] and becomes one channel.
    """

    orientation: Literal["SPL", "RAS"]
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    size_vox: tuple[PositiveInt, PositiveInt, PositiveInt]
    windows: tuple[tuple[float, PositiveFloat], ...] = Field(min_length=1)


class SegResConfig(StageConfig):
    """MONAI's SegResEncoder; the published size is 32 filters and blocks (1, 2, 2, 4, 4)."""

    kind: Literal["segres"]
    init_filters: PositiveInt
    blocks_down: tuple[PositiveInt, ...] = Field(min_length=2)


class VitConfig(StageConfig):
    """A 3D vision transformer; the published size is 96^3 input, patch 12, dim 768, depth 12, 12 heads, ratio 4.

    Attributes:
        pooling: the embedding: the class token, the mean of the patch tokens, or both side by side.
    """

    kind: Literal["vit"]
    patch_vox: PositiveInt
    dim: PositiveInt
    depth: PositiveInt
    heads: PositiveInt
    mlp_ratio: PositiveFloat
    registers: Annotated[int, Field(ge=0)]
    pooling: Literal["class", "mean", "class_mean"]

    @model_validator(mode="after")
    def _divisible(self) -> VitConfig:
        if self.dim % self.heads or self.dim % 6:
            raise ValueError(f"dim {self.dim} must be divisible by heads {self.heads} and by 6 (sin-cos over 3 axes)")
        return self


EncoderConfig = Annotated[SegResConfig | VitConfig, Field(discriminator="kind")]


class CropViewsConfig(StageConfig):
    """Whole-body views (CT-FM): crops of one volume, two views of each."""

    crops_per_volume: Annotated[int, Field(ge=2)]
    body_fraction: Probability  # share of a crop's voxels above -500 HU that makes it acceptable
    scale: tuple[Fraction, Fraction]
    flip_probability: Probability
    histogram_probability: Probability
    histogram_points: Annotated[int, Field(ge=3)]
    smooth_probability: Probability
    smooth_sigma_vox: tuple[PositiveFloat, PositiveFloat]


class ContrastiveConfig(StageConfig):
    """Within-volume contrastive learning (CT-FM): NT-Xent over the crops of one volume, SimCLR head."""

    kind: Literal["within_volume"]
    temperature: PositiveFloat
    hidden: PositiveInt
    projection: PositiveInt
    views: CropViewsConfig


class MultiCropConfig(StageConfig):
    """Head views (FM-CT): global and local boxes as fractions of the stored volume's sides, resized.

    Attributes:
        global_side, local_side: smallest and largest box side as a fraction of the volume's side.
        local_field: local boxes lie within the central field of this fraction.
        local_size_vox: cube to which local boxes are resized (global boxes: ``input.size_vox``).
        flip_probability: flip left-right.
        shift: largest intensity shift, in units of the window.
        smooth_sigma_vox: smoothing, applied to the first view of a kind.
        gamma: range of the exponent, applied to the others.
        cache_mb: windowed volumes that each worker keeps in memory, so that a small cohort is unpacked only once.
    """

    globals: Annotated[int, Field(ge=2)]
    locals: Annotated[int, Field(ge=0)]
    global_side: tuple[Fraction, Fraction]
    local_side: tuple[Fraction, Fraction]
    local_field: Fraction
    local_size_vox: tuple[PositiveInt, PositiveInt, PositiveInt]
    flip_probability: Probability
    shift: Probability
    smooth_probability: Probability
    smooth_sigma_vox: tuple[PositiveFloat, PositiveFloat]
    gamma: tuple[PositiveFloat, PositiveFloat]
    cache_mb: Annotated[int, Field(ge=0)]


class DinoConfig(StageConfig):
    """Self-distillation: projection head, temperatures, centring and the teacher's moving average."""

    hidden: PositiveInt
    bottleneck: PositiveInt
    prototypes: PositiveInt
    student_temperature: PositiveFloat
    teacher_temperature: PositiveFloat
    centre_momentum: Probability
    ema_start: Probability
    ema_end: Probability


class MaeConfig(StageConfig):
    """Masked image modelling: share of hidden patches and the decoder.

    Attributes:
        normalise: targets with zero mean and unit variance per patch, instead of raw window values.
    """

    mask_ratio: Annotated[float, Field(gt=0, lt=1)]
    decoder_dim: PositiveInt
    decoder_depth: PositiveInt
    decoder_heads: PositiveInt
    normalise: bool


class HeadObjectiveConfig(StageConfig):
    """DINO, MAE, or both added with weights (a weight only counts where both are on)."""

    kind: Literal["dino", "mae", "dino_mae"]
    mae_weight: PositiveFloat
    dino: DinoConfig
    mae: MaeConfig
    views: MultiCropConfig


ObjectiveConfig = Annotated[ContrastiveConfig | HeadObjectiveConfig, Field(discriminator="kind")]


class OptimiserConfig(StageConfig):
    """AdamW with linear warm-up, then cosine; the weight decay goes from its first to its second value by cosine.

    Attributes:
        betas: decay of the running mean of the gradient and of its square; runs of few steps want a shorter second.
        warmup: share of the steps.
    """

    learning_rate: PositiveFloat
    final_learning_rate: Annotated[float, Field(ge=0)]
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    weight_decay: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]
    warmup: Probability
    clip_norm: PositiveFloat


class PretrainConfig(StageConfig):
    """The whole block.

    Attributes:
        volumes_per_step: volumes in the global batch, shared out over the workers.
        workers: training processes; 0 trains in this process, without Ray.
        precision: ``bfloat16`` switches autocast on; it pays only where the processor has bf16 arithmetic.
    """

    seed: Annotated[int, Field(ge=0)]
    steps: PositiveInt
    volumes_per_step: PositiveInt
    checkpoint_every: PositiveInt
    log_every: PositiveInt
    workers: Annotated[int, Field(ge=0)]
    precision: Literal["float32", "bfloat16"]
    input: InputConfig
    encoder: EncoderConfig
    objective: ObjectiveConfig
    optimiser: OptimiserConfig

    @model_validator(mode="after")
    def _consistent(self) -> PretrainConfig:
        if self.volumes_per_step % max(1, self.workers):
            raise ValueError(f"volumes_per_step {self.volumes_per_step} must be a multiple of workers {self.workers}")
        if isinstance(self.encoder, SegResConfig) != isinstance(self.objective, ContrastiveConfig):
            raise ValueError(
                f"encoder {self.encoder.kind!r} does not go with objective {self.objective.kind!r}: "
                "segres with within_volume, vit with dino, mae or dino_mae"
            )
        if isinstance(self.encoder, VitConfig) and isinstance(self.objective, HeadObjectiveConfig):
            sizes = (*self.input.size_vox, *self.objective.views.local_size_vox)
            if any(size % self.encoder.patch_vox for size in sizes):
                raise ValueError(f"sizes {sizes} must be multiples of encoder.patch_vox {self.encoder.patch_vox}")
        return self
