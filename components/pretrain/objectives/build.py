"""What is minimised: an encoder with the heads of its objective. The choice is ``objective.kind`` in the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from components.models.build import build_encoder
from components.models.vit import Vit
from components.models.weights import ENCODER, mismatches, parted, put, read_weights
from components.pretrain.config import HeadObjectiveConfig, PretrainConfig
from components.pretrain.objectives.head import HeadObjective
from components.pretrain.objectives.two_view import TwoView

Objective = TwoView | HeadObjective


def build_objective(config: PretrainConfig, start: Path | None = None) -> Objective:
    """The encoder (``.encoder``) and heads, initialised from ``config.seed`` alone. The teacher starts as a copy.

    Its ``forward`` takes rendered views and gives ``loss`` (with gradient), ``embedding`` (B, E), ``alignment`` and
    further monitors (scalars), all of this worker's share.

    Args:
        config: the whole block.
        start: weights that the encoder begins with, and the heads where they are with it.

    Raises:
        UserError: weights that do not fit.
    """
    tensors = {} if start is None else read_weights(start)
    own, rest = parted(tensors)
    objective = _fresh(config, own)
    if not fresh_heads(objective, rest):
        objective.load_state_dict(rest, strict=False)
    return objective


def fresh_heads(objective: Objective, rest: Mapping[str, Tensor]) -> str:
    """Why heads, and a teacher, begin anew although ``rest`` was found beside the encoder's weights; '' where they go
    on from it: all of it has their names and shapes."""
    if not rest:
        return "the weights are an encoder's alone"
    heads = {name: value for name, value in objective.state_dict().items() if not name.startswith(ENCODER)}
    return mismatches(rest, heads)


def _fresh(config: PretrainConfig, weights: Mapping[str, Tensor]) -> Objective:
    encoder = build_encoder(config.encoder, config.input, config.seed)
    if weights:
        put(encoder, weights, f"start: the weights do not fit encoder {config.encoder.kind!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)
        if not isinstance(config.objective, HeadObjectiveConfig):
            return TwoView(encoder, config.objective)
        assert isinstance(encoder, Vit)  # the parameters were checked for it
        return HeadObjective(encoder, config.objective, channels=len(config.input.windows))
