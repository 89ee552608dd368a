"""The whole-body encoder: MONAI's SegResEncoder with its own parameter names, pooled over the last level."""

from __future__ import annotations

import torch
from monai.networks.nets.segresnet_ds import SegResEncoder
from torch import Tensor, nn
from torch.nn import functional

from components.models.config import SegResConfig


class Conv3x3x3(nn.Conv3d):
    """A convolution of MONAI's encoder (3 voxels a side, padded by 1), for the small sides of its deep levels too.

    A side of 1 voxel meets only the middle of the kernel: the rest is left out, a third of the work or less. A side of
    2 gets its border before the convolution where a CPU computes in bfloat16: with the convolution's own, torch 2.13
    gives weight gradients that are garbage or written beyond their end (oneDNN on AVX512_BF16; depth 2 with stride 1,
    side 1 with stride 2). The values are those of the plain convolution, but for rounding.

    On a CPU a single crop is computed by oneDNN, as several are: of one whose channels, depth and height multiply to
    20,480 or less, torch's own choice is a loop that takes up to 14 times as long (16 channels of 32 voxels a side,
    torch 2.13).
    """

    def forward(self, input: Tensor) -> Tensor:
        in_bf16 = input.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        bordered = 3 if in_bf16 and input.device.type == "cpu" else 2
        # channels last: as the weights lie, so do then their gradients, which else would have to be copied
        weight, border, padding = self.weight.permute(0, 2, 3, 4, 1), [0] * 6, [1, 1, 1]
        for axis, side in enumerate(input.shape[2:]):
            if side < bordered:
                padding[axis] = 0
            if side == 1:
                weight = weight.narrow(1 + axis, 1, 1)
            elif side < bordered:
                border[4 - 2 * axis : 6 - 2 * axis] = [1, 1]
        if any(border):
            input = functional.pad(input, border)
        weight = weight.permute(0, 4, 1, 2, 3)
        if len(input) == 1 and _by_onednn(input):
            alone: Tensor = torch.ops.aten.mkldnn_convolution(
                input, weight, self.bias, padding, self.stride, self.dilation, self.groups
            )
            return alone
        return functional.conv3d(input, weight, self.bias, self.stride, padding)


def _by_onednn(input: Tensor) -> bool:
    """Whether oneDNN's convolution may be called by its name, which knows no autocast and which torch.compile cannot
    trace."""
    if torch.compiler.is_compiling():
        return False
    plain = input.device.type == "cpu" and input.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return plain and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


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
                assert (module.kernel_size, module.padding) == ((3, 3, 3), (1, 1, 1))
                module.__class__ = Conv3x3x3  # keeps MONAI's initial weights, which a new layer would draw again
        self.widths = [config.init_filters * 2**level for level in range(len(config.blocks_down))]
        self.embedding_dim: int = self.widths[-1]

    def levels(self, x_BCDHW: Tensor) -> list[Tensor]:
        """Every level, from fine to coarse: (B, init_filters 2^i, d, h, w), each half the sides of the one before."""
        # channels_last_3d makes convolutions twice as fast on a CPU; the values' order in memory changes nothing else
        levels: list[Tensor] = self._forward(x_BCDHW.contiguous(memory_format=torch.channels_last_3d))
        return levels

    def feature_map(self, x_BCDHW: Tensor) -> Tensor:
        """The last level, (B, embedding_dim, d, h, w)."""
        return self.levels(x_BCDHW)[-1]

    def forward(self, x_BCDHW: Tensor) -> Tensor:  # type: ignore[override]  # MONAI's returns every level
        """The last level averaged over space, (B, embedding_dim)."""
        return self.feature_map(x_BCDHW).mean(dim=(2, 3, 4))
