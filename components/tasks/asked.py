"""What is trained on besides vectors: what the encoder sees of every place of a task, and which class each is of.

A task's parts share their places (ten findings of one scan), so they are trained together: an encoder that is fitted to
all of them is seen once for all, and their heads are each their own.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from components.figures.arrays import Array, Integers
from components.models.embed import Embedder
from components.progress import track
from components.tasks.features import Volumes, place_of, places_of
from components.tasks.judging import Part

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """What the encoder is given, place by place.

    Attributes:
        places: see :func:`components.tasks.features.place_of`, to row.
        given: (places, C, ...) float32, in a file: memory does not grow with the task.
    """

    places: Mapping[str, int]
    given: Float32Array

    def rows(self, table: pd.DataFrame) -> Integers:
        """Which rows (cases,) a table's cases are of."""
        return np.asarray([self.places[place] for place in place_of(table)], dtype=np.int64)


@contextmanager
def seen_by(embedder: Embedder, table: pd.DataFrame, volumes: Volumes) -> Iterator[Seen]:
    """What the encoder sees of the places of a table; kept in a temporary file while the context lasts."""
    places = places_of([table])
    with tempfile.TemporaryDirectory() as folder:
        given: Float32Array | None = None
        row = 0
        for name, of in track(places.groupby("volume"), [1] * places["volume"].nunique(), "reading"):
            volume = volumes.open(str(name))
            for point in of[["x", "y", "z"]].to_numpy():  # in the order of places, which is by volume
                one = embedder.seen(volume, None if np.isnan(point).any() else point)[0].cpu().numpy()
                if given is None:
                    path = Path(folder) / "seen.npy"
                    given = np.lib.format.open_memmap(path, "w+", np.float32, (len(places), *one.shape))  # type: ignore[no-untyped-call]
                given[row] = one
                row += 1
        assert given is not None
        yield Seen({place: index for index, place in enumerate(place_of(places))}, given)


@dataclass(frozen=True)
class Asked:
    """Training cases of one part, or some of them.

    Attributes:
        places: (cases,) rows of what is seen.
        classes: (cases,) index of each one's class.
        count: of classes.
    """

    places: Integers
    classes: Integers
    count: int

    @classmethod
    def of(cls, part: Part, seen: Seen, rows: Integers | None = None) -> Asked:
        """Of a part's training cases, or of its ``rows`` alone."""
        chosen = np.flatnonzero(~part.test) if rows is None else rows
        names = np.asarray(part.classes, dtype=np.str_)
        classes = np.argmax(part.labels[chosen][:, None] == names[None], axis=1).astype(np.int64)
        return cls(seen.rows(part.rows.iloc[chosen]), classes, len(part.classes))

    @property
    def weights(self) -> Array:
        """(cases,) by which all classes weigh alike; 1 on average."""
        share = np.bincount(self.classes, minlength=self.count) / len(self.classes)
        weights: Array = 1 / (share[self.classes] * np.count_nonzero(share))
        return weights


def generator_of(seed: int, *what: str) -> np.random.Generator:
    """Random numbers that follow from the seed and from what they are for."""
    return np.random.default_rng(list(hashlib.sha256("/".join([str(seed), *what]).encode()).digest()))


def batches(places: Integers, size: int, steps: int, generator: np.random.Generator) -> Iterator[Integers]:
    """``steps`` times ``size`` of the places: all of them in a new order, again and again."""
    waiting = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        while len(waiting) < size:
            waiting = np.concatenate([waiting, generator.permutation(places)])
        yield waiting[:size]
        waiting = waiting[size:]


class Loss:
    """Cross-entropy of every part with its classes weighing alike, as the frozen probes have it; the mean over parts.

    A part counts as much whether few of the places are cases of it, or all.
    """

    def __init__(self, parts: Sequence[Asked]) -> None:
        self.places: Integers = np.unique(np.concatenate([part.places for part in parts]))
        self._parts = parts
        self._row_of = [{int(place): row for row, place in enumerate(part.places)} for part in parts]
        self._weights = [torch.from_numpy(part.weights).float() for part in parts]

    def __call__(self, batch: Integers, logits: Sequence[Tensor]) -> Tensor:
        """Of a batch of places, with every part's logits (batch, classes)."""
        total = torch.zeros((), device=logits[0].device)
        for part, row_of, weights, of in zip(self._parts, self._row_of, self._weights, logits, strict=True):
            inside = [(at, row_of[int(place)]) for at, place in enumerate(batch) if int(place) in row_of]
            if not inside:
                continue
            at, rows = (list(numbers) for numbers in zip(*inside, strict=True))
            wanted = torch.from_numpy(part.classes[rows]).to(of.device)
            each = functional.cross_entropy(of[at], wanted, reduction="none")
            scale = len(self.places) / (len(batch) * len(part.places))
            total = total + (each * weights[rows].to(of.device)).sum() * scale
        return total / len(self._parts)


def softmax(logits: Tensor) -> Array:
    """(cases, classes), as if classes were equally frequent."""
    shares: Array = logits.double().softmax(dim=1).cpu().numpy()
    return shares
