"""NT-Xent, the loss of SimCLR (arXiv 2002.05709): within a volume (CT-FM, arXiv 2501.09001), or across volumes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from components.pretrain.objectives.precision import in_full_precision
from components.pretrain.workers import gather, together


@in_full_precision
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


@in_full_precision
def across_volume_ntxent(z_NPE: Tensor, temperature: float) -> Tensor:
    """The usual NT-Xent: every view of every crop is an anchor, its positive the other view of the same crop, its
    negatives all other views of the global batch, whichever volume or worker they come from.

    Args:
        z_NPE: projections of this worker's N crops, 2 views each; they are normalised here.
        temperature: of the softmax.

    Returns:
        The mean over this worker's 2 N anchors, a scalar.

    Raises:
        ValueError: fewer than 2 crops over all workers, or not 2 views.
    """
    N, P, _ = z_NPE.shape
    if P != 2:
        raise ValueError(f"projections with {P} views are not allowed: exactly 2 views")
    z_XE = functional.normalize(z_NPE, dim=-1).flatten(0, 1)  # views of one crop side by side
    all_YE = gather(z_XE)
    if len(all_YE) < 4:
        raise ValueError(f"{len(all_YE) // 2} crop is not allowed: at least 2 over all workers, to have a negative")
    logits_XY = z_XE @ all_YE.T / temperature
    place_X = torch.arange(2 * N, device=z_XE.device) + (2 * N * dist.get_rank() if together() else 0)
    logits_XY = logits_XY.scatter(1, place_X[:, None], float("-inf"))
    return functional.cross_entropy(logits_XY, place_X ^ 1)
