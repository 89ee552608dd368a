"""Crop, resize and flip as one batched product per axis: exact, on any device, without a loop over views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.models.intensity import Windows

Triple = tuple[int, int, int]


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
    B, D, H, W = x_BDHW.shape
    deep, high, wide = (weights.shape[1] for weights in (depth_BOD, height_BOH, width_BOW))
    x = torch.bmm(x_BDHW.reshape(B, D * H, W), width_BOW.transpose(1, 2))
    x = torch.bmm(depth_BOD, x.view(B, D, H * wide))
    # Three plain batched products: a broadcast one would copy both sides.
    x = torch.bmm(height_BOH.repeat_interleave(deep, dim=0), x.view(B * deep, H, wide))
    return x.view(B, deep, high, wide)


def resize_boxes(regions: Sequence[Tensor], boxes_BN23: Tensor, windows: Windows, size: Triple) -> Tensor:
    """Cut boxes out of volumes of any shapes, window and resize them, filtering where they shrink: for a GPU.

    Between window and result the numbers are float16, which holds HU above a window's lower end to 1 up to 2048 and to
    2 beyond, less than any scanner's noise: half the memory that such volumes cost in float32.

    Args:
        regions: int16 HU, B volumes.
        boxes_BN23: first voxel and sides of N boxes within each, on the host.
        size: voxels afterwards.

    Returns:
        (B * N, C, *size) float32 in [0, 1].
    """
    device, C, (deep, high, wide) = regions[0].device, len(windows), size
    sides_3X = boxes_BN23[:, :, 1].flatten(0, 1).T.float()
    zero_X, still_X = torch.zeros(sides_3X.shape[1], device=device), torch.zeros(1, dtype=torch.bool, device=device)
    depth_XOD, height_XOH, width_XOW = (
        axis_weights(zero_X, sides_X.to(device, non_blocking=True), int(sides_X.max()), m, still_X).half()
        for sides_X, m in zip(sides_3X, size, strict=True)
    )
    low_C = torch.tensor([round(centre - width / 2) for centre, width in windows], dtype=torch.int16)
    high_C = torch.tensor([round(centre + width / 2) for centre, width in windows], dtype=torch.int16)
    low_C111, high_C111 = (value.to(device)[:, None, None, None] for value in (low_C, high_C))
    out_XCDHW = torch.empty((len(zero_X), C, *size), device=device)
    flat = [(hu, box) for hu, boxes in zip(regions, boxes_BN23.tolist(), strict=True) for box in boxes]
    for number, (hu, (start, (d, h, w))) in enumerate(flat):
        a, b, c = start
        seen_CDHW = hu[a : a + d, b : b + h, c : c + w].clamp(low_C111, high_C111)
        x = torch.sub(seen_CDHW, low_C111, out=torch.empty(seen_CDHW.shape, dtype=torch.float16, device=device))
        x = x.view(-1, w) @ width_XOW[number, :, :w].T
        x = torch.bmm(height_XOH[number, :, :h].expand(C * d, -1, -1), x.view(C * d, h, wide))
        x = torch.bmm(depth_XOD[number, :, :d].expand(C, -1, -1), x.view(C, d, high * wide))
        out_XCDHW[number] = x.view(C, deep, high, wide)
    span_C111 = torch.tensor([width for _, width in windows], device=device)[:, None, None, None]
    return out_XCDHW.div_(span_C111).clamp_(0, 1)


@dataclass(frozen=True)
class Level:
    """A volume seen through its windows, ready to be cut and resized; small enough to be kept in memory.

    Attributes:
        values: uint16 (C, D, H, W), HU above the lower end of each window; where ``halved``, sums over 2^3 voxels.
        halved: one value stands for a block of 2^3 voxels.
        windows: (centre, width) per channel.
    """

    values: npt.NDArray[np.uint16]
    halved: bool
    windows: Windows

    @classmethod
    def of(cls, hu: npt.NDArray[np.int16], windows: Windows, halved: bool) -> Level:
        """Window a volume; with ``halved``, add up blocks of 2^3 voxels (an odd last plane is repeated)."""
        channels = []
        for centre, width in windows:
            low = round(centre - width / 2)
            x = (np.clip(hu, low, round(centre + width / 2)) - np.int16(low)).view(np.uint16)
            for axis in range(3) if halved else ():
                first, second = _every_second(x, axis, 0), _every_second(x, axis, 1)
                if first.shape != second.shape:
                    second = np.concatenate([second, first.take([-1], axis=axis)], axis=axis)
                x = first + second  # at most 8 * 8191, which uint16 holds
            channels.append(x)
        return cls(np.stack(channels), halved, windows)

    def resize(self, start: Triple, side: Triple, size: Triple) -> Tensor:
        """Cut a box and resize it, filtering where it shrinks: float32 (C, *size) in [0, 1].

        Args:
            start, side: first value and number of values of the box along each axis, in values of this level.
            size: voxels afterwards.
        """
        cut = tuple(slice(s, s + k) for s, k in zip(start, side, strict=True))
        x_CDHW = torch.from_numpy(self.values[(slice(None), *cut)].astype(np.float32))
        zero, still = torch.zeros(1), torch.zeros(1, dtype=torch.bool)
        depth, height, width = (
            axis_weights(zero, torch.tensor([float(k)]), k, m, still)[0] for k, m in zip(side, size, strict=True)
        )
        x_CDHW = torch.matmul(x_CDHW, width.T)
        x_CDHW = torch.matmul(height, x_CDHW)
        x_CDHW = torch.matmul(depth, x_CDHW.flatten(2)).view(len(self.windows), *size)
        scale = torch.tensor([w * (8 if self.halved else 1) for _, w in self.windows])
        return x_CDHW.div_(scale[:, None, None, None]).clamp_(0, 1)


def _every_second(x: npt.NDArray[np.uint16], axis: int, first: int) -> npt.NDArray[np.uint16]:
    return x[tuple(slice(first, None, 2) if i == axis else slice(None) for i in range(3))]


def may_halve(side: Triple, size: Triple, windows: Windows) -> bool:
    """Whether a box of ``side`` voxels loses no detail when it is halved before it is resized to ``size``."""
    return all(k >= 2 * m for k, m in zip(side, size, strict=True)) and all(w < 8192 for _, w in windows)


def resize_windows(hu: npt.NDArray[np.int16], windows: Windows, size: Triple) -> Tensor:
    """Window a whole volume, then resize it, filtering where it shrinks: int16 (D, H, W) to float32 (C, *size).

    The windowing is done on int16, and the scaling to [0, 1], which commutes with the resize, on the small result.
    """
    d, h, w = hu.shape
    level = Level.of(hu, windows, may_halve((d, h, w), size, windows))
    _, d, h, w = level.values.shape
    return level.resize((0, 0, 0), (d, h, w), size)
