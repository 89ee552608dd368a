"""Views: exact where an exact counterpart exists, random only through the generator, never outside [0, 1]."""

from pathlib import Path

import numpy as np
import torch
from monai.transforms import Flip, GaussianSmooth, RandHistogramShift, Resize, SpatialCrop
from pretrain_project import block, volume
from torch.nn import functional

from components.ct.store import StoredVolume, Volume, write_volume
from components.models.config import InputConfig
from components.models.intensity import apply_windows, gamma, histogram_shift, smooth
from components.models.resample import axis_weights, may_halve, resample, resize_windows
from components.pretrain.config import CropViewsConfig, MultiCropConfig
from components.pretrain.loading import collate
from components.pretrain.views import Batch, CropViews, MultiCropViews, Sample, Views
from components.settings import parse

STILL = torch.zeros(1, dtype=torch.bool)


def views_of(line: str, **changes: object) -> Views:
    config = block(line)
    config["objective"]["views"] |= changes
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
    hu = np.zeros((64, 64, 64), dtype=np.int16)
    hu[::2] = 100
    for side in (16, 40):  # halved first, and not
        out = resize_windows(hu, ((50.0, 100.0),), (side, side, side))
        inside = out[:, 1:-1]
        assert torch.allclose(inside.mean(), torch.tensor(0.5), atol=0.01), "every second plane must average out"
    assert torch.allclose(resize_windows(hu, ((50.0, 100.0),), (16, 16, 16))[:, 1:-1], torch.tensor(0.5), atol=0.01)


WINDOWS = ((40.0, 80.0), (600.0, 2800.0))


def resized_directly(hu: np.ndarray, size: int) -> torch.Tensor:
    weights = [axis_weights(torch.zeros(1), torch.tensor([n]), n, size, STILL).expand(2, -1, -1) for n in hu.shape]
    return resample(apply_windows(torch.from_numpy(hu), WINDOWS), *weights)


def test_windows_before_the_resize_or_after_the_clipping_are_the_same() -> None:
    hu = volume("head", 1).hu
    size = min(hu.shape) // 2 + 1
    assert torch.allclose(resize_windows(hu, WINDOWS, (size, size, size)), resized_directly(hu, size), atol=1e-5)


def test_halving_changes_little_and_keeps_the_place() -> None:
    z, y, x = np.indices((64, 66, 71))
    hu = (40 + 35 * np.sin(z / 9) * np.cos(y / 8) * np.sin(x / 10)).astype(np.int16)  # 71: an odd side
    halved = resize_windows(hu, WINDOWS, (16, 16, 16))
    assert may_halve((64, 66, 71), (16, 16, 16), WINDOWS)
    assert float((halved - resized_directly(hu, 16)).abs().max()) < 0.05
    assert float((halved - resized_directly(hu, 16)).abs().mean()) < 0.005


def test_the_largest_sum_of_a_block_fits() -> None:
    hu = np.full((8, 8, 8), 32767, dtype=np.int16)
    assert torch.allclose(resize_windows(hu, ((3000.0, 8000.0),), (4, 4, 4)), torch.ones(1, 4, 4, 4))
    assert not may_halve((8, 8, 8), (4, 4, 4), ((3000.0, 8192.0),))


def test_a_volume_kept_in_memory_gives_the_same_views(tmp_path: Path) -> None:
    source = stored(tmp_path, "head")
    draws = []
    for cache_mb in (0, 64):
        views = views_of("head", cache_mb=cache_mb)
        draws += [views.draw(source, np.random.default_rng(1)) for _ in range(2)]
        assert isinstance(views, MultiCropViews)
        assert bool(views._levels) == (cache_mb > 0)
    for other in draws[1:]:
        assert all(np.array_equal(draws[0][key], other[key]) for key in draws[0])


