"""VICReg is the published loss."""

import pytest
import torch
from peers import lightly_losses
from torch import Tensor

from components.pretrain.objectives.vicreg import vicreg_loss


def crops(count: int, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (0.3 * torch.randn(count, 2, 5, dtype=torch.float64, generator=generator)).requires_grad_(grad)


def by_hand(z: Tensor) -> Tensor:
    N, _, E = z.shape
    total = 25 * sum(((z[i, 0] - z[i, 1]) ** 2).sum() for i in range(N)) / (N * E)
    for p in range(2):
        mean = sum(z[i, p] for i in range(N)) / N
        for a in range(E):
            for b in range(E):
                c = sum((z[i, p, a] - mean[a]) * (z[i, p, b] - mean[b]) for i in range(N)) / (N - 1)
                total = total + (25 * torch.relu(1 - torch.sqrt(c + 1e-4)) / 2 if a == b else c**2) / E
    return torch.as_tensor(total)


def test_equals_the_definition_and_lightly() -> None:
    z = crops(7)
    loss = vicreg_loss(z, 25.0, 25.0, 1.0).item()
    assert loss == pytest.approx(by_hand(z).item(), abs=1e-9)
    assert loss == pytest.approx(lightly_losses().VICRegLoss()(z[:, 0], z[:, 1]).item(), abs=1e-6)


def test_gradients_in_double_precision() -> None:
    assert torch.autograd.gradcheck(lambda x: vicreg_loss(x, 25.0, 25.0, 1.0), (crops(4, grad=True),))


def test_one_crop_and_three_views_are_refused() -> None:
    with pytest.raises(ValueError, match="1 crop is not allowed"):
        vicreg_loss(crops(1), 25.0, 25.0, 1.0)
    with pytest.raises(ValueError, match="exactly 2 views"):
        vicreg_loss(torch.ones(4, 3, 5), 25.0, 25.0, 1.0)
