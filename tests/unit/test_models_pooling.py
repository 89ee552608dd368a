"""Vectors of all levels, by hand; and the encoder's own, as it always was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from components.models.embed import EmbedConfig, Embedder
from components.models.pooling import middle, pool_levels
from components.settings import parse
from tests.unit.test_evaluate_stage import EMBED, tiny_embedder

CROPS = np.random.default_rng(0).integers(-1000, 500, (3, 8, 16, 16)).astype(np.int16)


def test_means_and_the_middle_of_every_level_by_hand() -> None:
    fine, coarse = torch.rand(2, 3, 8, 8, 4), torch.rand(2, 5, 2, 1, 1)
    levels = pool_levels([fine, coarse], "levels")
    assert torch.equal(levels, torch.cat([fine.mean(dim=(2, 3, 4)), coarse.mean(dim=(2, 3, 4))], dim=1))
    centre = pool_levels([fine, coarse], "centre")
    inner, last = fine[:, :, 3:5, 3:5, 2:3].flatten(2), coarse[:, :, 1:2]
    expected = [fine.mean(dim=(2, 3, 4)), inner.mean(dim=2), inner.amax(dim=2)]
    expected += [coarse.mean(dim=(2, 3, 4)), last.flatten(2).mean(dim=2), last.flatten(2).amax(dim=2)]
    assert torch.allclose(centre, torch.cat(expected, dim=1))


@pytest.mark.parametrize(("places", "kept"), [(1, [0]), (2, [1]), (3, [1]), (4, [2]), (8, [3, 4]), (16, [6, 7, 8, 9])])
def test_the_middle_holds_the_crops_own_point(places: int, kept: list[int]) -> None:
    """A crop's point lies at ``size // 2``."""
    x = torch.arange(float(places)).view(1, 1, places, 1, 1)
    assert middle(x).flatten().tolist() == kept
    assert places // 2 in kept


@pytest.mark.parametrize(("pooling", "dim"), [("own", 8), ("levels", 12), ("centre", 36)])
def test_vectors_are_as_long_as_they_say_and_the_encoders_own_stays(pooling: str, dim: int) -> None:
    own, embedder = tiny_embedder(), tiny_embedder().pooled_by(pooling)  # type: ignore[arg-type]
    vectors = embedder.embed_crops(CROPS)
    assert vectors.shape == (3, dim) == (3, embedder.dim)
    assert np.array_equal(own.embed_crops(CROPS), vectors) is (pooling == "own")
    if pooling == "levels":
        assert np.array_equal(own.embed_crops(CROPS), vectors[:, -8:]), "the last level's mean is its own vector"


def test_a_release_keeps_its_pooling_and_an_earlier_one_had_its_own(tmp_path: Path) -> None:
    tiny_embedder().pooled_by("centre").save(tmp_path)
    assert Embedder.load(tmp_path).config.pooling == "centre"
    assert parse(EmbedConfig, EMBED, "t").pooling == "own"
