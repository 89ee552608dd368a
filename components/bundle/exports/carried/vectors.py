"""The encoder of a release and its vectors, without ctfoundry: this file goes into exports, beside ``pooling.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets.segresnet_ds import SegResEncoder
from torch import Tensor, nn
from torch.nn import functional

from components.models.pooling import Pooling, pool_levels

AIR_HU, BODY_HU, BODY_FRACTION = -1024, -500, 0.1  # a crop with less body than this says nothing about the patient
BATCH = 8


class Vectors(nn.Module):
    """MONAI's SegResEncoder, whose levels are pooled to one vector.

    Args:
        pooling: of the release.
        encoder: arguments of SegResEncoder.
    """

    def __init__(self, pooling: Pooling, **encoder: Any) -> None:
        super().__init__()
        self.pooling = pooling
        self.encoder = SegResEncoder(**encoder)

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """Crops, each window a channel in [0, 1], to vectors (B, dim)."""
        levels = self.encoder(x_BCDHW)
        if self.pooling == "own":
            own: Tensor = levels[-1].mean(dim=(2, 3, 4))
            return own
        return pool_levels(levels, self.pooling)


def windowed(hu: Tensor, windows: Sequence[Sequence[float]]) -> Tensor:
    """HU (N, D, H, W) to (N, C, D, H, W), a channel for each (centre, width), clipped and scaled to [0, 1]."""
    return torch.stack([((hu - (c - w / 2)) / w).clamp(0, 1) for c, w in windows], dim=1)


def covering(hu_DHW: Tensor, size: Sequence[int]) -> Tensor:
    """The crops (N, *size) that cover a volume side by side, centred on it, and hold at least 10 % body."""
    border = []
    for n, k in reversed(list(zip(hu_DHW.shape, size, strict=True))):
        more = -n % k
        border += [(more + 1) // 2, more // 2]
    crops = functional.pad(hu_DHW, border, value=AIR_HU)
    for axis, k in enumerate(size):
        crops = crops.unfold(axis, k, k)
    crops = crops.reshape(-1, *size)
    seen = crops[(crops > BODY_HU).float().mean(dim=(1, 2, 3)) >= BODY_FRACTION]
    if not len(seen):
        raise ValueError(f"no part of the volume {tuple(hu_DHW.shape)} holds enough body (HU > {BODY_HU})")
    return seen


@torch.inference_mode()
def volume_vector(
    network: nn.Module, hu_DHW: Tensor, windows: Sequence[Sequence[float]], size: Sequence[int]
) -> list[float]:
    """The vector of a whole volume in HU on the release's grid: the mean over :func:`covering`."""
    crops = covering(hu_DHW.float(), size)
    parts = [network(windowed(crops[first : first + BATCH], windows)) for first in range(0, len(crops), BATCH)]
    return [float(value) for value in torch.cat(parts).double().mean(dim=0)]


def vectors_of_files(
    network: nn.Module,
    load: Callable[[dict[str, str]], dict[str, Tensor]],
    folder: str,
    windows: Sequence[Sequence[float]],
    size: Sequence[int],
    device: str,
) -> dict[str, list[float]]:
    """File name to vector of every NIfTI volume (.nii, .nii.gz) of a folder; ``load`` brings it to the release's
    grid, (1, D, H, W) under ``image``."""
    files = sorted(path for path in Path(folder).iterdir() if path.name.endswith((".nii", ".nii.gz")))
    if not files:
        raise ValueError(f"{folder}: holds no NIfTI volume; allowed: a folder with .nii or .nii.gz files")
    found = {}
    for path in files:
        hu_DHW = torch.as_tensor(load({"image": str(path)})["image"])[0]
        found[path.name] = volume_vector(network.to(device), hu_DHW.to(device), windows, size)
    return found
