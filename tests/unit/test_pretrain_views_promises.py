"""What a view may show, by volumes that are marked; what is done to it, by SciPy from the same drawn numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pretrain_project import block, config_of
from scipy import ndimage

from components.ct.store import StoredVolume, Volume, write_volume
from components.models.config import InputConfig
from components.models.intensity import BODY_HU, apply_windows
from components.pretrain.config import CropViewsConfig, IbotConfig, MultiCropConfig
from components.pretrain.loading import collate, sample_rng
from components.pretrain.views import Batch, CropViews, MultiCropViews, build_views
from components.settings import parse

PLAIN = {
    "flip_probability": 0.0, "shift": 0.0, "smooth_probability": 0.0, "gamma": (1.0, 1.0), "global_side": (1.0, 1.0),
}  # fmt: skip


def head_views(raw: bool = False, ibot: IbotConfig | None = None, **changes: Any) -> MultiCropViews:
    config = block("head")
    config["objective"]["views"] |= changes
    box = parse(InputConfig, config["input"], "input")
    return MultiCropViews(box, parse(MultiCropConfig, config["objective"]["views"], "views"), 12, 0.75, ibot, raw)


def crop_views(**changes: Any) -> CropViews:
    config = block("wholebody")
    config["objective"]["views"] |= changes
    return CropViews(
        parse(InputConfig, config["input"], "input"), parse(CropViewsConfig, config["objective"]["views"], "views")
    )


def stored(folder: Path, hu: npt.NDArray[Any]) -> StoredVolume:
    path = folder / "volume.b2nd"
    write_volume(path, Volume(hu=hu.astype(np.int16), affine=np.eye(4)), {})
    return StoredVolume(path)


def batch_of(views: CropViews | MultiCropViews, volume: StoredVolume, count: int, seed: int = 0) -> Batch:
    batch = collate([views.draw(volume, np.random.default_rng([seed, n])) for n in range(count)])
    assert isinstance(batch, dict)
    return batch


def test_a_window_is_dark_below_its_lower_end_and_full_above_its_upper_one() -> None:
    hu = torch.tensor([-1000, 0, 20, 40, 80, 3000], dtype=torch.int16).view(1, 1, 6)
    brain, bone = apply_windows(hu, ((40.0, 80.0), (600.0, 2800.0)))
    assert brain.flatten().tolist() == pytest.approx([0, 0, 0.25, 0.5, 1, 1])
    assert bone.flatten().tolist() == pytest.approx([0, 800 / 2800, 820 / 2800, 0.3, 880 / 2800, 1], abs=1e-6)


def test_local_boxes_stay_in_the_central_field_and_global_ones_reach_the_border(tmp_path: Path) -> None:
    """The outer 6 of 100 voxels are white; the field of .857 begins at the seventh."""
    hu = np.full((100, 100, 100), 80)
    hu[6:94, 6:94, 6:94] = 0
    batch = batch_of(head_views(global_side=(0.8, 1.0)), stored(tmp_path, hu), 20)
    assert float(batch["local"][:, :, 0].max()) == 0
    seen = batch["global"][:, :, 0].amax(dim=(2, 3, 4)) > 0.5
    assert float(seen.float().mean()) > 0.9


def test_sides_of_boxes_are_the_shares_that_the_parameters_name(tmp_path: Path) -> None:
    views = head_views(raw=True, global_side=(0.5, 1.0), local_side=(0.33, 0.58))
    batch = batch_of(views, stored(tmp_path, np.zeros((100, 90, 80))), 60)
    whole = torch.tensor([100, 90, 80])
    for name, (least, most) in (("global", (0.5, 1.0)), ("local", (0.33 * 0.857, 0.58 * 0.857))):
        shares = batch[f"{name}_box"][:, :, 1] / whole
        assert float(shares.min()) > least - 0.01, name
        assert float(shares.max()) < most + 0.01, name
        assert float(shares.max() - shares.min()) > 0.7 * (most - least), name
        assert float((shares.amax(-1) - shares.amin(-1)).max()) < 0.02, "one factor for all axes"
    assert (batch["local_box"].sum(dim=2) <= batch["region"][:, None]).all()


def test_heads_are_flipped_left_right_and_no_other_way(tmp_path: Path) -> None:
    """RAS: the first axis runs to the right. What is right, front and top is marked by three brightnesses."""
    hu = np.zeros((48, 48, 48))
    hu[24:] += 40
    hu[:, 24:] += 20
    hu[:, :, 24:] += 10
    source = stored(tmp_path, hu)
    still, flipped = (
        (views := head_views(**PLAIN | {"flip_probability": p})).render(batch_of(views, source, 1))["global"][0, 0, 0]
        for p in (0.0, 1.0)
    )
    assert not torch.allclose(still, flipped, atol=0.1)
    assert torch.allclose(still, flipped.flip(0), atol=1e-6)


def by_scipy(x: npt.NDArray[Any], drawn: dict[str, Any]) -> npt.NDArray[Any]:
    """(C, D, H, W): flipped, shifted, smoothed, then bent, by the numbers of one view."""
    x = x[:, ::-1] if drawn["flip"] else x
    x = np.clip(x + drawn["shift"], 0, 1)
    if drawn["smooth"]:
        x = np.stack([ndimage.gaussian_filter(c.astype(np.float64), drawn["sigma"], mode="nearest") for c in x])
    return np.asarray(x.clip(0) ** drawn["gamma"])


def test_head_views_are_scipys_from_the_same_numbers(tmp_path: Path) -> None:
    hu = np.random.default_rng(0).normal(40, 60, (40, 44, 36))
    views = head_views(smooth_probability=0.6, smooth_sigma_vox=(1.0, 1.5), shift=0.1, gamma=(0.5, 2.0))
    batch = batch_of(views, stored(tmp_path, hu), 8)
    rendered = views.render(batch)
    for kind in ("global", "local"):
        for b, v in np.ndindex(*batch[kind].shape[:2]):
            drawn = {key: batch[f"{kind}_{key}"][b, v].item() for key in ("flip", "shift", "smooth", "sigma", "gamma")}
            expected = by_scipy(batch[kind][b, v].numpy(), drawn)
            assert rendered[kind][b, v].numpy() == pytest.approx(expected, abs=2e-2 if drawn["smooth"] else 1e-5)
            assert np.abs(rendered[kind][b, v].numpy() - expected).mean() < 2e-3


def test_the_first_view_of_a_kind_is_smoothed_and_the_others_are_bent(tmp_path: Path) -> None:
    views = head_views(smooth_probability=0.5, shift=0.1, gamma=(0.8, 1.25), flip_probability=0.5)
    batch = batch_of(views, stored(tmp_path, np.zeros((40, 44, 36))), 100)
    for kind in ("global", "local"):
        assert 0.3 < float(batch[f"{kind}_smooth"][:, 0].float().mean()) < 0.7
        assert not batch[f"{kind}_smooth"][:, 1:].any()
        assert (batch[f"{kind}_gamma"][:, 0] == 1).all()
        bent = batch[f"{kind}_gamma"][:, 1]
        assert 0.8 <= float(bent.min()) < 0.85
        assert 1.2 < float(bent.max()) <= 1.25
        shifted = batch[f"{kind}_shift"]
        assert -0.1 <= float(shifted.min()) < -0.09
        assert 0.09 < float(shifted.max()) <= 0.1
        assert 0.4 < float(batch[f"{kind}_flip"].float().mean()) < 0.6


def test_crops_hold_as_much_body_as_the_parameters_want_where_tries_find_it(tmp_path: Path) -> None:
    """A fifth of all places holds body: one try in five, of four, is 59 %."""
    hu = np.full((8, 16, 160), -1000)
    hu[:, :, :40] = 40
    shares = {}
    for wanted in (0.0, 0.5):
        crops = batch_of(crop_views(crops_per_volume=100, body_fraction=wanted), stored(tmp_path, hu), 1)["crops"]
        shares[wanted] = float(((crops > BODY_HU).float().mean(dim=(2, 3, 4)) >= 0.5).float().mean())
    assert shares[0.0] < 0.35
    assert shares[0.5] > 0.5


def test_both_views_of_a_crop_are_cut_and_flipped_by_numbers_of_their_own(tmp_path: Path) -> None:
    views = crop_views(crops_per_volume=200, scale=(0.5, 1.0), flip_probability=0.25, histogram_probability=0.75)
    batch = batch_of(views, stored(tmp_path, np.zeros((20, 40, 44))), 1)
    size = torch.tensor([8, 16, 16])
    shares = (batch["side"][0] / size).mean(dim=-1)
    assert 0.45 < float(shares.min()) < 0.56
    assert 0.94 < float(shares.max()) <= 1
    assert float((batch["side"][0] / size - shares[..., None]).abs().max()) < 0.07, "one factor for all axes"
    for name, rate in (("flip", 0.25), ("histogram", 0.75), ("smooth", 0.5)):
        first, second = batch[name][0].float().unbind(dim=1)
        assert float(first.mean()) == pytest.approx(rate, abs=0.12), name
        assert float(second.mean()) == pytest.approx(rate, abs=0.12), name
        assert float((first != second).float().mean()) == pytest.approx(2 * rate * (1 - rate), abs=0.12), name
    start, side = batch["start"][0], batch["side"][0]
    assert (start >= 0).all()
    assert (start + side <= size).all()
    assert ((start + side == size) & (side < size)).any(), "the last place is one of them"


def test_crops_come_from_everywhere_in_the_volume(tmp_path: Path) -> None:
    """Each voxel of an axis of 44 says where it lies; crops of 16 begin at 0 to 28."""
    hu = np.broadcast_to(np.arange(44), (20, 40, 44))
    crops = batch_of(crop_views(crops_per_volume=400, body_fraction=0.0), stored(tmp_path, hu), 1)["crops"]
    starts = crops[0, :, 0, 0, 0]
    assert set(starts.tolist()) == set(range(29))


def test_masks_are_as_large_as_the_parameters_say() -> None:
    config = config_of("head", objective=block("head")["objective"] | {"kind": "dino_ibot"})
    views = build_views(config)
    assert isinstance(views, MultiCropViews)
    assert (views.visible, views.patches) == (2, 8), "a quarter is seen"
    masked = np.stack([views._masked(views.ibot, np.random.default_rng(n)) for n in range(200)])  # type: ignore[arg-type]
    assert (masked.any(axis=2).sum(axis=1) == 1).all(), "half of two global views"
    counts = masked.sum(axis=(1, 2))
    assert set(counts.tolist()) == {2, 3, 4}, ".2 to .5 of 8"
    assert masked[:, 0].any()
    assert masked[:, 1].any()
    assert (masked.any(axis=1).mean(axis=0) > 0.1).all(), "every patch has its turn"


def test_numbers_of_a_sample_depend_on_the_seed_and_on_its_place() -> None:
    first = sample_rng(1, 5).uniform(size=3)
    assert np.array_equal(first, sample_rng(1, 5).uniform(size=3))
    assert not np.array_equal(first, sample_rng(2, 5).uniform(size=3))
    assert not np.array_equal(first, sample_rng(1, 6).uniform(size=3))
