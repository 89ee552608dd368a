"""What an encoder sees, and its size: as in ``<line>.pretrain`` and in a release's ``encoder.json``."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from components.settings import StageConfig

Side = Annotated[int, Field(ge=1, le=512)]  # voxels


class InputConfig(StageConfig):
    """What the encoder sees: a box of voxels and the CT windows that become its channels.

    Attributes:
        sees: ``crop``, a box of ``size_vox`` at the stored spacing: a point's vector is its crop's, a volume's the mean
            over its crops. Or ``scan``, the whole volume resized to ``size_vox``, which has one vector.
        orientation: axis codes the stored volumes must have (nibabel's ``aff2axcodes``).
        spacing_mm: voxel size the stored volumes must have, per axis.
        size_vox: the encoder's input box.
        windows: (centre, width) in HU; each is clipped and scaled to [0, 1] and becomes one channel. Ends and width are
            what int16, in which voxels are stored, can hold.
    """

    sees: Literal["crop", "scan"]
    orientation: Literal["SPL", "RAS"]
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    size_vox: tuple[Side, Side, Side]
    windows: tuple[
        tuple[Annotated[float, Field(ge=-16_384, le=16_383)], Annotated[float, Field(gt=0, le=32_767)]], ...
    ] = Field(min_length=1)


class SegResConfig(StageConfig):
    """MONAI's SegResEncoder; the published size is 32 filters and blocks (1, 2, 2, 4, 4)."""

    batch_norms: ClassVar[bool] = True  # their statistics are of all volumes of a step

    kind: Literal["segres"]
    init_filters: Annotated[int, Field(ge=1, le=512)]
    blocks_down: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=2, max_length=7)]


class VitConfig(StageConfig):
    """A 3D vision transformer; the published size is 96^3 input, patch 12, dim 768, depth 12, 12 heads, ratio 4.

    Attributes:
        position_waves: of the sine and cosine positions: from 3 patches to 4 ``grid`` sides (ours), or the
            ``customary`` ones up to 10,000, see ``vit.sincos_positions``.
        pooling: the embedding: the class token, the mean of the patch tokens, or both side by side; or with
            ``whole_centre`` mean, standard deviation and maximum of all patch tokens, and of those in the middle half
            of every axis: more of what is small, or lies in one place. Self-distillation is not given the maxima, with
            which it learns less (ten findings of phantoms: linear AUC .743 against .764, untrained .709).
    """

    batch_norms: ClassVar[bool] = False

    kind: Literal["vit"]
    patch_vox: PositiveInt
    dim: Annotated[int, Field(ge=1, le=8192)]
    depth: Annotated[int, Field(ge=1, le=128)]
    heads: PositiveInt
    mlp_ratio: Annotated[float, Field(gt=0, le=64)]
    registers: Annotated[int, Field(ge=0, le=1024)]
    position_waves: Literal["grid", "customary"]
    pooling: Literal["class", "mean", "class_mean", "whole_centre"]

    @model_validator(mode="after")
    def _divisible(self) -> VitConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} must be divisible by heads {self.heads}")
        return self


EncoderConfig = Annotated[SegResConfig | VitConfig, Field(discriminator="kind")]
