"""Self-distillation: the loss by its definition, centre and teacher."""

import math

import pytest
import torch
from peers import lightly_losses
from torch import nn

from components.pretrain.objectives.dino import (
    BatchStandardise,
    dino_loss,
    entropy,
    logit_sums,
    moved_centre,
    teacher_probabilities,
    update_teacher,
)


def test_equals_the_definition_over_pairs_of_different_views() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 3, 7, dtype=torch.float64, generator=generator)
    teacher = teacher_probabilities(
        torch.randn(2, 3, 7, dtype=torch.float64, generator=generator), torch.zeros(7, dtype=torch.float64), 0.04
    )
    terms = [
        -(teacher[g, b] * torch.log_softmax(student[s, b] / 0.1, dim=-1)).sum()
        for g in range(2)
        for s in range(4)
        if s != g
        for b in range(3)
    ]
    assert len(terms) == 2 * 3 * 3
    assert dino_loss(student, teacher, 0.1).item() == pytest.approx(torch.stack(terms).mean().item(), abs=1e-9)


def test_equals_lightlys_loss_and_centre_over_two_steps() -> None:
    generator = torch.Generator().manual_seed(3)
    theirs, centre = lightly_losses().DINOLoss(output_dim=7, center_momentum=0.9), torch.zeros(7)
    for _ in range(2):
        student, logits = (torch.randn(n, 3, 7, generator=generator) for n in (4, 2))
        ours = dino_loss(student, teacher_probabilities(logits, centre, 0.04), 0.1)
        assert ours.item() == pytest.approx(theirs(list(logits), list(student)).item(), abs=1e-6)
        centre = moved_centre(centre, logit_sums(logits.flatten(0, 1)), 0.9)


def test_gradients_reach_the_student_in_double_precision_and_not_the_teacher() -> None:
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(3, 2, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    logits = torch.randn(2, 2, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    teacher = teacher_probabilities(logits, torch.zeros(5, dtype=torch.float64), 0.1)
    assert not teacher.requires_grad
    assert torch.autograd.gradcheck(lambda x: dino_loss(x, teacher, 0.2), (student,))


def test_teacher_follows_the_student() -> None:
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.9 * teacher.weight.detach() + 0.1 * student.weight.detach()
    update_teacher(teacher, student, 0.9)
    assert torch.allclose(teacher.weight, expected)


def test_entropy_is_a_share_of_the_largest() -> None:
    assert entropy(torch.full((2, 8), 1 / 8)).item() == pytest.approx(1)
    assert entropy(torch.eye(8)).item() == pytest.approx(0, abs=1e-6)
    assert entropy(torch.tensor([[0.5, 0.5, 0, 0]])).item() == pytest.approx(math.log(2) / math.log(4), rel=1e-4)


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(8, 5, generator=generator) * 3 + 1, torch.randn(8, 5, generator=generator)


def test_standardising_equals_a_batch_norm_without_affine_part() -> None:
    x, _ = rows()
    assert torch.allclose(BatchStandardise()(x), nn.BatchNorm1d(5, affine=False)(x), atol=1e-5)
