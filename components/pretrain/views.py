"""What the model sees: boxes read from the store, and the random views made of them.

A view maker has two halves. ``draw`` reads voxels and draws every random number of one sample, from the generator it
is given and nothing else. ``render`` turns a batch of drawn samples into views, batched, on the batch's device, and
draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.ct.store import BLOCK, StoredVolume, crop_box
from components.models.config import InputConfig, VitConfig
from components.models.intensity import BODY_HU, apply_windows, gamma, histogram_shift, shift, smooth
from components.models.resample import Level, axis_weights, may_halve, resample, resize_boxes
from components.pretrain.config import CropViewsConfig, HeadObjectiveConfig, IbotConfig, MultiCropConfig, PretrainConfig
from components.pretrain.views_cpu import render_crops

Sample = dict[str, npt.NDArray[np.generic]]
Batch = dict[str, Tensor]
Int16Array = npt.NDArray[np.int16]
Size3 = tuple[int, int, int]
Range = tuple[float, float]

TRIES_PER_CROP = 4
RAGGED = "voxels"  # of a sample: samples of a batch lie one after the other, each with a number of its own


class Views(Protocol):
    """Both view makers.

    Attributes:
        on_host: keys of a batch that ``render`` wants to find on the host, whatever the device.
    """

    on_host: frozenset[str]

    def draw(self, volume: StoredVolume, rng: np.random.Generator) -> Sample: ...

    def render(self, batch: Batch) -> Batch: ...

    def sheet(self, rendered: Batch) -> list[list[npt.NDArray[np.float32]]]: ...


class CropViews:
    """Whole body: K crops of a volume, two views of each, as in CT-FM."""

    on_host: frozenset[str] = frozenset()

    def __init__(self, view: InputConfig, config: CropViewsConfig) -> None:
        self.view, self.config = view, config

    def _cutter(self, volume: StoredVolume) -> Callable[[Size3, Size3], Int16Array]:
        """Cuts crops out of the file, or out of memory where all crops together would unpack most blocks repeatedly."""
        unpacked = self.config.crops_per_volume * math.prod(k + BLOCK - 1 for k in self.view.size_vox)
        if unpacked <= 1.5 * math.prod(volume.shape):
            return volume.crop
        return partial(crop_box, volume.read().hu, volume.shape)

    def _crop(self, cut: Callable[[Size3, Size3], Int16Array], shape: Size3, rng: np.random.Generator) -> Int16Array:
        """A crop at a random place; the first of a few tries that holds enough body, or the one that holds most."""
        size = self.view.size_vox
        best, best_share = None, -1.0
        for _ in range(TRIES_PER_CROP):
            low = [min(0, (n - k) // 2) for n, k in zip(shape, size, strict=True)]
            high = [max(n - k, (n - k) // 2) for n, k in zip(shape, size, strict=True)]
            a, b, c = (int(rng.integers(lo, hi + 1)) for lo, hi in zip(low, high, strict=True))
            crop = cut((a, b, c), size)
            share = float((crop > BODY_HU).mean())
            if share > best_share:
                best, best_share = crop, share
            if share >= self.config.body_fraction:
                break
        assert best is not None
        return best

    def draw(self, volume: StoredVolume, rng: np.random.Generator) -> Sample:
        """Crops int16 (K, D, H, W) and, per crop and view (K, 2), every random number of the views."""
        K = self.config.crops_per_volume
        cut = self._cutter(volume)
        crops = np.stack([self._crop(cut, volume.shape, rng) for _ in range(K)])
        size = np.array(self.view.size_vox)
        factor_KP = rng.uniform(*self.config.scale, size=(K, 2))
        side_KP3 = np.maximum(1, np.round(factor_KP[:, :, None] * size)).astype(np.int64)
        points = self.config.histogram_points
        levels = np.tile(np.linspace(0, 1, points), (K, 2, 1))
        for i in range(1, points - 1):  # MONAI's rule: each point moves between its neighbours, the left one moved
            levels[:, :, i] = rng.uniform(levels[:, :, i - 1], levels[:, :, i + 1])
        return {
            "crops": crops,
            "side": side_KP3,
            "start": np.floor(rng.uniform(size=(K, 2, 3)) * (size - side_KP3 + 1)).astype(np.int64),
            "flip": rng.uniform(size=(K, 2)) < self.config.flip_probability,
            "levels": levels.astype(np.float32),
            "histogram": rng.uniform(size=(K, 2)) < self.config.histogram_probability,
            "smooth": rng.uniform(size=(K, 2)) < self.config.smooth_probability,
            "sigma": rng.uniform(*self.config.smooth_sigma_vox, size=(K, 2)).astype(np.float32),
        }

    def render(self, batch: Batch) -> Batch:
        """``views``: (V, K, 2, C, D, H, W) float32 in [0, 1]."""
        V, K = batch["crops"].shape[:2]
        if batch["crops"].device.type == "cpu":
            flat = {key: value.flatten(0, 1).numpy() for key, value in batch.items()}
            views = render_crops(flat.pop("crops"), flat, self.view.windows)
            return {"views": torch.from_numpy(views).view(V, K, *views.shape[1:])}
        return {"views": self.render_batched(batch)}

    def render_batched(self, batch: Batch) -> Tensor:
        """All views at once, as a GPU wants it."""
        V, K = batch["crops"].shape[:2]
        windowed = apply_windows(batch["crops"], self.view.windows)
        C, *size = windowed.shape[2:]
        flat = {key: value.flatten(0, 2) for key, value in batch.items() if key != "crops"}
        x_BDHW = windowed[:, :, None].expand(V, K, 2, C, *size).reshape(V * K * 2 * C, *size)
        none = torch.zeros_like(flat["flip"])
        weights = [
            axis_weights(
                flat["start"][:, axis], flat["side"][:, axis], n, n, flat["flip"] if axis == 0 else none
            ).repeat_interleave(C, dim=0)
            for axis, n in enumerate(size)
        ]
        x_BCDHW = resample(x_BDHW, *weights).view(V * K * 2, C, *size)
        x_BCDHW = histogram_shift(x_BCDHW, flat["levels"], flat["histogram"])
        x_BCDHW = smooth(x_BCDHW, flat["sigma"], flat["smooth"])
        return x_BCDHW.view(V, K, 2, C, *size)

    def sheet(self, rendered: Batch) -> list[list[npt.NDArray[np.float32]]]:
        """Central slices for the picture: one row per view (first volume), one column per crop."""
        views = rendered["views"][0, :8, :, 0]
        return [[views[k, p, views.shape[2] // 2].numpy() for k in range(len(views))] for p in range(2)]


class MultiCropViews:
    """Head: global and local boxes cut from the stored 1 mm volume, so that local views hold more detail.

    Args:
        patch: the encoder's patch side in voxels, for the masks.
        mask_ratio: share of the patches of each global view that masked image modelling hides.
        ibot: how many patches of how many global views become mask tokens; None for none.
        raw: ``draw`` reads int16 only, of the part of the volume that holds all boxes, and ``render`` windows and
            resizes them: for a GPU, which does it a hundred times faster than a core. The same views, within rounding.
    """

    on_host = frozenset({"region", "global_box", "local_box"})

    def __init__(
        self,
        view: InputConfig,
        config: MultiCropConfig,
        patch: int,
        mask_ratio: float,
        ibot: IbotConfig | None = None,
        raw: bool = False,
    ) -> None:
        self.view, self.config, self.ibot, self.raw = view, config, ibot, raw
        self.patches = math.prod(side // patch for side in view.size_vox)
        self._levels: dict[tuple[Path, bool], Level] = {}  # in order of their last use
        self.visible = min(max(1, round(self.patches * (1 - mask_ratio))), self.patches - 1)

    def _level(self, volume: StoredVolume, halved: bool) -> Level:
        """The windowed volume, from memory where it is still there; the oldest one makes room."""
        key = (volume.path, halved)
        level = self._levels.pop(key, None) or Level.of(volume.read().hu, self.view.windows, halved)
        self._levels[key] = level
        # An lru_cache counts volumes, not their bytes; cachetools would be a requirement more, for these two lines.
        while sum(kept.values.nbytes for kept in self._levels.values()) > self.config.cache_mb * 2**20:
            del self._levels[next(iter(self._levels))]
        return level

    def _box(self, shape: Size3, rng: np.random.Generator, sides: Range, field: float) -> npt.NDArray[np.int64]:
        """First voxel and sides, (2, 3): sides of a random share of the field, somewhere within it."""
        whole = np.array(shape)
        side = np.maximum(1, np.round(rng.uniform(*sides) * field * whole)).astype(int)
        margin = (1 - field) / 2 * whole
        start = np.floor(margin + rng.uniform(size=3) * (field * whole - side)).astype(int).clip(0, whole - side)
        return np.stack([start, side])

    def _kinds(self) -> list[tuple[str, int, Range, float, Size3]]:
        """Name, number, sides, field and size of the views."""
        config = self.config
        kinds = [
            ("global", config.globals, config.global_side, 1.0, self.view.size_vox),
            ("local", config.locals, config.local_side, config.local_field, config.local_size_vox),
        ]
        return [kind for kind in kinds if kind[1]]

    def _resized(self, volume: StoredVolume, rng: np.random.Generator) -> Sample:
        """Boxes of each kind, windowed and resized: (count, C, *size)."""
        sample: Sample = {}
        for name, count, sides, field, size in self._kinds():
            a, b, c = (int(sides[0] * field * n) for n in volume.shape)
            level = self._level(volume, may_halve((a, b, c), size, self.view.windows))
            _, d, h, w = level.values.shape
            views = []
            for _ in range(count):
                start, side = self._box((d, h, w), rng, sides, field)
                views.append(level.resize(tuple(start.tolist()), tuple(side.tolist()), size))
            sample[name] = np.asarray(torch.stack(views).numpy(), dtype=np.float32)
        return sample

    def _unresized(self, volume: StoredVolume, rng: np.random.Generator) -> Sample:
        """``voxels``: HU of the smallest ``region`` (3,) that holds all boxes, flat; ``<kind>_box`` (count, 2, 3)
        within it."""
        boxes = {
            name: np.stack([self._box(volume.shape, rng, sides, field) for _ in range(count)])
            for name, count, sides, field, _ in self._kinds()
        }
        every = np.concatenate(list(boxes.values()))
        start, stop = every[:, 0].min(axis=0), every.sum(axis=1).max(axis=0)
        region = volume.crop(tuple(start.tolist()), tuple((stop - start).tolist()))
        for box in boxes.values():
            box[:, 0] -= start
        return {RAGGED: region.ravel(), "region": stop - start} | {f"{name}_box": box for name, box in boxes.items()}

    def draw(self, volume: StoredVolume, rng: np.random.Generator) -> Sample:
        """Resized boxes ``global`` (G, C, ...) and ``local`` (L, C, ...), or what :func:`_unresized` says; the views'
        numbers, and the masks: the hidden and visible patches, and with iBOT which patches are ``masked``, bool (G, N).
        """
        config = self.config
        sample = self._unresized(volume, rng) if self.raw else self._resized(volume, rng)
        for kind, count in (("global", config.globals), ("local", config.locals)):
            first = np.arange(count) == 0
            sample |= {
                f"{kind}_flip": rng.uniform(size=count) < config.flip_probability,
                f"{kind}_shift": rng.uniform(-config.shift, config.shift, size=count).astype(np.float32),
                f"{kind}_smooth": first & (rng.uniform(size=count) < config.smooth_probability),
                f"{kind}_sigma": rng.uniform(*config.smooth_sigma_vox, size=count).astype(np.float32),
                f"{kind}_gamma": np.where(first, 1.0, rng.uniform(*config.gamma, size=count)).astype(np.float32),
            }
        order = np.argsort(rng.uniform(size=(config.globals, self.patches)), axis=1)
        sample |= {"visible": order[:, : self.visible], "hidden": order[:, self.visible :]}
        return sample if self.ibot is None else sample | {"masked": self._masked(self.ibot, rng)}

    def _masked(self, ibot: IbotConfig, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        """The number of masked views is the same in every sample, so that every step has some."""
        count = self.config.globals
        masked = np.zeros((count, self.patches), dtype=bool)
        for view in rng.permutation(count)[: max(1, round(ibot.masked_views * count))]:
            patches = max(1, round(float(rng.uniform(*ibot.mask_ratio)) * self.patches))
            masked[view, rng.permutation(self.patches)[:patches]] = True
        return masked

    def render(self, batch: Batch) -> Batch:
        """``global`` (B, G, C, ...) and ``local`` (B, L, C, ...) in [0, 1]; the masks as drawn."""
        rendered: Batch = {key: value for key, value in batch.items() if key in ("visible", "hidden", "masked")}
        for kind, count, _, _, size in self._kinds():
            x_BCDHW = self._cut(batch, kind, size) if self.raw else batch[kind].flatten(0, 1)
            drawn = {key: batch[f"{kind}_{key}"].flatten() for key in ("flip", "shift", "smooth", "sigma", "gamma")}
            x_BCDHW = torch.where(drawn["flip"][:, None, None, None, None], x_BCDHW.flip(2), x_BCDHW)
            x_BCDHW = smooth(shift(x_BCDHW, drawn["shift"]), drawn["sigma"], drawn["smooth"])
            rendered[kind] = gamma(x_BCDHW, drawn["gamma"]).view(-1, count, len(self.view.windows), *size)
        return rendered

    def _cut(self, batch: Batch, kind: str, size: Size3) -> Tensor:
        """Window and resize the boxes of a kind, (B * count, C, *size) float32 in [0, 1]."""
        regions, boxes_BN23 = batch["region"], batch[f"{kind}_box"]
        voxels = torch.split(batch[RAGGED], regions.prod(dim=1).tolist())
        return resize_boxes(
            [hu.view(*shape) for hu, shape in zip(voxels, regions.tolist(), strict=True)],
            boxes_BN23,
            self.view.windows,
            size,
        )

    def sheet(self, rendered: Batch) -> list[list[npt.NDArray[np.float32]]]:
        """Central axial slices, first window: one row per volume, its global views, then its local views."""
        rows = []
        for b in range(min(4, len(rendered["global"]))):
            views = [view[0] for kind in ("global", "local") if kind in rendered for view in rendered[kind][b]]
            rows.append([view[:, :, view.shape[2] // 2].T.flip(0).numpy() for view in views])
        return rows


def build_views(config: PretrainConfig, device: str = "cpu") -> Views:
    """The view maker that goes with the objective, and with the type of ``device`` that renders."""
    objective = config.objective
    if not isinstance(objective, HeadObjectiveConfig):
        return CropViews(config.input, objective.views)
    assert isinstance(config.encoder, VitConfig)  # the parameters were checked for it
    ibot = objective.ibot if objective.kind == "dino_ibot" else None
    return MultiCropViews(
        config.input, objective.views, config.encoder.patch_vox, objective.mae.mask_ratio, ibot, device != "cpu"
    )
