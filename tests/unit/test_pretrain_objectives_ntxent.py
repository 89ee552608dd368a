"""The within-volume contrastive loss is the published one."""

import math

import pytest
import torch
from peers import lightly_losses
from torch import Tensor

from components.pretrain.objectives.ntxent import across_volume_ntxent, within_volume_ntxent


def by_hand(z: Tensor, temperature: float) -> Tensor:
    """The definition, one anchor at a time."""
    V, K, _, _ = z.shape
    terms = []
    for v in range(V):
        for i in range(K):
            anchor = z[v, i, 0]

            def similarity(other: Tensor, anchor: Tensor = anchor) -> Tensor:
                return torch.exp(anchor @ other / (anchor.norm() * other.norm()) / temperature)

            positive = similarity(z[v, i, 1])
            negatives = [similarity(z[v, j, p]) for j in range(K) if j != i for p in range(2)]
            assert len(negatives) == 2 * (K - 1)
            terms.append(-torch.log(positive / (positive + sum(negatives))))
    return torch.stack(terms).mean()


def test_equals_the_definition_with_28_negatives() -> None:
    z = torch.randn(3, 15, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert within_volume_ntxent(z, 0.1).item() == pytest.approx(by_hand(z, 0.1).item(), abs=1e-9)


def test_gradients_in_double_precision() -> None:
    z = torch.randn(2, 4, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: within_volume_ntxent(x, 0.5), (z,))


def test_other_volumes_are_no_negatives() -> None:
    z = torch.randn(2, 5, 2, 6, generator=torch.Generator().manual_seed(3))
    together = within_volume_ntxent(z, 0.1)
    apart = (within_volume_ntxent(z[:1], 0.1) + within_volume_ntxent(z[1:], 0.1)) / 2
    assert together.item() == pytest.approx(apart.item(), rel=1e-5)


def test_collapsed_embeddings_cost_the_logarithm_of_the_choices() -> None:
    assert within_volume_ntxent(torch.ones(1, 15, 2, 4), 0.1).item() == pytest.approx(math.log(29), rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 2, 4), (1, 3, 3, 4)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 2 crops, exactly 2 views"):
        within_volume_ntxent(torch.ones(shape), 0.1)


def across_by_hand(z: Tensor, temperature: float) -> Tensor:
    """The definition of SimCLR, one anchor at a time."""
    rows = torch.nn.functional.normalize(z.flatten(0, 1), dim=-1)
    terms = []
    for i, anchor in enumerate(rows):
        similarities = torch.exp(rows @ anchor / temperature)
        positive = similarities[i ^ 1]
        terms.append(-torch.log(positive / (similarities.sum() - similarities[i])))
    return torch.stack(terms).mean()


def crops(count: int, seed: int = 4, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 6, dtype=torch.float64, generator=generator).requires_grad_(grad)


def test_across_volumes_equals_the_definition_and_lightly() -> None:
    z = crops(9)
    loss = across_volume_ntxent(z, 0.2).item()
    assert loss == pytest.approx(across_by_hand(z, 0.2).item(), abs=1e-9)
    theirs = lightly_losses().NTXentLoss(temperature=0.2)(z[:, 0], z[:, 1])
    assert loss == pytest.approx(theirs.item(), abs=1e-6)


def test_across_volumes_gradients_in_double_precision() -> None:
    assert torch.autograd.gradcheck(lambda x: across_volume_ntxent(x, 0.5), (crops(4, grad=True),))


def test_a_single_crop_has_no_negative() -> None:
    with pytest.raises(ValueError, match="1 crop is not allowed: at least 2"):
        across_volume_ntxent(crops(1), 0.1)
