"""Intensity operations on batches of views: windows, histogram shift, smoothing, shift, gamma."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

BODY_HU = -500  # above: body (or table); below: air and most of the lung
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
    index = chosen_B.nonzero().flatten()
    if len(index) == 0:
        return x_BCDHW
    shifted_SN = bend(x_BCDHW[index].flatten(1), levels_BM[index])
    return x_BCDHW.index_copy(0, index, shifted_SN.view(-1, *x_BCDHW.shape[1:]))


def bend(part_SN: Tensor, levels_SM: Tensor) -> Tensor:
    """The curve of :func:`histogram_shift` on flat views (S, N), which are overwritten on the way."""
    points = levels_SM.shape[1]
    low_S1, high_S1 = part_SN.amin(1, keepdim=True), part_SN.amax(1, keepdim=True)
    span_S1 = (high_S1 - low_S1).clamp(min=1e-6)
    position_SN = part_SN.sub_(low_S1).mul_((points - 1) / span_S1)
    # The curve as a sum of ramps that start at the control points: no look-up, few passes over the voxels.
    slopes_SM = levels_SM.diff(dim=1)
    turns_SM = torch.cat([slopes_SM[:, :1], slopes_SM.diff(dim=1)], dim=1) * span_S1
    shifted_SN = torch.addcmul(low_S1 + span_S1 * levels_SM[:, :1], position_SN, turns_SM[:, :1])
    for k in range(1, points - 1):
        shifted_SN.addcmul_(position_SN.sub_(1).clamp_(min=0), turns_SM[:, k : k + 1])
    return shifted_SN


def gaussian_kernels(sigma_S: Tensor) -> Tensor:
    """One kernel per sigma (S, K): the Gaussian's integral over each voxel, up to 4 sigma, as MONAI's; the sum is 1."""
    sigma_S1 = sigma_S.float()[:, None]
    reach_S1 = (4 * sigma_S1 + 0.5).floor()  # each its own, whatever the others of the batch need
    radius = int(reach_S1.max())
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32, device=sigma_S.device)
    per_sigma = math.sqrt(0.5) / sigma_S1
    kernel_SK = torch.erf((offsets + 0.5) * per_sigma) - torch.erf((offsets - 0.5) * per_sigma)
    kernel_SK = kernel_SK * (offsets.abs() <= reach_S1)
    return kernel_SK / kernel_SK.sum(dim=1, keepdim=True)


def smooth(x_BCDHW: Tensor, sigma_B: Tensor, chosen_B: Tensor) -> Tensor:
    """Gaussian smoothing with one sigma (voxels, equal on all axes) per view; borders are continued, not darkened."""
    index = chosen_B.nonzero().flatten()
    if len(index) == 0:
        return x_BCDHW
    kernel_SK = gaussian_kernels(sigma_B[index])
    radius = kernel_SK.shape[1] // 2
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
