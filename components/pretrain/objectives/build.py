"""What is minimised: an encoder with the heads of its objective. The choice is ``objective.kind`` in the parameters."""

from __future__ import annotations

import torch

from components.models.build import build_encoder
from components.models.vit import Vit
from components.pretrain.config import HeadObjectiveConfig, PretrainConfig
from components.pretrain.objectives.head import HeadObjective
from components.pretrain.objectives.two_view import TwoView

Objective = TwoView | HeadObjective


def build_objective(config: PretrainConfig) -> Objective:
    """The encoder (``.encoder``) and heads, initialised from ``config.seed`` alone. The teacher starts as a copy.

    Its ``forward`` takes rendered views and gives ``loss`` (with gradient), ``embedding`` (B, E), ``alignment`` and
    further monitors (scalars), all of this worker's share.
    """
    encoder = build_encoder(config.encoder, config.input, config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)
        if not isinstance(config.objective, HeadObjectiveConfig):
            return TwoView(encoder, config.objective)
        assert isinstance(encoder, Vit)  # the parameters were checked for it
        return HeadObjective(encoder, config.objective, channels=len(config.input.windows))
