"""Masked tokens that predict the teacher's assignment of the same patch: iBOT (arXiv 2111.07832)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from components.pretrain.objectives.precision import in_full_precision


@in_full_precision
def ibot_loss(student_XM: Tensor, teacher_XM: Tensor, masked_BN: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between teacher and student at the masked patches.

    Args:
        student_XM: student logits of the masked patches, in the order of ``masked_BN.nonzero()``.
        teacher_XM: teacher probabilities of the same patches.
        masked_BN: which patches of each view were masked.
        temperature: of the student.

    Returns:
        The mean over each view's masked patches, then over all B views (a view without any counts as zero), a scalar.

    Raises:
        ValueError: the rows are not as many as the masked patches.
    """
    if not len(student_XM) == len(teacher_XM) == int(masked_BN.sum()):
        raise ValueError(
            f"{len(student_XM)} student and {len(teacher_XM)} teacher rows are not allowed: one per masked patch, "
            f"{int(masked_BN.sum())}"
        )
    cross_X = -(teacher_XM * functional.log_softmax(student_XM / temperature, dim=-1)).sum(dim=-1)
    share_BN = masked_BN.to(cross_X) / masked_BN.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.dot(cross_X, share_BN[masked_BN]) / len(masked_BN)
