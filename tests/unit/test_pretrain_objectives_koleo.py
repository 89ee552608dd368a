"""KoLeo is the published loss."""

import pytest
import torch
from peers import lightly_losses

from components.pretrain.objectives.koleo import koleo_loss


def test_equals_the_definition_and_lightly() -> None:
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    unit = x / x.norm(dim=1, keepdim=True)
    nearest = [min(float((unit[i] - unit[j]).norm()) for j in range(8) if j != i) for i in range(8)]
    assert koleo_loss(x).item() == pytest.approx(-torch.tensor(nearest).double().log().mean().item(), abs=1e-6)
    assert koleo_loss(x).item() == pytest.approx(lightly_losses().KoLeoLoss()(x).item(), abs=1e-6)


def test_gradients_in_double_precision() -> None:
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(koleo_loss, (x.requires_grad_(),))


def test_a_single_row_costs_nothing() -> None:
    assert koleo_loss(torch.ones(1, 3)).item() == 0
