"""Training of kind ``segment``: a decoder on frozen levels of few scans, or encoder and decoder together.

On frozen levels the decoder is trained on single voxels, thousands of them at a time; together, they are trained on
crops.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from components.ct.store import Int16Array
from components.models.decoder import Grids, Triple, UInt8Array, at_finest
from components.models.embed import EmbedConfig, Embedder
from components.models.segmenter import Segmenter, image_of
from components.tasks.asked import generator_of
from components.tasks.segment_config import DecoderConfig, VariedConfig

WEIGHT_DECAY = 1e-4
SOFT_HU = (-150, 350)  # of which contrast agent and scanner change the contrast
HU_RANGE = (-1024, 3071)


@dataclass(frozen=True)
class Labelled:
    """A training scan.

    Attributes:
        image: input (1, C, D, H, W), a multiple of the coarsest voxel.
        target: uint8 (d, h, w), classes at the decoder's output.
        cells: of each class that is there, voxels of the coarsest level that hold it, (n, 3).
    """

    image: Tensor
    target: UInt8Array
    cells: list[npt.NDArray[np.intp]]


def labelled(hu: Int16Array, classes: UInt8Array, embed: EmbedConfig, grids: Grids) -> Labelled:
    """A scan and its classes, ready to be trained on."""
    fold = 2 ** (grids.levels - 1 - grids.finest)
    cells = grids.cells(hu.shape)
    target = np.zeros([n * fold for n in cells], dtype=np.uint8)
    places = []
    for axis, count in enumerate(target.shape):
        at = np.rint(grids.centres(axis, count)).astype(np.intp)
        places.append(at[at < hu.shape[axis]])
    target[tuple(slice(len(at)) for at in places)] = classes[np.ix_(*places)]
    blocks = target.reshape(cells[0], fold, cells[1], fold, cells[2], fold).transpose(0, 2, 4, 1, 3, 5)
    flat = blocks.reshape(-1, fold**3)
    there = [np.argwhere((flat == value).any(axis=1).reshape(cells)) for value in np.unique(target)]
    return Labelled(image_of(hu, embed, grids).values, target, there)


def with_copies(
    hu: Int16Array, classes: UInt8Array, config: VariedConfig, seed: int, patient: str
) -> Iterator[tuple[Int16Array, UInt8Array]]:
    """A scan with its classes, then its copies."""
    yield hu, classes
    for number in range(config.copies):
        yield varied(hu, classes, config, generator_of(seed, "copy", patient, str(number)))


def varied(
    hu: Int16Array, classes: UInt8Array, config: VariedConfig, rng: np.random.Generator
) -> tuple[Int16Array, UInt8Array]:
    """A copy of a scan and of its classes: zoomed, with another contrast of soft tissue and more noise."""
    sides = [max(1, round(n * (1 + rng.uniform(-config.zoom, config.zoom)))) for n in hu.shape]
    values = functional.interpolate(torch.from_numpy(hu).float()[None, None], size=sides, mode="trilinear")[0, 0]
    of_voxels = functional.interpolate(torch.from_numpy(classes)[None, None], size=sides, mode="nearest-exact")[
        0, 0
    ].numpy()
    soft = values.clamp(*SOFT_HU)
    factor = 1 + float(rng.uniform(-config.contrast, config.contrast))
    values += soft * (factor - 1) + float(rng.uniform(-config.shift_hu, config.shift_hu))
    noise = torch.from_numpy(rng.standard_normal(sides, dtype=np.float32)) * float(rng.uniform(0, config.noise_hu))
    changed: Int16Array = (values + noise).round().clamp(*HU_RANGE).numpy().astype(np.int16)
    return changed, of_voxels


@dataclass(frozen=True)
class Place:
    """A crop: of which scan, and its first voxel and sides at the coarsest level."""

    scan: int
    start: Triple
    side: Triple


def drawn_voxels(target: UInt8Array, count: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Places in the flat ``target``, each class as often as the root of its size: small structures are seen, and large
    ones are still known to be large."""
    flat = target.ravel()
    sizes = np.bincount(flat)
    weights = np.sqrt(sizes) / sizes.clip(1)
    chances = weights[flat]
    count = min(count, len(flat))
    return np.sort(rng.choice(len(flat), count, replace=False, p=chances / chances.sum()))


