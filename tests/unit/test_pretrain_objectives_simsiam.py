"""SimSiam is the published loss."""

import pytest
import torch
from peers import lightly_losses

from components.pretrain.objectives.simsiam import simsiam_loss


def test_equals_the_definition_and_lightly_and_stops_the_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    z, p = (torch.randn(6, 2, 5, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    by_hand = sum(-(p[i, a] @ z[i, 1 - a]) / (p[i, a].norm() * z[i, 1 - a].norm()) for i in range(6) for a in range(2))
    loss = simsiam_loss(p, z)
    assert loss.item() == pytest.approx(float(torch.as_tensor(by_hand).detach()) / 12, abs=1e-9)
    cosine = lightly_losses().NegativeCosineSimilarity()
    assert loss.item() == pytest.approx(0.5 * float(cosine(p[:, 0], z[:, 1]) + cosine(p[:, 1], z[:, 0])), abs=1e-6)
    loss.backward()
    assert z.grad is None
    assert p.grad is not None


def test_gradients_in_double_precision() -> None:
    generator = torch.Generator().manual_seed(2)
    z, p = (torch.randn(3, 2, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x: simsiam_loss(x, z), (p.requires_grad_(),))
