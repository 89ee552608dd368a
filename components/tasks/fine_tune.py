"""Encoder and linear heads trained together on a task's training cases (fine-tuning).

Each head begins as the linear probe of the encoder before its first step, and the encoder moves from there
(arXiv 2202.10054): a step count of 0 would be the frozen probe. So does an untrained encoder, trained from scratch by
the same number of steps: it is not held back by a head that knows nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from components.figures.arrays import Array, Integers
from components.models.embed import Embedder, batch_of
from components.models.heads import Linear
from components.models.vit import TOKENS
from components.tasks.asked import Asked, Loss, Seen, batches, softmax
from components.tasks.trained import FineTuneConfig

WARMUP, CLIP_NORM = 0.1, 3.0
LAYER = re.compile(r"(?:blocks|layers)\.(\d+)\.")
LEFT_RIGHT = {"RAS": 0, "SPL": 2}  # axis of the volume


@dataclass(frozen=True)
class Rates:
    """How fast encoder and heads learn, and how much slower each layer than the one above it."""

    encoder: float
    heads: float
    layer_decay: float


class Heads(nn.Module):
    """A linear head for each part on standardised vectors, which begin as given ones."""

    def __init__(self, starts: Sequence[Linear]) -> None:
        super().__init__()
        width = math.sqrt(len(starts[0].mean))
        for number, start in enumerate(starts):  # probes are scaled by the root of the dimension, see fit_linear
            self.register_buffer(f"mean{number}", _float32(start.mean))
            varying = start.weight.any(axis=0)  # what did not vary has no weight and a scale of 1
            self.register_buffer(f"scale{number}", _float32(start.scale / np.where(varying, width, 1.0)))
        self.weights = nn.ParameterList(nn.Parameter(_float32(start.weight / width)) for start in starts)
        self.biases = nn.ParameterList(nn.Parameter(_float32(start.bias)) for start in starts)

    def forward(self, vectors_BD: Tensor) -> list[Tensor]:
        """Every part's logits (B, classes)."""
        return [
            (vectors_BD - self.get_buffer(f"mean{number}")) / self.get_buffer(f"scale{number}") @ weight.T + bias
            for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True))
        ]


def tuned(
    embedder: Embedder,
    seen: Seen,
    parts: Sequence[Asked],
    starts: Sequence[Linear],
    rates: Rates,
    steps: int,
    config: FineTuneConfig,
    generator: np.random.Generator,
) -> Heads:
    """Train the embedder's encoder, which is changed, and the heads that are returned.

    Args:
        embedder: before its first step.
        seen: by it.
        parts: what it is trained on.
        starts: each part's linear probe of the embedder as it is.
        rates: of learning.
        steps: how many.
        config: of batches, decay and flips.
        generator: of the order of places, and of flips.
    """
    heads, encoder, loss = Heads(starts).to(embedder.device), embedder.encoder, Loss(parts)
    encoder.requires_grad_(True).train()
    optimiser = _optimiser(encoder, heads, rates, config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: share_of_rate(step, steps))
    axis = 2 + LEFT_RIGHT[embedder.config.input.orientation]
    for batch in batches(loss.places, config.batch, steps, generator):
        given = torch.from_numpy(seen.given[batch])
        flipped = torch.from_numpy(generator.random(len(batch)) < config.flip_probability)
        given = torch.where(flipped[:, None, None, None, None], given.flip(axis), given).to(embedder.device)
        optimiser.zero_grad(set_to_none=True)
        loss(batch, heads(embedder.vectors(given))).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*encoder.parameters(), *heads.parameters()], CLIP_NORM)
        optimiser.step()
        schedule.step()
    encoder.requires_grad_(False).eval()
    return heads


def probabilities(embedder: Embedder, heads: Heads, seen: Seen, places: Integers) -> list[Array]:
    """Every part's probabilities (places, classes), as if classes were equally frequent."""
    size = batch_of(embedder.config.input.size_vox)
    parts = []
    with torch.inference_mode():
        for first in range(0, len(places), size):
            given = torch.from_numpy(seen.given[places[first : first + size]]).to(embedder.device)
            parts.append([softmax(logits) for logits in heads(embedder.vectors(given))])
    return [np.concatenate(of) for of in zip(*parts, strict=True)]


def share_of_rate(step: int, steps: int) -> float:
    """Of the learning rate at a step, the first being 0: linear warm-up, then half a cosine to 0."""
    warmup = round(WARMUP * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def depth_of(name: str) -> int | None:
    """The layer of a parameter of an encoder, from the input, 0; None for what stands after the last one."""
    layer = LAYER.search(name)
    if layer is not None:
        return int(layer.group(1)) + 1
    return None if name.startswith("norm.") else 0


def _optimiser(encoder: nn.Module, heads: nn.Module, rates: Rates, weight_decay: float) -> torch.optim.AdamW:
    named = list(encoder.named_parameters())
    last = max((depth_of(name) or 0) for name, _ in named)
    groups = []
    for name, parameter in named:
        depth = depth_of(name)
        rate = rates.encoder * rates.layer_decay ** (0 if depth is None else last - depth)
        decayed = parameter.ndim > 1 and name not in TOKENS
        groups.append({"params": [parameter], "lr": rate, "weight_decay": weight_decay if decayed else 0.0})
    for parameter in heads.parameters():
        decay = weight_decay if parameter.ndim > 1 else 0.0
        groups.append({"params": [parameter], "lr": rates.heads, "weight_decay": decay})
    return torch.optim.AdamW(groups, foreach=True)


def _float32(values: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