def drawn_places(
    scans: Sequence[Labelled], grids: Grids, config: DecoderConfig, rng: np.random.Generator
) -> Callable[[], list[Place]]:
    """Draws the crops of one step after the other: of a scan at random round a class at random, so that small
    structures are seen as often as large ones."""
    fold = 2 ** (grids.levels - 1 - grids.finest)

    def place() -> Place:
        number = int(rng.integers(len(scans)))
        of_class = scans[number].cells[int(rng.integers(len(scans[number].cells)))]
        cell = of_class[int(rng.integers(len(of_class)))]
        sides, starts = [], []
        for axis, total in enumerate(scans[number].target.shape):
            side = min(config.crop_cells[axis], total // fold)
            first = int(cell[axis]) - int(rng.integers(side))
            sides.append(side)
            starts.append(min(max(0, first), total // fold - side))
        return Place(number, (starts[0], starts[1], starts[2]), (sides[0], sides[1], sides[2]))

    def step() -> list[Place]:
        first = place()
        return [first, *(_alike(place, first) for _ in range(config.crops - 1))]

    return step


def _alike(place: Callable[[], Place], first: Place) -> Place:
    """A crop of the same sides: of a smaller scan they are smaller, and a batch has one shape."""
    for _ in range(100):
        if (found := place()).side == first.side:
            return found
    return first


def _cut(array: Tensor, place: Place, fold: int) -> Tensor:
    box = tuple(slice(s * fold, (s + k) * fold) for s, k in zip(place.start, place.side, strict=True))
    return array[(slice(None), slice(None), *box)]


class Learner(Segmenter):
    """A segmenter that is trained."""

    config: DecoderConfig

    def __init__(self, embedder: Embedder, config: DecoderConfig, classes: int, seed: int) -> None:
        """``classes``: background included. ``seed``: of the decoder's initial weights."""
        from monai.losses.dice import DiceCELoss  # takes seconds to import

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(embedder.encoder, embedder.config, config, classes, config.dropout)
        self._loss = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
        self._seed = seed

    def fit(self, scans: Sequence[Labelled], levels: Sequence[Sequence[Tensor]]) -> None:
        """Train the decoder on frozen levels.

        Args:
            scans: that are trained on.
            levels: of each.
        """
        rng = generator_of(self._seed, "voxels")
        for number, lift in enumerate(self.decoder.lifts):
            lift.standardise([of[number] for of in levels])
        parts, targets = [], []
        for scan, of in zip(scans, levels, strict=True):
            chosen = drawn_voxels(scan.target, self.config.voxels, rng)
            places = torch.from_numpy(chosen).to(self.device)
            parts.append([level[0].flatten(1)[:, places].T for level in at_finest(of)])
            targets.append(torch.from_numpy(scan.target.ravel()[chosen]))
        together = [torch.cat(level) for level in zip(*parts, strict=True)]
        target = torch.cat(targets).long().to(self.device)

        def step() -> Tensor:
            drawn = torch.from_numpy(rng.integers(len(target), size=min(self.config.batch, len(target))))
            drawn = drawn.to(self.device)
            logits = self.decoder.of_voxels([level[drawn] for level in together])
            loss: Tensor = self._loss(logits.T[None], target[drawn][None, None])
            return loss

        self._train(self.decoder, step, self.config.steps, self.config.learning_rate)

    def fit_whole(self, scans: Sequence[Labelled], steps: int, rate: float) -> None:
        """Train encoder and decoder together, from the weights that they have; batch norms keep their statistics.

        Args:
            scans: that are trained on.
            steps: how many.
            rate: the highest learning rate.
        """
        draw = drawn_places(scans, self.grids, self.config, generator_of(self._seed, "crops"))
        fold = 2 ** (self.grids.levels - 1 - self.config.finest)

        def step() -> Tensor:
            places = draw()
            crops = torch.cat([_cut(scans[place.scan].image, place, self.grids.coarsest) for place in places])
            logits = self.decoder(self.encoder.levels(crops.to(self.device))[self.config.finest :])
            wanted = [_cut(torch.from_numpy(scans[p.scan].target)[None, None], p, fold) for p in places]
            loss: Tensor = self._loss(logits, torch.cat(wanted).long().to(self.device))
            return loss

        self.encoder.requires_grad_(True)
        self._train(nn.ModuleList([self.encoder, self.decoder]), step, steps, rate)
        self.encoder.requires_grad_(False)

    def fine_tuned(self, scans: Sequence[Labelled], steps: int, rate: float) -> Learner:
        """A copy that goes on from here with encoder and decoder together (arXiv 2202.10054: the decoder first)."""
        tuned = copy.deepcopy(self)
        tuned.fit_whole(scans, steps, rate)
        return tuned

    def settle(self, scans: Sequence[Labelled]) -> None:
        """Give the encoder's batch norms the statistics of these scans."""
        norms = [module for module in self.encoder.modules() if isinstance(module, nn.BatchNorm3d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over what is seen
        self.encoder.train()
        for scan in scans:
            self.levels(scan.image)
        self.encoder.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def _train(self, trained: nn.Module, step: Callable[[], Tensor], steps: int, rate: float) -> None:
        """The caller's random numbers are left as they were.

        Args:
            trained: whose weights move.
            step: the loss of the next crops or voxels.
            steps: how many.
            rate: the highest learning rate.
        """
        self.decoder.train()
        with torch.random.fork_rng():
            torch.manual_seed(self._seed)
            optimiser = torch.optim.AdamW(trained.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=max(2, steps))
            optimiser.zero_grad(set_to_none=True)
            for _ in range(steps):
                torch.autograd.backward(step())
                optimiser.step()
                schedule.step()
                optimiser.zero_grad(set_to_none=True)
        self.decoder.eval()
