"""The whole-body encoder: MONAI's SegResEncoder with its own parameter names, pooled over the last level."""

from __future__ import annotations

import torch
from monai.networks.nets.segresnet_ds import SegResEncoder
from torch import Tensor, nn

from components.pretrain.config import SegResConfig

SMALLEST_BF16 = 3  # voxels


class CpuSafeConv3d(nn.Conv3d):
    """A convolution that leaves bfloat16 alone where a CPU's result cannot be trusted.

    In torch 2.13 the gradient of the weights is garbage, or written beyond its end, for bfloat16 inputs of a side below
    3 voxels (oneDNN on AVX512_BF16; seen at depth 2 with stride 1 and side 1 with stride 2). Such levels cost little.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type == "cpu" and min(input.shape[2:]) < SMALLEST_BF16:
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)


class SegRes(SegResEncoder, nn.Module):  # type: ignore[misc]  # MONAI has no types
    """MONAI's ``SegResEncoder`` with batch norm and ReLU.

    Names and shapes of the state dict are MONAI's, so that the public CT-FM weights
    (``project-lighter/ct_fm_feature_extractor``) load unchanged at 32 filters and blocks (1, 2, 2, 4, 4).
    Source: arXiv 2501.09001; the encoder is that of arXiv 1810.11654.
    """

    def __init__(self, config: SegResConfig, channels: int) -> None:
        super().__init__(
            spatial_dims=3,
            init_filters=config.init_filters,
            in_channels=channels,
            act="relu",
            norm="batch",
            blocks_down=config.blocks_down,
        )
        for module in self.modules():
            if type(module) is nn.Conv3d:
                module.__class__ = CpuSafeConv3d
        self.embedding_dim: int = config.init_filters * 2 ** (len(config.blocks_down) - 1)

    def feature_map(self, x_BCDHW: Tensor) -> Tensor:
        """The last level, (B, embedding_dim, d, h, w)."""
        # channels_last_3d makes convolutions twice as fast on a CPU; the values' order in memory changes nothing else
        levels: list[Tensor] = self._forward(x_BCDHW.contiguous(memory_format=torch.channels_last_3d))
        return levels[-1]

    def forward(self, x_BCDHW: Tensor) -> Tensor:  # type: ignore[override]  # MONAI's returns every level
        """The last level averaged over space, (B, embedding_dim)."""
        return self.feature_map(x_BCDHW).mean(dim=(2, 3, 4))
