"""How the embedding fares during training, and when a run is worth nothing: not finite, or collapsed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from components.errors import UserError
from components.pretrain.config import PretrainConfig
from components.pretrain.workers import gather, mean_over_workers

HistoryRow = dict[str, float]


def monitored(scalars: Mapping[str, Tensor], embedding_BE: Tensor) -> HistoryRow:
    """What a row of the history says of the model: how the embedding lies, and an objective's own ``scalars``.

    Args:
        scalars: of this worker's share of the step.
        embedding_BE: of the same. All workers call it at the same step.
    """
    embedding_BE = gather(embedding_BE.float())
    row: HistoryRow = {"embedding_spread": spread(embedding_BE), "effective_rank": effective_rank(embedding_BE)}
    row["uniformity"] = uniformity(embedding_BE)
    return row | {name: float(mean_over_workers(scalars[name])) for name in sorted(scalars)}


def stop_if_not_finite(step: int, losses: Iterable[Tensor], norm: Tensor) -> None:
    """Raise UserError where a step was worth nothing; the state, which it has spoilt, is not kept."""
    for what, value in (*(("loss", loss) for loss in losses), ("gradient norm", norm)):
        if not math.isfinite(value):
            raise UserError(f"step {step}: {what} {float(value)} is not finite; lower optimiser.learning_rate")


def stop_if_collapsed(history: Sequence[HistoryRow], config: PretrainConfig) -> None:
    """Raise UserError where the embedding has been nearly one vector for all since a while."""
    collapse, warm = config.collapse, config.optimiser.warmup * config.steps
    last = history[-collapse.patience :]
    if len(last) == collapse.patience and all(
        row["step"] > warm and row["embedding_spread"] < collapse.min_spread for row in last
    ):
        raise UserError(
            f"step {last[-1]['step']:.0f}: training has collapsed: embedding_spread "
            f"{last[-1]['embedding_spread']:.3g}, below collapse.min_spread {collapse.min_spread} in "
            f"{collapse.patience} logged steps in a row; lower optimiser.learning_rate, or change the objective's "
            "temperatures or weights"
        )


def require_alive(row: HistoryRow, config: PretrainConfig) -> None:
    """Raise UserError where weights that are to be released as they are make nearly one vector of all."""
    if row["embedding_spread"] < config.collapse.min_spread or not math.isfinite(row["loss"]):
        raise UserError(
            f"start: its weights do not tell volumes apart: embedding_spread {row['embedding_spread']:.3g}, below "
            f"collapse.min_spread {config.collapse.min_spread}, loss {row['loss']:.3g}; is pretrain.input what they "
            "were trained with?"
        )


def spread(embedding_BE: Tensor) -> float:
    """Mean standard deviation of unit-length embeddings times sqrt(E): 1 when spread evenly, 0 when collapsed."""
    unit_BE = functional.normalize(embedding_BE.double(), dim=-1)
    return float(unit_BE.std(dim=0, correction=0).mean() * unit_BE.shape[1] ** 0.5)


def effective_rank(embedding_BE: Tensor) -> float:
    """Exponential of the entropy of the centred embeddings' singular values (Roy and Vetterli 2007)."""
    values = torch.linalg.svdvals(embedding_BE.double() - embedding_BE.double().mean(dim=0))
    shares = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum()))


def alignment(first_BE: Tensor, second_BE: Tensor) -> Tensor:
    """Mean squared distance between unit-length embeddings of two views of the same thing: 0 where they agree, 2 where
    they know nothing of each other (Wang and Isola, arXiv 2005.10242)."""
    apart_BE = functional.normalize(first_BE.float(), dim=-1) - functional.normalize(second_BE.float(), dim=-1)
    return apart_BE.square().sum(dim=-1).mean()


def uniformity(embedding_BE: Tensor) -> float:
    """Logarithm of the mean Gaussian potential exp(-2 d^2) between unit-length embeddings: 0 when collapsed, towards -4
    when spread over the sphere (Wang and Isola, arXiv 2005.10242)."""
    unit_BE = functional.normalize(embedding_BE.double(), dim=-1)
    return float(torch.pdist(unit_BE).square().mul(-2).exp().mean().log()) if len(unit_BE) > 1 else 0.0
