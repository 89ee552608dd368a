"""Masked image modelling: hidden patches only, in the right places."""

import pytest
import torch

from components.models.config import VitConfig
from components.models.vit import patchify, take_tokens
from components.pretrain.config import MaeConfig
from components.pretrain.objectives.mae import MaeDecoder, mae_loss


def test_loss_is_the_mean_squared_error() -> None:
    predicted = torch.randn(2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(2, 3, 8, dtype=torch.float64)
    assert mae_loss(predicted, target, normalise=False).item() == pytest.approx(predicted.square().mean().item())


def test_normalised_targets_do_not_depend_on_brightness_and_contrast() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(2, 3, 8, generator=generator)
    target = torch.rand(2, 3, 8, generator=generator)
    plain, changed = mae_loss(predicted, target, True), mae_loss(predicted, 5 * target + 3, True)
    assert plain.item() == pytest.approx(changed.item(), rel=1e-4)


def test_patches_are_cut_in_the_order_of_the_grid() -> None:
    x = torch.arange(2 * 4 * 4 * 4, dtype=torch.float32).view(1, 2, 4, 4, 4)
    patches = patchify(x, 2)
    assert patches.shape == (1, 8, 16)
    assert torch.equal(patches[0, 1], x[0, :, :2, :2, 2:].flatten())
    assert torch.equal(take_tokens(patches, torch.tensor([[7]]))[0, 0], x[0, :, 2:, 2:, 2:].flatten())


def test_decoder_predicts_one_row_per_hidden_patch() -> None:
    sizes = {"patch_vox": 2, "dim": 6, "depth": 1, "heads": 1, "mlp_ratio": 1.0, "registers": 0, "pooling": "class"}
    encoder = VitConfig.model_validate(sizes | {"kind": "vit", "position_waves": "grid"})
    config = MaeConfig(mask_ratio=0.75, decoder_dim=12, decoder_depth=1, decoder_heads=2, normalise=False)
    decoder = MaeDecoder(encoder, grid=(2, 2, 2), voxels=16, config=config)
    visible, hidden = torch.tensor([[0, 5]]), torch.tensor([[1, 2, 3, 4, 6, 7]])
    tokens = torch.randn(1, 3, 6)
    predicted = decoder(tokens, visible, hidden)
    assert predicted.shape == (1, 6, 16)
    swapped = decoder(tokens[:, [0, 2, 1]], visible.flip(1), hidden)
    assert torch.allclose(predicted, swapped, atol=1e-5), "the order in which visible patches are listed means nothing"
