"""Parameters of kind ``segment``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from components.models.segmenter import SegmenterConfig
from components.settings import StageConfig

Count = Annotated[int, Field(ge=1, le=64)]
Cells = Annotated[int, Field(ge=1, le=32)]
Steps = Annotated[int, Field(ge=1, le=100_000)]
Rate = Annotated[float, Field(gt=0, le=1)]


class VariedConfig(StageConfig):
    """Copies of a training scan that differ from it as another patient's scan does.

    Attributes:
        copies: of each.
        zoom: along each axis up to so much larger or smaller, as a share.
        contrast: of soft tissue up to so much more or less, as a share; and up to ``shift_hu`` brighter or darker.
        noise_hu: standard deviation of added noise, at most.
    """

    copies: Annotated[int, Field(ge=0, le=50)]
    zoom: Annotated[float, Field(ge=0, le=0.5)]
    contrast: Annotated[float, Field(ge=0, le=0.9)]
    shift_hu: Annotated[float, Field(ge=0, le=200)]
    noise_hu: Annotated[float, Field(ge=0, le=200)]


class DecoderConfig(SegmenterConfig):
    """The decoder, and how it is trained.

    Attributes:
        varied: see :class:`VariedConfig`.
        dropout: of its hidden channels.
        voxels: of each training scan, and of each copy, that frozen features are trained on.
        batch: voxels of a step.
        steps: of training on frozen features.
        crops: of a step of fine-tuning.
        crop_cells: size of such a crop in voxels of the coarsest level.
        learning_rate: the highest, of AdamW.
    """

    varied: VariedConfig
    dropout: Annotated[float, Field(ge=0, le=0.9)]
    voxels: Annotated[int, Field(ge=100, le=10_000_000)]
    batch: Annotated[int, Field(ge=16, le=1_000_000)]
    steps: Steps
    crops: Count
    crop_cells: tuple[Cells, Cells, Cells]
    learning_rate: Rate


class FineTuneConfig(StageConfig):
    """Encoder and decoder trained together, after the decoder was alone.

    Attributes:
        steps: the same for the encoder and for untrained ones, which thereby are trained from scratch.
        encoder_rate: highest learning rate of the encoder and its decoder.
        untrained_rate: of untrained encoders and theirs, which have farther to go.
    """

    steps: Steps
    encoder_rate: Rate
    untrained_rate: Rate


class SegmentConfig(StageConfig):
    """A block of ``<line>.tasks``: where the structures of a scan are, from few labelled ones.

    Attributes:
        set: a labelled set with masks; or ``line``, the line's own evaluation scans, where they have label maps.
        structures: names in the label maps; null for all of them, of ``line`` for all that are annotated as organs.
        scans: numbers of labelled training scans, ascending; the figures of the task are those of the last, the others
            become its parts.
        test_scans: so many patients of the test side, a random choice of them; all where they are fewer.
        untrained: so many of the untrained encoders are compared with.
        tolerance_mm: within which a surface counts as met.
        decoder: see :class:`DecoderConfig`.
        fine_tune: see :class:`FineTuneConfig`; its figures are those of ``<task>/fine_tuned``. Null: frozen only.
        serve: whether the decoder goes into the release as a head.
    """

    kind: Literal["segment"]
    set: Annotated[str, Field(min_length=1)]
    structures: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1, max_length=250)] | None
    scans: Annotated[tuple[Annotated[int, Field(ge=1, le=1000)], ...], Field(min_length=1, max_length=8)]
    test_scans: Annotated[int, Field(ge=2, le=10_000)]
    untrained: Annotated[int, Field(ge=2, le=200)]
    tolerance_mm: Annotated[float, Field(ge=0, le=20)]
    decoder: DecoderConfig
    fine_tune: FineTuneConfig | None
    serve: bool

    @field_validator("structures")
    @classmethod
    def _each_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError("each structure once")
        return value

    @field_validator("scans")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("ascending numbers, each once")
        return value
