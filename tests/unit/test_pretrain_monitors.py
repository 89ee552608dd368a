"""The monitors tell a collapsed embedding from one that is spread."""

import math

import pytest
import torch
from torch.nn import functional

from components.pretrain.monitors import alignment, effective_rank, spread, uniformity

SPREAD = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
COLLAPSED = torch.ones(500, 8)


def test_collapsed_and_spread() -> None:
    assert spread(COLLAPSED) == pytest.approx(0, abs=1e-9)
    assert spread(SPREAD) == pytest.approx(1, abs=0.05)
    assert effective_rank(SPREAD) > 7
    line = torch.linspace(-1, 1, 500)[:, None] * torch.ones(8)
    assert effective_rank(line) == pytest.approx(1, abs=1e-6)
    assert uniformity(COLLAPSED) == pytest.approx(0, abs=1e-9)


def test_uniformity_and_alignment_by_their_definition() -> None:
    unit = functional.normalize(SPREAD[:20].double(), dim=1)
    pairs = [math.exp(-2 * float((unit[i] - unit[j]).square().sum())) for i in range(20) for j in range(i)]
    assert uniformity(SPREAD[:20]) == pytest.approx(math.log(sum(pairs) / len(pairs)), abs=1e-9)
    assert alignment(SPREAD, 3 * SPREAD).item() == pytest.approx(0, abs=1e-6), "length does not count"
    assert alignment(SPREAD, SPREAD.roll(1, dims=0)).item() == pytest.approx(2, abs=0.15)
    assert alignment(SPREAD, -SPREAD).item() == pytest.approx(4, abs=1e-5)
