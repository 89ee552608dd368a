"""Which blocks of what an encoder sees its answer rests on: by occlusion, by integrated gradients, and put to the test
by taking them away.

A score is any function of the encoder's input. Blocks divide the input among them; one that is taken away is replaced
by a neutral value, the mean of what is seen, channel by channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from components.figures.arrays import Array, Bools, Integers
from components.models.embed import batch_of, fixed_threads

Answer = Callable[[Tensor], Tensor]  # (B, C, D, H, W) to float64 (B,)
STEPS = 10  # of a deletion curve


@dataclass(frozen=True)
class Blocks:
    """A division of an input into blocks as equal as whole voxels allow.

    Attributes:
        number: (D, H, W) the block of each voxel, from 0.
        sizes: (K,) voxels of each block.
    """

    number: Integers
    sizes: Integers

    @classmethod
    def of(cls, shape: tuple[int, int, int], counts: tuple[int, int, int]) -> Blocks:
        """So many along each axis, at most one for each voxel."""
        counts = tuple(min(count, n) for count, n in zip(counts, shape, strict=True))  # type: ignore[assignment]
        a, b, c = (np.arange(n, dtype=np.int64) * count // n for n, count in zip(shape, counts, strict=True))
        number = (a[:, None, None] * counts[1] + b[:, None]) * counts[2] + c
        return cls(number, np.bincount(number.ravel()).astype(np.int64))

    @property
    def count(self) -> int:
        return len(self.sizes)

    def sums(self, values: Array) -> Array:
        """(K,) of values (D, H, W)."""
        found = np.bincount(self.number.ravel(), weights=values.ravel(), minlength=self.count)
        return np.asarray(found, dtype=np.float64)

    def centres(self) -> Array:
        """(K, 3), in voxels."""
        places: Array = np.indices(self.number.shape).astype(np.float64)
        return np.stack([self.sums(places[axis]) / self.sizes for axis in range(3)], axis=1)


def neutral_of(seen: Tensor) -> Tensor:
    """(1, C, 1, 1, 1): the mean of each channel of what is seen (1, C, D, H, W)."""
    return seen.mean(dim=(2, 3, 4), keepdim=True)


def without(answer: Answer, seen: Tensor, blocks: Blocks, taken: Bools) -> Array:
    """Scores (N,) with sets of blocks replaced by the neutral value.

    Args:
        answer: the score.
        seen: (1, C, D, H, W).
        blocks: of it.
        taken: (N, K) which blocks are replaced.
    """
    a, b, c = blocks.number.shape
    batch, neutral, number = batch_of((a, b, c)), neutral_of(seen), torch.from_numpy(blocks.number)
    scores: list[Array] = []
    with torch.inference_mode(), fixed_threads():
        for first in range(0, len(taken), batch):
            gone_BDHW = torch.from_numpy(taken[first : first + batch])[:, number].to(seen.device)
            scores.append(answer(torch.where(gone_BDHW[:, None], neutral, seen)).cpu().numpy())
    return np.concatenate(scores) if scores else np.zeros(0)


def occlusion(answer: Answer, seen: Tensor, blocks: Blocks, chosen: Integers) -> Array:
    """By how much the score falls without each chosen block (Zeiler and Fergus, arXiv 1311.2901); 0 of others, (K,)."""
    taken = np.zeros((1 + len(chosen), blocks.count), dtype=np.bool_)
    taken[np.arange(1, 1 + len(chosen)), chosen] = True
    scores = without(answer, seen, blocks, taken)
    fall: Array = np.zeros(blocks.count)
    fall[chosen] = scores[0] - scores[1:]
    return fall


def integrated_gradients(answer: Answer, seen: Tensor, steps: int) -> Array:
    """What each voxel adds to the score on the way from the neutral value to what is seen, (D, H, W).

    Of arXiv 1703.01365. The integral by Gauss and Legendre's rule with so many ``steps``; channels are added up. Over
    all voxels it sums to the score less that of the neutral value.
    """
    at, weights = np.polynomial.legendre.leggauss(steps)
    along, shares = torch.from_numpy((at + 1) / 2), torch.from_numpy(weights / 2)
    neutral = neutral_of(seen)
    _, _, a, b, c = seen.shape
    batch, total = batch_of((a, b, c)), torch.zeros_like(seen, dtype=torch.float64)
    with fixed_threads():
        for first in range(0, steps, batch):
            part = slice(first, first + batch)
            share = along[part].to(seen)[:, None, None, None, None]
            points = (neutral + share * (seen - neutral)).requires_grad_(True)
            (gradient,) = torch.autograd.grad(answer(points).sum(), points)
            of_step = shares[part].to(seen.device)[:, None, None, None, None]
            total += (gradient.double() * of_step).sum(dim=0, keepdim=True)
    found: Array = ((seen - neutral).double() * total).sum(dim=1)[0].cpu().numpy()
    return found


def deletion(answer: Answer, seen: Tensor, blocks: Blocks, orders: Integers) -> Array:
    """The score's probability, 1 / (1 + exp(-score)), as ever more blocks are taken away (arXiv 1806.07421).

    Args:
        answer: the score, log odds.
        seen, blocks: see :func:`without`.
        orders: (N, M) blocks, those first that go first.

    Returns:
        (N, STEPS + 1), after 0 to M of them.
    """
    gone = np.rint(np.arange(STEPS + 1) / STEPS * orders.shape[1]).astype(np.int64)
    taken = np.zeros((len(orders), STEPS + 1, blocks.count), dtype=np.bool_)
    for number, order in enumerate(orders):
        for step, count in enumerate(gone):
            taken[number, step, order[:count]] = True
    sets, which = np.unique(taken.reshape(-1, blocks.count), axis=0, return_inverse=True)  # first and last are shared
    scores = without(answer, seen, blocks, sets)[which.ravel()]
    curves: Array = expit(scores.reshape(len(orders), STEPS + 1))
    return curves


def area(curves: Array) -> Array:
    """Under curves (N, STEPS + 1) whose steps are equal and span 1; (N,)."""
    found: Array = (curves[:, :-1] + curves[:, 1:]).sum(axis=1) / (2 * (curves.shape[1] - 1))
    return found
