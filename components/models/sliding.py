"""Sliding windows over a scan that is too large to be seen at once.

MONAI's inferer adds up every window's answer at the input's resolution and sees windows of air as well. Here answers
are added up where the network gives them, at its own coarser grid, and enlarged once; windows without body are left
out.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor

Triple = tuple[int, int, int]


def window_starts(size: int, window: int, overlap: float, multiple: int) -> list[int]:
    """First voxels of the windows along an axis: as MONAI lays them, moved down onto ``multiple``; the last one ends at
    the axis' end, which is a multiple as well."""
    if size <= window:
        return [0]
    step = max(multiple, int(window * (1 - overlap)) // multiple * multiple)
    count = ceil((size - window) / step) + 1
    return [min(index * step, size - window) for index in range(count)]


def sliding_window(
    image: Tensor,
    window: Triple,
    overlap: float,
    fold: int,
    multiple: int,
    predict: Callable[[Tensor], Tensor],
    body: Tensor,
) -> Tensor:
    """The network's answer to a whole image, as a mean over windows with Gaussian weights, MONAI's.

    Args:
        image: (1, C, D, H, W), sides that are multiples of ``multiple``.
        window: sides of a window, multiples as well; smaller where the image is.
        overlap: of neighbouring windows.
        fold: input voxels along each axis for one of the answer; divides ``multiple``.
        multiple: on which windows start, so that the network's grid is the same in all of them.
        predict: window (1, C, d, h, w) to logits (1, K, d / fold, h / fold, w / fold).
        body: (D, H, W), True where there is any: windows without it are left out, unless all are.

    Returns:
        (K, D / fold, H / fold, W / fold); where no window was seen, class 0 has 1 and all others 0.
    """
    from monai.data.utils import compute_importance_map  # takes seconds to import

    shape = image.shape[2:]
    sides = [min(n, k) for n, k in zip(shape, window, strict=True)]
    starts = [window_starts(n, k, overlap, multiple) for n, k in zip(shape, sides, strict=True)]
    weights = compute_importance_map(
        tuple(k // fold for k in sides), mode="gaussian", sigma_scale=0.125, dtype=torch.float32
    )
    weights = weights.clamp(min=float(weights[weights > 0].min()))
    total: Tensor | None = None
    seen = torch.zeros([n // fold for n in shape])
    boxes = [
        tuple(slice(s, s + k) for s, k in zip(start, sides, strict=True))
        for start in [(a, b, c) for a in starts[0] for b in starts[1] for c in starts[2]]
    ]
    for box in [box for box in boxes if bool(body[box].any())] or boxes:
        logits = predict(image[(slice(None), slice(None), *box)])[0]
        if total is None:
            total = torch.zeros((len(logits), *seen.shape))
        here = tuple(slice(side.start // fold, side.stop // fold) for side in box)
        total[(slice(None), *here)] += logits * weights
        seen[here] += weights
    assert total is not None
    total /= seen.clamp(min=1e-12)
    total[0].masked_fill_(seen == 0, 1.0)
    return total
