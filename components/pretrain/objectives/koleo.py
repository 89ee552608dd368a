"""KoLeo: embeddings keep away from their nearest neighbour (arXiv 1806.03198, as in DINOv2, arXiv 2304.07193)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from components.pretrain.objectives.precision import in_full_precision
from components.pretrain.workers import gather, together

EPSILON = 1e-8


@in_full_precision
def koleo_loss(embedding_BE: Tensor) -> Tensor:
    """Minus the mean logarithm of the distance between each unit-length embedding and its nearest neighbour.

    Args:
        embedding_BE: one row per sample of this worker; neighbours are looked for over all workers.

    Returns:
        The mean over this worker's rows, a scalar; 0 where there is a single row, which has no neighbour.
    """
    unit_BE = functional.normalize(embedding_BE, dim=-1, eps=EPSILON)
    all_CE = gather(unit_BE)
    if len(all_CE) < 2:
        return embedding_BE.sum() * 0
    with torch.no_grad():
        place_B = torch.arange(len(unit_BE), device=unit_BE.device)
        place_B = place_B + (len(unit_BE) * dist.get_rank() if together() else 0)
        nearest_B = (unit_BE @ all_CE.T).scatter(1, place_B[:, None], -2.0).argmax(dim=1)
    distance_B = functional.pairwise_distance(unit_BE, all_CE[nearest_B], eps=EPSILON)
    return -(distance_B + EPSILON).log().mean()
