"""The encoders are the published ones, in names, shapes and sizes."""

import lighter_zoo
import numpy as np
import pytest
import torch
from monai.networks.nets.segresnet_ds import SegResEncoder
from torch import nn

from components.models.build import build_encoder, parameter_count
from components.models.config import InputConfig, SegResConfig, VitConfig
from components.models.segres import Conv3x3x3, SegRes
from components.models.vit import Vit, middle_of, sincos_positions

BODY = InputConfig(
    sees="crop", orientation="SPL", spacing_mm=(3.0, 1.0, 1.0), size_vox=(8, 16, 16), windows=((512.0, 3072.0),)
)
HEAD = InputConfig(
    sees="scan",
    orientation="RAS",
    spacing_mm=(1.0, 1.0, 1.0),
    size_vox=(24, 24, 24),
    windows=((40.0, 80.0), (80.0, 200.0), (600.0, 2800.0)),
)
SEGRES = SegResConfig(kind="segres", init_filters=4, blocks_down=(1, 2, 2, 4, 4))
VIT = VitConfig(
    kind="vit", patch_vox=12, dim=24, depth=2, heads=2, mlp_ratio=2.0, registers=2, position_waves="grid",
    pooling="class_mean",
)  # fmt: skip


def test_published_segres_has_77_760_992_parameters() -> None:
    with torch.device("meta"):
        encoder = build_encoder(SEGRES.model_copy(update={"init_filters": 32}), BODY, seed=0)
    assert parameter_count(encoder) == 77_760_992
    assert encoder.embedding_dim == 512


def test_the_encoder_is_lighter_zoos_at_full_size() -> None:
    """Whose public weights it must take: names, shapes, and equal outputs for equal weights."""
    ours = build_encoder(SEGRES.model_copy(update={"init_filters": 32}), BODY, seed=3).eval()
    theirs = lighter_zoo.SegResEncoder(spatial_dims=3, in_channels=1, init_filters=32, blocks_down=(1, 2, 2, 4, 4))
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(1, 1, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(ours(x), theirs.eval()(x)[-1].mean(dim=(2, 3, 4)), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "dim", "depth", "heads", "millions"),
    [("S", 384, 12, 6, 23.3), ("B", 768, 12, 12, 89.4), ("L", 1024, 24, 16, 307.7)],
)
def test_vision_transformers_small_base_and_large(name: str, dim: int, depth: int, heads: int, millions: float) -> None:
    size = HEAD.model_copy(update={"size_vox": (96, 96, 96)})
    changes = {"dim": dim, "depth": depth, "heads": heads, "mlp_ratio": 4.0, "registers": 0}
    with torch.device("meta"):
        encoder = build_encoder(VIT.model_copy(update=changes), size, seed=0)
    assert parameter_count(encoder) / 1e6 == pytest.approx(millions, abs=0.5), name


def test_segres_state_dict_is_monais_and_gives_its_output() -> None:
    ours = build_encoder(SEGRES, BODY, seed=3).eval()
    theirs = SegResEncoder(spatial_dims=3, init_filters=4, in_channels=1, blocks_down=(1, 2, 2, 4, 4)).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(ours(x), theirs(x)[-1].mean(dim=(2, 3, 4)), atol=1e-5)
        assert ours.feature_map(x).shape[:2] == (2, ours.embedding_dim)


def test_same_seed_same_weights_and_the_callers_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = build_encoder(VIT, HEAD, seed=1), build_encoder(VIT, HEAD, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.class_token, build_encoder(VIT, HEAD, seed=2).class_token)


def test_vit_accepts_smaller_boxes_and_pools_as_told() -> None:
    encoder = build_encoder(VIT, HEAD, seed=0)
    assert isinstance(encoder, Vit)
    x = torch.rand(2, 3, 24, 24, 24)
    tokens = encoder.tokens(x)
    assert tokens.shape == (2, 1 + 8, 24)
    assert torch.equal(encoder(x), torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1))
    assert encoder.feature_map(x).shape == (2, 24, 2, 2, 2)
    assert encoder.tokens(torch.rand(2, 3, 12, 12, 12)).shape == (2, 2, 24)
    with pytest.raises(ValueError, match="multiple of 12"):
        encoder(torch.rand(1, 3, 20, 24, 24))


def test_vit_pools_the_centre_beside_the_whole_also_of_kept_patches() -> None:
    config = VIT.model_copy(update={"pooling": "whole_centre", "patch_vox": 4})
    encoder = build_encoder(config, HEAD, seed=0)
    assert isinstance(encoder, Vit)
    x = torch.rand(2, 3, 24, 24, 24)
    vectors = encoder(x)
    assert vectors.shape == (2, encoder.embedding_dim) == (2, 6 * 24)
    grid = encoder.feature_map(x)
    inner = grid[:, :, 1:5, 1:5, 1:5].flatten(2)
    for parts, patches in ((vectors[:, :48], grid.flatten(2)), (vectors[:, 48:96], inner)):
        expected = torch.cat([patches.mean(dim=2), patches.std(dim=2, correction=0)], dim=1)
        assert torch.allclose(parts, expected, atol=1e-5)
    assert encoder.distilled_dim == 96, "the maxima come last: self-distillation is not given them"
    assert torch.equal(vectors[:, 96:], torch.cat([grid.flatten(2).amax(dim=2), inner.amax(dim=2)], dim=1))
    keep = torch.arange(216).flip(0).expand(2, -1)
    assert torch.allclose(encoder.pool(encoder.tokens(x, keep), encoder.grid, keep), vectors, atol=1e-4)
    outside = torch.tensor([[0, 5, 215], [1, 2, 3]])  # none of the centre: nothing to divide by
    pooled = encoder.pool(encoder.tokens(x, outside), encoder.grid, outside)
    assert torch.isfinite(pooled).all()
    pooled.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8])
