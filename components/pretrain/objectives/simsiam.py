"""SimSiam: each view predicts the other, which gets no gradient (arXiv 2011.10566)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from components.pretrain.objectives.precision import in_full_precision


@in_full_precision
def simsiam_loss(predicted_NPE: Tensor, z_NPE: Tensor) -> Tensor:
    """Negative cosine similarity of each view's prediction and the other view's projection.

    Args:
        predicted_NPE: predictions from the projections, N crops with 2 views each.
        z_NPE: the projections; no gradient flows into them from here.

    Returns:
        The mean over crops and both directions, a scalar in [-1, 1].

    Raises:
        ValueError: not 2 views.
    """
    if z_NPE.shape[1] != 2:
        raise ValueError(f"projections with {z_NPE.shape[1]} views are not allowed: exactly 2 views")
    return -functional.cosine_similarity(predicted_NPE, z_NPE.detach().flip(1), dim=-1).mean()
