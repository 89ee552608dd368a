"""iBOT's loss is the published one."""

import pytest
import torch
from peers import lightly_losses
from torch import Tensor

from components.pretrain.objectives.dino import logit_sums, moved_centre, teacher_probabilities
from components.pretrain.objectives.ibot import ibot_loss


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher at the masked patches of three views; the last view has none."""
    masked = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(4, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    return student, teacher, masked


def test_equals_the_definition_and_lightly() -> None:
    student, logits, masked = drawn()
    teacher = teacher_probabilities(logits, torch.zeros(6, dtype=torch.float64), 0.04)
    loss = ibot_loss(student, teacher, masked, 0.1).item()
    terms = [-(teacher[i] * torch.log_softmax(student[i] / 0.1, dim=-1)).sum() for i in range(4)]
    assert loss == pytest.approx(float((terms[0] + terms[1] + terms[2]) / 3 + terms[3]) / 3, abs=1e-9)
    theirs = lightly_losses().IBOTPatchLoss(output_dim=6)(logits, student, masked[:, :, None])
    assert loss == pytest.approx(theirs.item(), abs=1e-6)


def test_gradients_in_double_precision() -> None:
    student, logits, masked = drawn()
    teacher = teacher_probabilities(logits, torch.zeros(6, dtype=torch.float64), 0.1)
    assert torch.autograd.gradcheck(lambda x: ibot_loss(x, teacher, masked, 0.2), (student.requires_grad_(),))


def test_rows_that_do_not_belong_to_masked_patches_are_refused() -> None:
    student, teacher, masked = drawn()
    with pytest.raises(ValueError, match="one per masked patch, 4"):
        ibot_loss(student[:3], teacher[:3], masked, 0.1)


def test_the_centre_moves_towards_the_mean_logits() -> None:
    _, logits, _ = drawn()
    centre = torch.ones(6, dtype=torch.float64)
    assert torch.allclose(moved_centre(centre, logit_sums(logits), 0.9), 0.9 * centre + 0.1 * logits.mean(dim=0))