def test_smoothing_agrees_with_monai_inside() -> None:
    x = torch.rand(1, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    ours = smooth(x, torch.tensor([1.0]), torch.tensor([True]))
    theirs = GaussianSmooth(sigma=1.0)(x[0])
    assert torch.allclose(ours[0, 0, 6:-6, 6:-6, 6:-6], torch.as_tensor(theirs)[0, 6:-6, 6:-6, 6:-6], atol=5e-4)
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


def drawn_crops(folder: Path) -> tuple[CropViews, Batch]:
    """Twelve crops, so that each random choice falls either way."""
    views = views_of("wholebody", crops_per_volume=12, scale=(0.4, 1.0), body_fraction=0.0)
    assert isinstance(views, CropViews)
    sample = views.draw(stored(folder, "wholebody"), np.random.default_rng(3))
    for choice in ("flip", "histogram", "smooth"):
        assert len(np.unique(sample[choice])) == 2
    return views, {key: torch.from_numpy(value)[None] for key, value in sample.items()}


def as_monai(views: CropViews, batch: Batch, crop: int, view: int) -> torch.Tensor:
    """One view by MONAI's transforms from the same numbers, unsmoothed (1, D, H, W)."""
    drawn = {key: value[0, crop] if key == "crops" else value[0, crop, view] for key, value in batch.items()}
    x = apply_windows(drawn["crops"], views.view.windows)
    x = SpatialCrop(roi_start=drawn["start"], roi_end=drawn["start"] + drawn["side"])(x)
    x = Resize(views.view.size_vox, mode="trilinear")(x)
    if drawn["flip"]:
        x = Flip(spatial_axis=0)(x)
    if drawn["histogram"]:
        change = RandHistogramShift(num_control_points=len(drawn["levels"]), prob=1.0)
        change.randomize()
        change.floating_control_points = drawn["levels"].numpy()
        x = change(x, randomize=False)
    return torch.as_tensor(x)


def test_views_are_monais_from_the_same_numbers(tmp_path: Path) -> None:
    views, batch = drawn_crops(tmp_path)
    plain = views.render(batch | {"smooth": torch.zeros_like(batch["smooth"])})["views"][0]
    smoothed = views.render(batch)["views"][0]
    for crop, view in np.ndindex(12, 2):
        expected = as_monai(views, batch, crop, view)
        assert torch.allclose(plain[crop, view], expected, atol=1e-5)
        if not batch["smooth"][0, crop, view]:
            assert torch.equal(smoothed[crop, view], plain[crop, view])
            continue
        sigma = float(batch["sigma"][0, crop, view])
        padded = functional.pad(expected[None], [8] * 6, mode="replicate")[0]  # MONAI's goes on with zeros
        expected = torch.as_tensor(GaussianSmooth(sigma=sigma)(padded))[:, 8:-8, 8:-8, 8:-8]
        assert torch.allclose(smoothed[crop, view], expected, atol=5e-4)  # its kernel, cut at 4 sigma, adds up to .9999


def test_one_view_after_the_other_or_all_at_once_is_the_same(tmp_path: Path) -> None:
    views, batch = drawn_crops(tmp_path)
    assert torch.allclose(views.render(batch)["views"], views.render_batched(batch), atol=1e-5)


def test_crops_are_the_same_from_the_file_and_from_memory(tmp_path: Path) -> None:
    source = stored(tmp_path, "wholebody")
    few, many = (views_of("wholebody", crops_per_volume=count) for count in (2, 200))
    first, second = (views.draw(source, np.random.default_rng(3))["crops"] for views in (few, many))
    assert np.array_equal(first, second[:2])


def test_both_views_of_a_crop_differ_and_have_the_input_size(tmp_path: Path) -> None:
    views = views_of("wholebody")
    sample = views.draw(stored(tmp_path, "wholebody"), np.random.default_rng(0))
    x = views.render({key: torch.from_numpy(value)[None] for key, value in sample.items()})["views"]
    assert x.shape == (1, 3, 2, 1, 8, 16, 16)
    assert not torch.equal(x[:, :, 0], x[:, :, 1])


def test_boxes_resized_where_they_are_rendered_are_the_same(tmp_path: Path) -> None:
    at_once, later = views_of("head"), views_of("head")
    assert isinstance(at_once, MultiCropViews)
    assert isinstance(later, MultiCropViews)
    later.raw = True
    rng = np.random.default_rng(3)
    volumes = []
    for number, shape in enumerate([(61, 70, 52), (58, 49, 66)]):  # too small to be halved, and not of one shape
        hu = (rng.normal(40, 300, shape) + 800 * (rng.uniform(size=shape) > 0.9)).astype(np.int16)
        write_volume(tmp_path / f"{number}.b2nd", Volume(hu=hu, affine=np.eye(4)), {})
        volumes.append(StoredVolume(tmp_path / f"{number}.b2nd"))
    first, second = (
        views.render(_batch([views.draw(volume, np.random.default_rng(7)) for volume in volumes]))
        for views in (at_once, later)
    )
    assert first.keys() == second.keys()
    for key, expected in first.items():
        torch.testing.assert_close(second[key], expected, atol=2e-3, rtol=0)


def _batch(samples: list[Sample]) -> Batch:
    batch = collate(list(samples))
    assert isinstance(batch, dict)
    return batch


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
