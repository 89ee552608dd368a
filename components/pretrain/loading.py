"""Which volumes a step sees, reading them ahead, and what the model is handed of them.

There is no random state: the volumes, crops and views of a step are a function of (seed, step, place in the global
batch), so that neither the number of workers nor that of their loader processes changes what is drawn.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from components.ct.store import StoredVolume, Volume
from components.errors import UserError
from components.pretrain.apart import Place, here
from components.pretrain.config import PretrainConfig
from components.pretrain.views import RAGGED, Batch, Sample, Views, build_views
from components.pretrain.workers import World, agree, sum_over_workers

ORDER_STREAM, SAMPLE_STREAM, SUBSTITUTE_STREAM = 0, 1, 2  # independent random streams below one seed
SUBSTITUTES = 8  # volumes tried in the place of one that cannot be read
BATCHES_AHEAD = 2  # of each loader process


def sample_order(seed: int, volumes: int, index: int) -> int:
    """The volume at place ``index`` of the endless sequence of shuffled epochs."""
    epoch, place = divmod(index, volumes)
    return int(_epoch_order(seed, volumes, epoch)[place])


@lru_cache(maxsize=2)  # a step may reach from one epoch into the next
def _epoch_order(seed: int, volumes: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, ORDER_STREAM, epoch]).permutation(volumes)


def sample_rng(seed: int, index: int) -> np.random.Generator:
    """The generator of everything random about sample ``index`` of the run."""
    return np.random.default_rng([seed, SAMPLE_STREAM, index])


class _UnreadableError(Exception):
    """A volume's file cannot be read; whatever else goes wrong in a view is a mistake of ours, or of a setting."""


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise _UnreadableError(str(error)) from error


class _Volume(StoredVolume):
    def __init__(self, place: Place) -> None:
        with _reading():
            super().__init__(here(place))

    def read(self) -> Volume:
        with _reading():
            return super().read()

    def crop(self, start: tuple[int, int, int], size: tuple[int, int, int]) -> npt.NDArray[np.int16]:
        with _reading():
            return super().crop(start, size)


class Samples(Dataset[Sample | str]):
    """Sample ``index`` of the run; the text of the error where its volume cannot be read, since an exception would
    come out of a loader process as somebody else's. Where such volumes are to be skipped, another one is drawn in its
    place, and ``skipped`` (SUBSTITUTES,) holds the numbers of those that were not readable, then -1."""

    def __init__(self, config: PretrainConfig, views: Views, volumes: tuple[Place, ...]) -> None:
        self.config, self.views, self.volumes = config, views, volumes

    def __getitem__(self, index: int) -> Sample | str:
        config, count = self.config, len(self.volumes)
        numbers = [sample_order(config.seed, count, index)]
        if config.unreadable == "skip":
            others = np.random.default_rng([config.seed, SUBSTITUTE_STREAM, index])
            numbers += others.integers(count, size=SUBSTITUTES).tolist()
        first = ""
        for tried, number in enumerate(numbers):
            path = self.volumes[number]
            try:
                sample = self.views.draw(_Volume(path), sample_rng(config.seed, index))
            except _UnreadableError as error:
                first = first or f"volume {path}: cannot be read for training: {error}; run preprocess again"
                continue
            if config.unreadable == "skip":
                sample["skipped"] = np.array(numbers[:tried] + [-1] * (SUBSTITUTES - tried))
            return sample
        return first


def collate(samples: list[Sample | str]) -> Batch | str:
    """Samples one above the other, those without equal shapes one after the other, or the first error among them."""
    for sample in samples:
        if isinstance(sample, str):
            return sample
    drawn = [sample for sample in samples if not isinstance(sample, str)]
    return {
        key: torch.from_numpy((np.concatenate if key == RAGGED else np.stack)([sample[key] for sample in drawn]))
        for key in drawn[0]
    }


def load_batch(config: PretrainConfig, volumes: tuple[Place, ...], count: int) -> Batch:
    """The first ``count`` samples of the run, for a look at them. Raises UserError where one cannot be read."""
    samples = Samples(config, build_views(config), volumes)
    batch = collate([samples[index] for index in range(count)])
    if isinstance(batch, str):
        raise UserError(batch)
    batch.pop("skipped", None)
    return batch


def places(config: PretrainConfig, world: World, step: int) -> Iterator[list[int]]:
    """This worker's share of each part of the batches, from ``step`` on to the run's end, of a run without steps the
    first: the batch is cut into parts first, so that what is normalised together does not depend on the number of
    workers."""
    part = config.volumes_per_step // config.accumulate
    mine = part // world.size
    for first in range(step * config.volumes_per_step, max(1, config.steps) * config.volumes_per_step, part):
        start = first + world.rank * mine
        yield list(range(start, start + mine))


