"""Crop, resize and flip as one batched product per axis: exact, on any device, without a loop over views."""

from __future__ import annotations

import torch
from torch import Tensor

from components.pretrain.intensity import Windows


def axis_weights(start_B: Tensor, side_B: Tensor, size_in: int, size_out: int, flip_B: Tensor) -> Tensor:
    """Weights that cut [start, start + side) out of an axis and resize it to ``size_out``, (B, size_out, size_in).

    Enlarging is linear interpolation on half-pixel grids, equal to ``interpolate(align_corners=False)`` of the cut
    piece. Where the step grows, the triangle widens with it, so that fine detail is filtered and not aliased.

    Args:
        start_B, side_B: first voxel and number of voxels of the piece, whole numbers within the axis.
        size_in, size_out: voxels of the axis before and after.
        flip_B: True where the result runs backwards.
    """
    source = torch.arange(size_in, dtype=torch.float32, device=start_B.device)
    target_BO = torch.arange(size_out, dtype=torch.float32, device=start_B.device).expand(len(start_B), -1)
    target_BO = torch.where(flip_B[:, None], size_out - 1 - target_BO, target_BO)
    start_B1, side_B1 = start_B.float()[:, None], side_B.float()[:, None]
    step_B1 = side_B1 / size_out
    centre_BO = (start_B1 + (target_BO + 0.5) * step_B1 - 0.5).clamp(min=start_B1, max=start_B1 + side_B1 - 1)
    distance_BOI = (centre_BO[:, :, None] - source).abs() / step_B1.clamp(min=1)[:, :, None]
    inside_B1I = (source >= start_B1[:, :, None]) & (source < (start_B1 + side_B1)[:, :, None])
    weights_BOI = (1 - distance_BOI).clamp(min=0) * inside_B1I
    return weights_BOI / weights_BOI.sum(dim=2, keepdim=True)


def resample(x_BDHW: Tensor, depth_BOD: Tensor, height_BOH: Tensor, width_BOW: Tensor) -> Tensor:
    """Apply one matrix per axis: (B, D, H, W) to (B, D', H', W')."""
    x_BDHW = torch.matmul(x_BDHW, width_BOW.transpose(1, 2)[:, None])
    x_BDHW = torch.matmul(height_BOH[:, None], x_BDHW)
    B, _, H, W = x_BDHW.shape
    return torch.bmm(depth_BOD, x_BDHW.flatten(2)).view(B, depth_BOD.shape[1], H, W)


def resize_windows(hu: Tensor, windows: Windows, size: tuple[int, int, int]) -> Tensor:
    """Window a whole box, then resize it, filtering where it shrinks: int16 (D, H, W) to float32 (C, *size) in [0, 1].

    Equal to :func:`apply_windows` followed by a resize, and several times faster: the clipping is done on int16, and
    the scaling, which commutes with the resize, on the small result.
    """
    zero, flip = torch.zeros(1), torch.zeros(1, dtype=torch.bool)
    weights = [
        axis_weights(zero, torch.tensor([float(n)]), n, m, flip)[0].to(hu.device)
        for n, m in zip(hu.shape, size, strict=True)
    ]
    channels = []
    for centre, width in windows:
        low, high = centre - width / 2, centre + width / 2
        x_DHW = hu.clamp(round(low), round(high)).float()
        x_DHW = torch.mm(weights[0], x_DHW.flatten(1)).view(size[0], *hu.shape[1:])
        x_DHW = torch.matmul(weights[1], x_DHW)
        channels.append(torch.matmul(x_DHW, weights[2].T).sub_(low).div_(width).clamp_(0, 1))
    return torch.stack(channels)
