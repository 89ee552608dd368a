"""Parameters of the objectives and their views, as in ``<line>.pretrain.objective``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from components.params import StageConfig

Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class CropViewsConfig(StageConfig):
    """Whole-body views (CT-FM): crops of one volume, two views of each."""

    crops_per_volume: PositiveInt
    body_fraction: Probability  # share of a crop's voxels above -500 HU that makes it acceptable
    scale: tuple[Fraction, Fraction]
    flip_probability: Probability
    histogram_probability: Probability
    histogram_points: Annotated[int, Field(ge=3)]
    smooth_probability: Probability
    smooth_sigma_vox: tuple[PositiveFloat, PositiveFloat]


class NtXentConfig(StageConfig):
    """SimCLR head of two layers and NT-Xent: within each volume (CT-FM), or across all volumes of the batch.

    Attributes:
        hidden, projection: widths of the head; published 256 and 128.
    """

    kind: Literal["within_volume", "across_volume"]
    temperature: PositiveFloat
    hidden: PositiveInt
    projection: PositiveInt
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
    hidden: PositiveInt
    projection: PositiveInt
    views: CropViewsConfig


class SimSiamConfig(StageConfig):
    """Three layers with batch norm, then a predictor that narrows to ``predictor``; published 2048, 2048, 512."""

    kind: Literal["simsiam"]
    hidden: PositiveInt
    projection: PositiveInt
    predictor: PositiveInt
    views: CropViewsConfig


TwoViewConfig = NtXentConfig | VicRegConfig | SimSiamConfig


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
        cache_mb: windowed volumes that each worker keeps in memory, so that a small cohort is unpacked only once. For
            a GPU, which windows and resizes itself, nothing is kept.
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
    """Self-distillation: projection head, temperatures, centring and the teacher's moving average.

    Attributes:
        standardise: embeddings to zero mean and unit variance over the batch before they enter the head: ours, which
            runs of hundreds of steps want; published without.
        koleo_weight: of the term that keeps embeddings of different samples apart; 0 leaves it out (DINOv2: 0.1).
    """

    standardise: bool
    hidden: PositiveInt
    bottleneck: PositiveInt
    prototypes: PositiveInt
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
    prototypes: PositiveInt
    masked_views: Fraction
    mask_ratio: tuple[Fraction, Fraction]


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