def test_the_middle_is_never_empty_and_lies_in_the_middle(side: int) -> None:
    middle = middle_of((side, 4, 4)).view(side, 4, 4)
    assert middle.any()
    assert torch.equal(middle, middle.flip(0))


def test_dropped_tokens_do_not_reach_the_others() -> None:
    encoder = build_encoder(VIT, HEAD, seed=0)
    assert isinstance(encoder, Vit)
    x = torch.rand(1, 3, 24, 24, 24)
    changed = x.clone()
    changed[:, :, 12:] = 0
    keep = torch.tensor([[0, 3]])
    assert torch.equal(encoder.tokens(x, keep), encoder.tokens(changed, keep))


def test_positions_are_distinct_and_spread_over_the_same_extent() -> None:
    full, coarse = (sincos_positions((n, n, n), (4, 4, 4), 24, "grid") for n in (4, 2))
    assert full.unique(dim=0).shape[0] == 64
    middle = sincos_positions((1, 1, 1), (4, 4, 4), 24, "grid")
    assert sincos_positions((2, 2, 2), (4, 4, 4), 32, "grid")[:, 30:].abs().max() == 0, "what 6 does not divide is zero"
    nearest = (coarse - middle).norm(dim=1)
    assert nearest.max() - nearest.min() < 1.0, "the one patch of a coarse grid lies in the middle"


def test_customary_positions_are_those_of_masked_autoencoders() -> None:
    """Angular frequencies 1 / 10,000^(k / count): along 8 patches the second half of the numbers hardly moves."""
    row = sincos_positions((8, 1, 1), (8, 8, 8), 48, "customary")[5]
    expected = [np.sin(5 / 10_000 ** (k / 8)) for k in range(8)] + [np.cos(5 / 10_000 ** (k / 8)) for k in range(8)]
    assert row[:16].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [(2, 4, 4), (1, 1, 1), (4, 4, 4)])
def test_convolutions_in_bfloat16_have_the_gradients_of_float32(size: tuple[int, int, int]) -> None:
    """Torch's own on a CPU are garbage where a side is below 3 voxels."""
    encoder = SegRes(SegResConfig(kind="segres", init_filters=8, blocks_down=(1, 1)), channels=1)
    convolutions = [module for module in encoder.modules() if isinstance(module, nn.Conv3d)]
    assert len(convolutions) == 6
    for convolution in convolutions:
        gradients = []
        x = torch.randn(8, convolution.in_channels, *size, generator=torch.Generator().manual_seed(1))
        for on in (False, True):
            convolution.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=on):
                convolution(x.contiguous(memory_format=torch.channels_last_3d)).float().square().sum().backward()
            gradients.append(convolution.weight.grad.clone())
        assert (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()


@pytest.mark.parametrize(("count", "kind", "tolerance"), [(2, torch.float64, 1e-12), (1, torch.float32, 1e-4)])
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 3, 2), (2, 1, 4), (2, 2, 2), (5, 4, 3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_are_plain_ones_whatever_the_side(
    size: tuple[int, int, int], stride: int, count: int, kind: torch.dtype, tolerance: float
) -> None:
    """A single crop of float32 takes a way of its own, values and gradients alike."""
    plain = nn.Conv3d(3, 8, 3, stride=stride, padding=1, bias=False).to(kind)
    ours = nn.Conv3d(3, 8, 3, stride=stride, padding=1, bias=False).to(kind)
    ours.__class__ = Conv3x3x3
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(count, 3, *size, dtype=kind, generator=torch.Generator().manual_seed(1))
    outcomes = []
    for convolution in (plain, ours):
        seen = x.clone().requires_grad_()
        y = convolution(seen)
        y.square().sum().backward()
        outcomes.append((y, seen.grad, convolution.weight.grad))
    for theirs, own in zip(*outcomes, strict=True):
        torch.testing.assert_close(own, theirs, rtol=tolerance, atol=tolerance)


def test_a_crop_alone_goes_through_torch_compile() -> None:
    """Which traces with tensors that oneDNN's own convolution refuses."""
    ours = nn.Conv3d(3, 8, 3, padding=1, bias=False)
    ours.__class__ = Conv3x3x3
    x = torch.randn(1, 3, 6, 6, 6, generator=torch.Generator().manual_seed(1))
    compiled = torch.compile(ours, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(x), ours(x), rtol=1e-5, atol=1e-5)


def test_a_crop_alone_is_convolved_as_fast_as_among_others() -> None:
    """Torch's own choice for a single small crop is a loop that takes many times as long, and gives other last bits."""
    encoder = build_encoder(SEGRES, BODY, seed=0).eval()
    x = torch.rand(2, 1, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        alone = encoder.levels(x[:1])
    assert not [event.name for event in profile.events() if "slow_conv3d" in event.name]
    assert any("mkldnn" in event.name for event in profile.events())
    with torch.no_grad():
        for level, both in zip(alone, encoder.levels(x), strict=True):
            torch.testing.assert_close(level, both[:1], rtol=1e-5, atol=1e-5)
