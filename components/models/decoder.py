"""The decoder of kind ``segment``, and the grids that it lives on.

It classifies each place by what all levels say of it, interpolated there ("hypercolumns", arXiv 1411.5752): a
perceptron with two hidden layers. The first is linear, as interpolation is, so that a whole scan takes it at each
level's own grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

Triple = tuple[int, int, int]
UInt8Array = npt.NDArray[np.uint8]
SLAB = 16  # slices that are enlarged at a time, so that memory does not grow with the scan


@dataclass(frozen=True)
class Grids:
    """How a volume's voxels, the encoder's input and the decoder's output lie.

    Attributes:
        averaged: voxels that become one of the input.
        finest: level of the decoder's output.
        levels: of the encoder.
    """

    averaged: Triple
    finest: int
    levels: int

    @property
    def coarsest(self) -> int:
        """Voxels of the input along each axis for one of the coarsest level."""
        return int(2 ** (self.levels - 1))

    def cells(self, shape: Sequence[int]) -> Triple:
        """Voxels of the coarsest level for a volume of ``shape``."""
        a, b, c = (-(-n // (k * self.coarsest)) for n, k in zip(shape, self.averaged, strict=True))
        return a, b, c

    def centres(self, axis: int, count: int) -> npt.NDArray[np.float64]:
        """Where ``count`` voxels of the output are centred, in voxels of the volume: strided convolutions keep every
        second place, not the middle between two."""
        step = self.averaged[axis] * 2**self.finest
        places: npt.NDArray[np.float64] = np.arange(count, dtype=np.float64) * step + (self.averaged[axis] - 1) / 2
        return places


class Lift(nn.Module):
    """One level to the decoder's hidden channels, each of its own channels standardised before."""

    mean: Tensor
    scale: Tensor

    def __init__(self, channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.linear = nn.Linear(channels, width, bias=bias)

    def standardise(self, levels: Sequence[Tensor]) -> None:
        """From now on mean 0 and standard deviation 1 over these (1, C, d, h, w); before, channels are as they are."""
        values_CN = torch.cat([level[0].flatten(1) for level in levels], dim=1)
        self.mean, self.scale = values_CN.mean(dim=1), 1 / values_CN.std(dim=1).clamp(min=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) to (N, width), or (B, C, d, h, w) to (B, width, d, h, w)."""
        if x.ndim == 2:
            lifted: Tensor = self.linear((x - self.mean) * self.scale)
            return lifted
        weight = self.linear.weight * self.scale
        bias = -(weight @ self.mean) if self.linear.bias is None else self.linear.bias - weight @ self.mean
        return functional.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)  # no copy: channels lie last


class Decoder(nn.Module):
    """From levels to classes at the finest of them."""

    def __init__(self, channels: Sequence[int], width: int, dropout: float, classes: int) -> None:
        """``channels``: of each level, from fine to coarse. ``width``: of both hidden layers; ``dropout``: of these."""
        super().__init__()
        self.lifts = [Lift(count, width, number == 0) for number, count in enumerate(channels)]
        self.registered = nn.ModuleList(self.lifts)
        self.dropout = nn.Dropout(dropout)
        self.second, self.last = nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels (B, C_i, d, h, w), from fine to coarse, to logits (B, classes, d, h, w) at the first of them."""
        total = self.lifts[-1](levels[-1])
        for level, lift in reversed(list(zip(levels[:-1], self.lifts[:-1], strict=True))):
            total = lift(level).add_(enlarged_to(level, total))  # in its place: these are the largest arrays there are
        classified: Tensor = self._classified(total.movedim(1, -1)).movedim(-1, 1)
        return classified

    def of_voxels(self, levels: Sequence[Tensor]) -> Tensor:
        """As :meth:`forward`, of single voxels: levels (N, C_i) to logits (N, classes)."""
        return self._classified(torch.stack([lift(of) for of, lift in zip(levels, self.lifts, strict=True)]).sum(dim=0))

    def _classified(self, total: Tensor) -> Tensor:
        hidden = self.dropout(functional.relu(total, inplace=True))
        logits: Tensor = self.last(self.dropout(functional.relu(self.second(hidden), inplace=True)))
        return logits


def enlarged_to(finer: Tensor, level: Tensor) -> Tensor:
    """A level at the places of the next finer one."""
    return functional.interpolate(level, size=finer.shape[2:], mode="trilinear")


def at_finest(levels: Sequence[Tensor]) -> list[Tensor]:
    """All levels at the places of the first, enlarged from one to the next, as the decoder enlarges their sum."""
    found = []
    for number, level in enumerate(levels):
        for finer in reversed(levels[:number]):
            level = enlarged_to(finer, level)
        found.append(level)
    return found


def enlarged(logits: Tensor, grids: Grids, shape: Sequence[int]) -> UInt8Array:
    """The most likely class of each voxel: logits (classes, d, h, w) interpolated linearly onto a volume's grid."""
    depth, height, width = (
        torch.from_numpy(_between(grids.centres(axis, count), shape[axis]))
        for axis, count in enumerate(logits.shape[1:])
    )
    out = np.empty(tuple(shape), dtype=np.uint8)
    classes, _, h, w = logits.shape
    for first in range(0, shape[0], SLAB):
        weights = depth[first : first + SLAB]
        used = weights.any(dim=0).nonzero().flatten()
        low, high = int(used[0]), int(used[-1]) + 1
        slab = torch.matmul(weights[:, low:high], logits[:, low:high].reshape(classes, high - low, h * w))
        slab = slab.view(classes, -1, h, w) @ width.T
        best, value = None, None
        for number in range(classes):
            score = torch.matmul(height, slab[number])
            if best is None or value is None:
                best, value = score, torch.zeros(score.shape, dtype=torch.uint8)
            else:
                value.masked_fill_(score > best, number)
                torch.maximum(best, score, out=best)
        assert value is not None
        out[first : first + SLAB] = value.numpy()
    return out


def _between(centres: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float32]:
    """(size, centres): in which shares each voxel lies between two centres; beyond the outermost it has theirs."""
    place = np.clip(np.arange(size), centres[0], centres[-1])
    above = np.clip(np.searchsorted(centres, place, side="right"), 1, max(1, len(centres) - 1))
    weights = np.zeros((size, len(centres)), dtype=np.float32)
    if len(centres) == 1:
        weights[:] = 1
        return weights
    share = (place - centres[above - 1]) / (centres[above] - centres[above - 1])
    rows = np.arange(size)
    weights[rows, above - 1] = 1 - share
    weights[rows, above] = share
    return weights
