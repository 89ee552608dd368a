"""VICReg: variance, invariance, covariance (arXiv 2105.04906)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from components.pretrain.objectives.precision import in_full_precision
from components.pretrain.workers import gather

EPSILON = 1e-4  # below the square root of the variance, as published


@in_full_precision
def vicreg_loss(z_NPE: Tensor, invariance: float, variance: float, covariance: float) -> Tensor:
    """Views of a crop agree, each feature varies by at least one over the global batch, features are uncorrelated.

    Args:
        z_NPE: projections of this worker's N crops, 2 views each; not normalised.
        invariance, variance, covariance: weights of the three terms; published: 25, 25, 1.

    Returns:
        The weighted sum, a scalar; the variance term is the mean over the two views, the covariance term their sum.

    Raises:
        ValueError: fewer than 2 crops over all workers, or not 2 views.
    """
    if z_NPE.shape[1] != 2:
        raise ValueError(f"projections with {z_NPE.shape[1]} views are not allowed: exactly 2 views")
    all_PNE = gather(z_NPE.flatten(1)).view(-1, *z_NPE.shape[1:]).transpose(0, 1)
    count, dim = all_PNE.shape[1:]
    if count < 2:
        raise ValueError(f"{count} crop is not allowed: at least 2 over all workers, or nothing varies")
    agree = functional.mse_loss(z_NPE[:, 0], z_NPE[:, 1])
    centred_PNE = all_PNE - all_PNE.mean(dim=1, keepdim=True)
    covariance_PEE = centred_PNE.transpose(1, 2) @ centred_PNE / (count - 1)
    diagonal_PE = covariance_PEE.diagonal(dim1=1, dim2=2)
    vary = functional.relu(1 - (diagonal_PE + EPSILON).sqrt()).mean()
    others = (covariance_PEE.square().sum() - diagonal_PE.square().sum()) / dim
    loss: Tensor = invariance * agree + variance * vary + covariance * others
    return loss
