"""From an encoder's feature maps to one vector: which of them count, and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["own", "levels", "centre"]
PARTS = {"levels": 1, "centre": 3}  # vectors of each level


def pool_levels(levels: Sequence[Tensor], pooling: Pooling) -> Tensor:
    """One vector of all levels, from fine to coarse, (B, D).

    ``levels`` is the mean of each. ``centre`` adds mean and maximum of its middle: what lies at the point is told apart
    from what lies round it, and what is small is not drowned. Untrained encoders gain by it as well.

    Args:
        levels: (B, C, d, h, w) each.
        pooling: not ``own``, which is the encoder's.
    """
    if pooling == "levels":
        return torch.cat([_mean(level) for level in levels], dim=1)
    parts = [(_mean(level), _mean(middle(level)), middle(level).amax(dim=(2, 3, 4))) for level in levels]
    return torch.cat([vector_BC for of_level in parts for vector_BC in of_level], dim=1)


def middle(x_BCDHW: Tensor) -> Tensor:
    """The middle quarter of each axis, at least one place: of an even number of places the later ones, for a crop's
    point lies there, and a convolution of stride 2 keeps it there."""
    for axis, places in enumerate(x_BCDHW.shape[2:], start=2):
        taken = max(1, round(places / 4))
        x_BCDHW = x_BCDHW.narrow(axis, places // 2 - taken // 2, taken)
    return x_BCDHW


def _mean(x_BCDHW: Tensor) -> Tensor:
    return x_BCDHW.mean(dim=(2, 3, 4))
