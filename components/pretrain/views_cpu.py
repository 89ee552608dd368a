"""The two views of each crop on a CPU: one after the other through OpenCV, so that each stays in the cache.

A GPU makes the same views, within rounding, all at once: :mod:`components.models.resample` and ``intensity``.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from components.models.intensity import Windows, bend, gaussian_kernels

Int16Array = npt.NDArray[np.int16]
FloatArray = npt.NDArray[np.float32]


def render_crops(crops: Int16Array, drawn: dict[str, npt.NDArray[Any]], windows: Windows) -> FloatArray:
    """Views (N, 2, C, D, H, W) in [0, 1] of crops (N, D, H, W), by the numbers (N, 2) that ``CropViews.draw`` gives."""
    views = np.empty((len(crops), 2, len(windows), *crops.shape[1:]), dtype=np.float32)
    for n, p in np.ndindex(views.shape[:2]):
        start, side = drawn["start"][n, p].tolist(), drawn["side"][n, p].tolist()
        piece = crops[n][tuple(slice(s, s + k) for s, k in zip(start, side, strict=True))]
        for (centre, width), view in zip(windows, views[n, p], strict=True):
            seen = piece.astype(np.float32)
            seen -= np.float32(centre - width / 2)
            seen *= np.float32(1 / width)
            enlarge(np.clip(seen, 0, 1, out=seen), view[::-1] if drawn["flip"][n, p] else view)
        if drawn["histogram"][n, p]:
            flat = torch.from_numpy(views[n, p]).view(1, -1)
            flat.copy_(bend(flat.clone(), torch.from_numpy(drawn["levels"][n, p])[None]))
        if drawn["smooth"][n, p]:
            for view in views[n, p]:
                smooth_in_place(view, float(drawn["sigma"][n, p]))
    return views


def enlarge(piece: FloatArray, out: FloatArray) -> None:
    """Resize (d, h, w) into ``out`` (D, H, W), no axis smaller: linear on half-pixel grids, as ``axis_weights``."""
    depth, (height, width) = len(piece), out.shape[1:]
    for k, plane in enumerate(out):
        place = min(max((k + 0.5) * depth / len(out) - 0.5, 0.0), depth - 1.0)
        below = int(place)
        share = place - below
        between = piece[below]
        if share:
            between = cv2.addWeighted(between, 1 - share, piece[below + 1], share, 0)
        cv2.resize(between, (width, height), dst=plane, interpolation=cv2.INTER_LINEAR)


def smooth_in_place(view: FloatArray, sigma: float) -> None:
    """Gaussian smoothing of (D, H, W) with one sigma in voxels; borders are continued, not darkened."""
    kernel = gaussian_kernels(torch.tensor([sigma]))[0].numpy()
    for plane in view:
        cv2.sepFilter2D(plane, -1, kernel, kernel, dst=plane, borderType=cv2.BORDER_REPLICATE)
    rows = view.reshape(len(view), -1)  # the same memory: a view is contiguous
    cv2.sepFilter2D(rows, -1, np.ones(1, dtype=np.float32), kernel, dst=rows, borderType=cv2.BORDER_REPLICATE)
