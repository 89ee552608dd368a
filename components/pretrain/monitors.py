"""How the embedding fares during training, and when a run has collapsed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def spread(embedding_BE: Tensor) -> float:
    """Mean standard deviation of unit-length embeddings times sqrt(E): 1 when spread evenly, 0 when collapsed."""
    unit_BE = functional.normalize(embedding_BE.double(), dim=-1)
    return float(unit_BE.std(dim=0, correction=0).mean() * unit_BE.shape[1] ** 0.5)


def effective_rank(embedding_BE: Tensor) -> float:
    """Exponential of the entropy of the centred embeddings' singular values (Roy and Vetterli 2007)."""
    values = torch.linalg.svdvals(embedding_BE.double() - embedding_BE.double().mean(dim=0))
    shares = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum()))


def alignment(first_BE: Tensor, second_BE: Tensor) -> Tensor:
    """Mean squared distance between unit-length embeddings of two views of the same thing: 0 where they agree, 2 where
    they know nothing of each other (Wang and Isola, arXiv 2005.10242)."""
    apart_BE = functional.normalize(first_BE.float(), dim=-1) - functional.normalize(second_BE.float(), dim=-1)
    return apart_BE.square().sum(dim=-1).mean()


def uniformity(embedding_BE: Tensor) -> float:
    """Logarithm of the mean Gaussian potential exp(-2 d^2) between unit-length embeddings: 0 when collapsed, towards -4
    when spread over the sphere (Wang and Isola, arXiv 2005.10242)."""
    unit_BE = functional.normalize(embedding_BE.double(), dim=-1)
    return float(torch.pdist(unit_BE).square().mul(-2).exp().mean().log()) if len(unit_BE) > 1 else 0.0
