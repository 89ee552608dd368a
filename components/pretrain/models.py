"""Encoders by configuration. Both kinds have ``embedding_dim``, ``forward`` (pooled) and ``feature_map``."""

from __future__ import annotations

import torch

from components.pretrain.config import InputConfig, SegResConfig, VitConfig
from components.pretrain.segres import SegRes
from components.pretrain.vit import Vit

Encoder = SegRes | Vit


def build_encoder(config: SegResConfig | VitConfig, view: InputConfig, seed: int) -> Encoder:
    """A freshly initialised encoder; its weights are a function of ``seed`` alone, the caller's RNG is left as it was.

    Args:
        config: which encoder and its sizes.
        view: the input: one channel per window, the box's size.
        seed: of the initial weights.

    Returns:
        A module with ``forward(x_BCDHW) -> (B, embedding_dim)``, ``feature_map(x_BCDHW) -> (B, C, d, h, w)`` and
        ``embedding_dim``; x is float32 in [0, 1], see :func:`components.pretrain.intensity.apply_windows`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(config, SegResConfig):
            encoder: Encoder = SegRes(config, channels=len(view.windows))
            return encoder.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload, no-any-return]
        return Vit(config, channels=len(view.windows), size=view.size_vox)


def parameter_count(module: torch.nn.Module) -> int:
    """Parameters of a module, trained or not."""
    return sum(parameter.numel() for parameter in module.parameters())