def batches(config: PretrainConfig, volumes: tuple[Place, ...], world: World, step: int) -> Iterator[Batch | str]:
    """This worker's parts of the global batches in order, read ahead by ``config.loaders`` processes; the text of an
    error in the place of a batch that cannot be read."""
    samples = Samples(config, build_views(config, world.device.type), volumes)
    if config.loaders == 0:
        return (collate([samples[index] for index in part]) for part in places(config, world, step))
    return iter(
        DataLoader(
            samples,
            batch_sampler=places(config, world, step),
            collate_fn=collate,
            num_workers=config.loaders,
            prefetch_factor=BATCHES_AHEAD,
            pin_memory=world.device.type == "cuda",
            multiprocessing_context="forkserver",  # a fork would copy Ray's and blosc2's threads in any state
        )
    )


@dataclass(frozen=True)
class _Part:
    """What the model will see, or why it cannot be read; numbers of volumes that were skipped."""

    rendered: Batch
    mistake: str = ""
    skipped: Tensor | None = None


class Incoming:
    """What the model sees, one part of a step after the other, from the run's first step or :meth:`go_on`'s.

    A GPU is handed each part before the step before is over: its copy and its views are made on a stream of their own,
    beside the step.

    Attributes:
        views: the view maker.
        waited: seconds without a batch.
        skipped: int64 (volumes,), samples lost with each volume, on all workers.
    """

    def __init__(self, config: PretrainConfig, volumes: tuple[Place, ...], world: World) -> None:
        self.config, self.volumes, self.world = config, volumes, world
        self.views = build_views(config, world.device.type)
        self.waited = 0.0
        self.skipped = torch.zeros(len(volumes), dtype=torch.int64)
        self._step = 0
        self._batches: Iterator[Batch | str] | None = None
        self._ahead: _Part | None = None
        self._beside: torch.cuda.Stream | None = None
        if world.device.type == "cuda":
            self._beside = torch.cuda.Stream(world.device)  # type: ignore[no-untyped-call]

    def go_on(self, step: int, skipped: Tensor) -> None:
        """Begin at ``step``, with what was ``skipped`` before it."""
        self._step, self.skipped = step, skipped

    def next(self) -> Batch:
        """What the next part sees. Raises UserError, on every worker, where one of them cannot read a volume."""
        part, self._ahead = self._ahead or self._read(), None
        assert part is not None  # a run has as many parts as its steps want
        agree(self.world, UserError(part.mistake) if part.mistake else None)
        if part.skipped is not None:
            numbers = part.skipped.flatten()
            lost = torch.bincount(numbers[numbers >= 0], minlength=len(self.volumes)).to(self.world.device)
            self.skipped = self.skipped + sum_over_workers(lost).cpu()
        if self._beside is not None:
            here = torch.cuda.current_stream(self.world.device)
            here.wait_stream(self._beside)
            for value in part.rendered.values():
                value.record_stream(here)  # or its memory would be used again before the step has read it
        return part.rendered

    def read_ahead(self) -> None:
        """On a GPU, have the next part made while the step runs; elsewhere loader processes read ahead."""
        if self._beside is not None:
            self._ahead = self._read()

    def repeat(self) -> None:
        """See the next batch again and again from now on: what a step takes without data loading."""
        batch = self._next_batch()
        assert isinstance(batch, dict)
        self._batches = itertools.repeat(self._on_device(batch))

    def _read(self) -> _Part | None:
        """Wait for the next batch, and have it copied and rendered. None at the run's end."""
        batch = self._next_batch()
        if batch is None:
            return None
        if isinstance(batch, str):
            return _Part({}, mistake=batch)
        skipped = batch.pop("skipped", None)
        with torch.cuda.stream(self._beside):  # of None: nothing
            return _Part(self.views.render(self._on_device(batch)), skipped=skipped)

    def _next_batch(self) -> Batch | str | None:
        if self._batches is None:
            self._batches = batches(self.config, self.volumes, self.world, self._step)
        started = time.monotonic()
        batch = next(self._batches, None)
        self.waited += time.monotonic() - started
        return batch

    def _on_device(self, batch: Batch) -> Batch:
        """``batch`` on this worker's device, but for what the views want on the host."""
        return {
            key: value if key in self.views.on_host else value.to(self.world.device, non_blocking=True)
            for key, value in batch.items()
        }
