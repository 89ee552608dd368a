"""Attentive probe: a few learnt queries attend to the tokens of a frozen encoder, and a linear classifier reads them.

The keys are the tokens themselves, standardised: a query in their space is a cross-attention whose key projection has
been multiplied out, and with few cases it is enough (the attentive probing of arXiv 2202.03026, without its other
matrices). Queries begin close to 0, that is at the mean of the tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from components.figures.arrays import Array, Integers
from components.models.embed import Embedder, batch_of
from components.tasks.asked import Asked, Float32Array, Loss, Seen, batches, softmax
from components.tasks.trained import AttentiveConfig

START = 0.02  # standard deviation of a query's numbers: enough to tell several apart
CHUNK = 16  # places read at once


class Attentive(nn.Module):
    """Queries and classifier of every part.

    Args:
        tokens: of the training places, (places, tokens, dim): they are standardised by their channels.
        counts: classes of each part.
        queries: of each part.
        generator: of the first values.
    """

    def __init__(
        self, tokens: Iterator[Float32Array], counts: Sequence[int], queries: int, generator: np.random.Generator
    ) -> None:
        super().__init__()
        mean, spread = _moments(tokens)
        self.register_buffer("mean", mean.float())
        self.register_buffer("spread", spread.float())
        start = generator.normal(scale=START, size=(len(counts), queries, len(mean)))
        self.queries = nn.Parameter(torch.from_numpy(start).float())
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(count, queries * len(mean))) for count in counts)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(count)) for count in counts)

    def forward(self, tokens_BTD: Tensor) -> list[Tensor]:
        """Every part's logits (B, classes)."""
        standard_BTD = (tokens_BTD - self.get_buffer("mean")) / self.get_buffer("spread")
        queries_QD = self.queries.flatten(0, 1)
        attention_BQT = (queries_QD @ standard_BTD.transpose(1, 2)).softmax(dim=2)
        pooled_BPE = (attention_BQT @ standard_BTD).view(len(tokens_BTD), len(self.queries), -1)
        return [
            pooled_BPE[:, part] @ weight.T + bias
            for part, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True))
        ]


@contextmanager
def tokens_of(embedder: Embedder, seen: Seen) -> Iterator[Float32Array]:
    """The last level of every place, (places, tokens, dim), in a temporary file while the context lasts."""
    size = batch_of(embedder.config.input.size_vox)
    with tempfile.TemporaryDirectory() as folder:
        tokens: Float32Array | None = None
        with torch.inference_mode():
            for first in range(0, len(seen.given), size):
                given = torch.from_numpy(seen.given[first : first + size]).to(embedder.device)
                found = embedder.encoder.levels(given)[-1].flatten(2).transpose(1, 2).float().cpu().numpy()
                if tokens is None:
                    path, shape = Path(folder) / "tokens.npy", (len(seen.given), *found.shape[1:])
                    tokens = np.lib.format.open_memmap(path, "w+", np.float32, shape)  # type: ignore[no-untyped-call]
                tokens[first : first + len(found)] = found
        assert tokens is not None
        yield tokens


def attentive(
    tokens: Float32Array,
    parts: Sequence[Asked],
    config: AttentiveConfig,
    generator: np.random.Generator,
    device: torch.device,
) -> Attentive:
    """Train queries and classifiers of all parts; none of them sees another's labels.

    Args:
        tokens: (places, tokens, dim) of every place.
        parts: their training cases.
        config: of batches and rates.
        generator: of first values and of the order of places.
        device: where it is trained.
    """
    loss = Loss(parts)
    read = (tokens[chunk] for chunk in np.array_split(loss.places, -(-len(loss.places) // CHUNK)))
    model = Attentive(read, [part.count for part in parts], config.queries, generator).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    for batch in batches(loss.places, config.batch, config.steps, generator):
        optimiser.zero_grad(set_to_none=True)
        loss(batch, model(torch.from_numpy(tokens[batch]).to(device))).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return model.requires_grad_(False).eval()


def probabilities(model: Attentive, tokens: Float32Array, places: Integers, device: torch.device) -> list[Array]:
    """Every part's probabilities (places, classes), as if classes were equally frequent."""
    parts = []
    with torch.inference_mode():
        for first in range(0, len(places), CHUNK):
            given = torch.from_numpy(tokens[places[first : first + CHUNK]]).to(device)
            parts.append([softmax(logits) for logits in model(given)])
    return [np.concatenate(of) for of in zip(*parts, strict=True)]


def _moments(tokens: Iterator[Float32Array]) -> tuple[Tensor, Tensor]:
    """Mean and spread (dim,) of the channels over places and tokens; 1 where nothing varies."""
    count, total, squares = 0, None, None
    for chunk in tokens:
        of = chunk.reshape(-1, chunk.shape[-1]).astype(np.float64)
        count += len(of)
        total = of.sum(axis=0) if total is None else total + of.sum(axis=0)
        squares = (of**2).sum(axis=0) if squares is None else squares + (of**2).sum(axis=0)
    assert total is not None
    assert squares is not None
    mean = total / count
    spread = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return torch.from_numpy(mean), torch.from_numpy(np.where(spread > 1e-6, spread, 1.0))
