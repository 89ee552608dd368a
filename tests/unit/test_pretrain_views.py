"""Views: exact where an exact counterpart exists, random only through the generator, never outside [0, 1]."""

from pathlib import Path

import numpy as np
import torch
from monai.transforms import GaussianSmooth
from pretrain_project import block, volume
from torch.nn import functional

from components.params import parse
from components.preprocess.store import StoredVolume, write_volume
from components.pretrain.config import CropViewsConfig, InputConfig, MultiCropConfig
from components.pretrain.intensity import apply_windows, gamma, histogram_shift, smooth
from components.pretrain.resample import axis_weights, resample, resize_windows
from components.pretrain.views import CropViews, MultiCropViews, Views

STILL = torch.zeros(1, dtype=torch.bool)


def views_of(line: str) -> Views:
    config = block(line)
    box = parse(InputConfig, config["input"], "input")
    if line == "wholebody":
        return CropViews(box, parse(CropViewsConfig, config["objective"]["views"], "views"))
    return MultiCropViews(box, parse(MultiCropConfig, config["objective"]["views"], "views"), patch=12, mask_ratio=0.75)


def stored(folder: Path, line: str) -> StoredVolume:
    path = folder / "volume.b2nd"
    write_volume(path, volume(line, 5), {})
    return StoredVolume(path)


def test_enlarged_crop_equals_interpolation_of_the_cut_piece() -> None:
    x = torch.rand(1, 12, 20, 24, generator=torch.Generator().manual_seed(0))
    start, side, size = (3, 4, 5), (6, 11, 13), (12, 20, 24)
    weights = [
        axis_weights(torch.tensor([s]), torch.tensor([k]), n, n, STILL)
        for s, k, n in zip(start, side, size, strict=True)
    ]
    piece = x[:, 3:9, 4:15, 5:18]
    expected = functional.interpolate(piece[None], size=size, mode="trilinear", align_corners=False)[0]
    assert torch.allclose(resample(x, *weights), expected, atol=1e-5)
    flipped = [axis_weights(torch.tensor([3]), torch.tensor([6]), 12, 12, ~STILL), *weights[1:]]
    assert torch.allclose(resample(x, *flipped), expected.flip(1), atol=1e-5)


def test_shrinking_keeps_the_mean_and_does_not_alias() -> None:
    hu = torch.zeros(64, 64, 64, dtype=torch.int16)
    hu[::2] = 100
    out = resize_windows(hu, ((50.0, 100.0),), (16, 16, 16))
    inside = out[:, 1:-1]
    assert torch.allclose(inside, torch.full_like(inside, 0.5), atol=0.01), "every second plane must average out"


def test_windows_before_the_resize_or_after_the_clipping_are_the_same() -> None:
    hu = torch.from_numpy(volume("head", 1).hu)
    windows = ((40.0, 80.0), (600.0, 2800.0))
    weights = [axis_weights(torch.zeros(1), torch.tensor([n]), n, 16, STILL).expand(2, -1, -1) for n in hu.shape]
    expected = resample(apply_windows(hu, windows), *weights)
    assert torch.allclose(resize_windows(hu, windows, (16, 16, 16)), expected, atol=1e-5)


def test_smoothing_agrees_with_monai_inside() -> None:
    x = torch.rand(1, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    ours = smooth(x, torch.tensor([1.0]), torch.tensor([True]))
    theirs = GaussianSmooth(sigma=1.0, approx="sampled")(x[0])
    assert torch.allclose(ours[0, 0, 6:-6, 6:-6, 6:-6], torch.as_tensor(theirs)[0, 6:-6, 6:-6, 6:-6], atol=0.01)
    assert torch.equal(smooth(x, torch.tensor([1.0]), torch.tensor([False])), x)


def test_histogram_shift_is_the_piecewise_linear_map() -> None:
    x = torch.rand(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([[0.0, 0.1, 1.0], [0.0, 0.5, 1.0]])
    out = histogram_shift(x, levels, torch.tensor([True, True]))
    low, high = x[0].min().item(), x[0].max().item()
    expected = low + (high - low) * np.interp((x[0].numpy() - low) / (high - low), [0, 0.5, 1], [0, 0.1, 1])
    assert np.allclose(out[0].numpy(), expected, atol=1e-5)
    assert torch.allclose(out[1], x[1], atol=1e-5), "evenly spaced levels change nothing"


def test_gamma_keeps_black_and_white() -> None:
    x = torch.tensor([0.0, 0.25, 1.0]).view(1, 1, 1, 1, 3)
    assert torch.allclose(gamma(x, torch.tensor([0.5])).flatten(), torch.tensor([0.0, 0.5, 1.0]))


def test_views_are_a_function_of_the_generator(tmp_path: Path) -> None:
    for line in ("wholebody", "head"):
        views, source = views_of(line), stored(tmp_path, line)
        drawn = [views.draw(source, np.random.default_rng(seed)) for seed in (1, 1, 2)]
        rendered = [views.render({k: torch.from_numpy(v)[None] for k, v in sample.items()}) for sample in drawn]
        assert all(torch.equal(rendered[0][key], rendered[1][key]) for key in rendered[0])
        key = "views" if line == "wholebody" else "global"
        assert not torch.equal(rendered[0][key], rendered[2][key])
        assert rendered[0][key].min() >= 0
        assert rendered[0][key].max() <= 1 + 1e-6


def test_both_views_of_a_crop_differ_and_have_the_input_size(tmp_path: Path) -> None:
    views = views_of("wholebody")
    sample = views.draw(stored(tmp_path, "wholebody"), np.random.default_rng(0))
    x = views.render({key: torch.from_numpy(value)[None] for key, value in sample.items()})["views"]
    assert x.shape == (1, 3, 2, 1, 8, 16, 16)
    assert not torch.equal(x[:, :, 0], x[:, :, 1])


def test_masks_hide_each_patch_once(tmp_path: Path) -> None:
    sample = views_of("head").draw(stored(tmp_path, "head"), np.random.default_rng(0))
    assert sample["visible"].shape == (2, 2)
    for visible, hidden in zip(sample["visible"], sample["hidden"], strict=True):
        assert sorted([*visible, *hidden]) == list(range(8))


def test_local_views_hold_more_detail_than_global_ones(tmp_path: Path) -> None:
    """Cut from the stored 1 mm volume: a fine pattern that global views average away is seen in local ones."""
    hu = np.where(np.indices((96, 96, 96)).sum(0) % 4 < 2, 80, 0).astype(np.int16)
    write_volume(tmp_path / "fine.b2nd", volume("head", 0).__class__(hu, np.eye(4)), {})
    sample = views_of("head").draw(StoredVolume(tmp_path / "fine.b2nd"), np.random.default_rng(0))
    config = block("head")["objective"]["views"]
    mm_per_voxel_local = 96 * config["local_field"] * config["local_side"][0] / 12
    assert mm_per_voxel_local < 96 * config["global_side"][1] / 24
    assert sample["local"].shape == (2, 3, 12, 12, 12)
