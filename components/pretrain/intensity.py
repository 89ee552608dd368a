"""Intensity operations on batches of views: windows, histogram shift, smoothing, shift, gamma."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

Windows = tuple[tuple[float, float], ...]


def apply_windows(hu: Tensor, windows: Windows) -> Tensor:
    """HU of any shape (..., D, H, W) to float32 channels (..., C, D, H, W), clipped and scaled to [0, 1].

    Args:
        windows: (centre, width) in HU, one channel each. [-1024, 2048] of CT-FM is the window (512, 3072).
    """
    channels = [hu.float().sub(centre - width / 2).div_(width).clamp_(0, 1) for centre, width in windows]
    return torch.stack(channels, dim=-4)


def histogram_shift(x_BCDHW: Tensor, levels_BM: Tensor, chosen_B: Tensor) -> Tensor:
    """Map the grey values between a view's minimum and maximum through a piecewise linear curve (MONAI's rule).

    Args:
        x_BCDHW: views.
        levels_BM: values in [0, 1] of the curve at M evenly spaced control points, increasing.
        chosen_B: False leaves the view as it is.
    """
    points = levels_BM.shape[1]
    flat_BN = x_BCDHW.flatten(1)
    low_B1, high_B1 = flat_BN.amin(1, keepdim=True), flat_BN.amax(1, keepdim=True)
    span_B1 = (high_B1 - low_B1).clamp(min=1e-6)
    position_BN = (flat_BN - low_B1) / span_B1 * (points - 1)
    left_BN = position_BN.floor().clamp(0, points - 2)
    index_BN = left_BN.long()
    y0_BN, y1_BN = levels_BM.gather(1, index_BN), levels_BM.gather(1, index_BN + 1)
    shifted_BN = low_B1 + span_B1 * (y0_BN + (y1_BN - y0_BN) * (position_BN - left_BN))
    return torch.where(chosen_B[:, None], shifted_BN, flat_BN).view_as(x_BCDHW)


def smooth(x_BCDHW: Tensor, sigma_B: Tensor, chosen_B: Tensor) -> Tensor:
    """Gaussian smoothing with one sigma (voxels, equal on all axes) per view; borders are continued, not darkened."""
    index = chosen_B.nonzero().flatten()
    if len(index) == 0:
        return x_BCDHW
    sigma_S1 = sigma_B[index].float()[:, None]
    radius = math.ceil(3 * float(sigma_S1.max()))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32, device=x_BCDHW.device)
    kernel_SK = torch.exp(-0.5 * (offsets / sigma_S1) ** 2)
    kernel_SK = kernel_SK / kernel_SK.sum(dim=1, keepdim=True)
    part = x_BCDHW[index]
    for axis in (2, 3, 4):
        padding = [0] * 6
        padding[2 * (4 - axis)] = padding[2 * (4 - axis) + 1] = radius
        padded, size = functional.pad(part, padding, mode="replicate"), part.shape[axis]
        part = torch.zeros_like(part)
        for k in range(2 * radius + 1):
            part.addcmul_(kernel_SK[:, k, None, None, None, None], padded.narrow(axis, k, size))
    return x_BCDHW.index_copy(0, index, part)


def shift(x_BCDHW: Tensor, amount_B: Tensor) -> Tensor:
    """Add one number per view, then clip to [0, 1]: a wrongly calibrated or contrast-changed scan."""
    return (x_BCDHW + amount_B[:, None, None, None, None]).clamp(0, 1)


def gamma(x_BCDHW: Tensor, exponent_B: Tensor) -> Tensor:
    """Raise values in [0, 1] to one power per view."""
    return x_BCDHW.clamp(min=0).pow(exponent_B[:, None, None, None, None])
