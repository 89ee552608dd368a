"""Within-volume NT-Xent, the loss of CT-FM (arXiv 2501.09001)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def within_volume_ntxent(z_VKPE: Tensor, temperature: float) -> Tensor:
    """NT-Xent whose negatives come from the anchor's own volume only.

    The anchor is view 0 of crop i, its positive view 1 of crop i, its negatives both views of the K - 1 other crops of
    the same volume (28 for the published K = 15). No negative comes from another volume or another worker.

    Args:
        z_VKPE: projections, (volumes, crops K >= 2, 2 views, E); they are normalised here.
        temperature: of the softmax.

    Returns:
        The mean over all V * K anchors, a scalar.

    Raises:
        ValueError: fewer than 2 crops, or not 2 views.

    Example:
        >>> within_volume_ntxent(torch.eye(2).reshape(1, 2, 1, 2).expand(1, 2, 2, 2), temperature=0.1).item() < 0.001
        True
    """
    V, K, P, _ = z_VKPE.shape
    if K < 2 or P != 2:
        raise ValueError(f"projections of {K} crops with {P} views are not allowed: at least 2 crops, exactly 2 views")
    z_VKPE = functional.normalize(z_VKPE, dim=-1)
    anchors_VKE = z_VKPE[:, :, 0]
    logits_VKKP = torch.einsum("vke,vjpe->vkjp", anchors_VKE, z_VKPE) / temperature
    itself = torch.zeros(K, K, 2, dtype=torch.bool, device=z_VKPE.device)
    itself[:, :, 0] = torch.eye(K, dtype=torch.bool, device=z_VKPE.device)
    logits_VKM = logits_VKKP.masked_fill(itself, float("-inf")).flatten(2)
    positive = 2 * torch.arange(K, device=z_VKPE.device) + 1
    return functional.cross_entropy(logits_VKM.flatten(0, 1), positive.repeat(V))
