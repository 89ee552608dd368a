"""Self-distillation with centring: DINO (arXiv 2104.14294)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.pretrain.config import DinoConfig
from components.pretrain.objectives.precision import in_full_precision
from components.pretrain.workers import sum_over_workers


class BatchStandardise(nn.Module):
    """Zero mean and unit variance of each feature over the *global* batch: (B, D) to (B, D).

    A batch norm without affine part and without memory, over all workers on any device: torch's own synchronised one
    needs CUDA, and statistics of one worker's few rows would make the targets depend on the number of workers.
    """

    def forward(self, x_BD: Tensor) -> Tensor:
        rows = torch.full((1,), float(len(x_BD)), device=x_BD.device)
        sums = sum_over_workers(torch.cat([x_BD.sum(dim=0), x_BD.square().sum(dim=0), rows]))
        mean_D, square_D = (sums[:-1] / sums[-1]).chunk(2)
        return (x_BD - mean_D) * torch.rsqrt((square_D - mean_D.square()).clamp(min=0) + 1e-5)


class DinoHead(nn.Module):
    """Three layers, a normalised bottleneck, then cosine similarity to unit-length prototypes: (B, D) to (B, M).

    With ``config.standardise`` the input is standardised over the batch: a fresh transformer gives all heads nearly the
    same embedding, and at a few hundred steps self-distillation would not get away from that point.
    """

    def __init__(self, dim: int, config: DinoConfig, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            BatchStandardise() if config.standardise else nn.Identity(),
            nn.Linear(dim, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.bottleneck),
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, config.bottleneck))
        nn.init.normal_(self.prototypes)

    def forward(self, x_BD: Tensor) -> Tensor:
        bottleneck_BE = functional.normalize(self.mlp(x_BD), dim=-1, eps=1e-6)
        return functional.linear(bottleneck_BE, functional.normalize(self.prototypes, dim=-1))


def teacher_probabilities(logits_GBM: Tensor, centre_M: Tensor, temperature: float) -> Tensor:
    """Centred and sharpened teacher output, without gradient."""
    return functional.softmax((logits_GBM.detach() - centre_M) / temperature, dim=-1)


def logit_sums(logits_XM: Tensor) -> Tensor:
    """What :func:`moved_centre` needs of some rows of the teacher's logits: their sum and their number, (M + 1,)."""
    rows = torch.full((1,), float(len(logits_XM)), device=logits_XM.device)
    return torch.cat([logits_XM.sum(dim=0), rows])


def moved_centre(centre_M: Tensor, sums_X: Tensor, momentum: float) -> Tensor:
    """The centre after a step: a moving average of the mean of the teacher's logits over all rows of all workers, whose
    :func:`logit_sums` are given."""
    sums = sum_over_workers(sums_X)
    return centre_M.lerp((sums[:-1] / sums[-1].clamp(min=1)).to(centre_M), 1 - momentum)


@in_full_precision
def dino_loss(student_SBM: Tensor, teacher_GBM: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between every teacher view and every *other* student view.

    Args:
        student_SBM: student logits of S views; the first G are the global views that the teacher saw.
        teacher_GBM: teacher probabilities of the G global views.
        temperature: of the student.

    Returns:
        The mean over the batch and over the G * (S - 1) pairs of different views, a scalar.

    Raises:
        ValueError: fewer than two student views.
    """
    S, G = len(student_SBM), len(teacher_GBM)
    if S < 2:
        raise ValueError(f"{S} student views are not allowed: at least 2")
    log_student_SBM = functional.log_softmax(student_SBM / temperature, dim=-1)
    cross_SG = -torch.einsum("sbm,gbm->sg", log_student_SBM, teacher_GBM) / student_SBM.shape[1]
    same_SG = torch.eye(S, G, dtype=torch.bool, device=cross_SG.device)
    return cross_SG.masked_fill(same_SG, 0).sum() / (G * (S - 1))


def entropy(probabilities_XM: Tensor) -> Tensor:
    """Mean entropy of the rows, as a share of its largest value log M: 0 is one-hot, 1 is uniform."""
    p = probabilities_XM.clamp_min(1e-12)
    return -(p * p.log()).sum(-1).mean() / math.log(p.shape[-1])


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's parameters towards the student's: teacher = momentum * teacher + (1 - momentum) * student."""
    # All parameters in two calls, as torch's optimisers do it; its own moving average ends in other last bits.
    kept: list[Tensor] = list(teacher.parameters())
    new: list[Tensor] = list(student.parameters())
    torch._foreach_mul_(kept, momentum)
    torch._foreach_add_(kept, new, alpha=1 - momentum)
