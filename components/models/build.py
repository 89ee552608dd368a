"""Encoders by configuration. Both kinds have ``embedding_dim``, ``forward`` (pooled), ``feature_map``, ``levels`` and
their ``widths``.

MONAI, which takes seconds to import, is where a SegRes encoder is built, and nowhere else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, Union

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from components.models.config import InputConfig, SegResConfig, VitConfig
from components.models.vit import Block, Vit

if TYPE_CHECKING:
    from components.models.segres import SegRes

Encoder: TypeAlias = Union["SegRes", Vit]
SEGRES_BLOCKS = "monai.networks.nets.segresnet_ds"


def build_encoder(config: SegResConfig | VitConfig, view: InputConfig, seed: int) -> Encoder:
    """A freshly initialised encoder; its weights are a function of ``seed`` alone, the caller's RNG is left as it was.

    Args:
        config: which encoder and its sizes.
        view: the input: one channel per window, the box's size.
        seed: of the initial weights.

    Returns:
        A module with ``forward(x_BCDHW) -> (B, embedding_dim)``, ``feature_map(x_BCDHW) -> (B, C, d, h, w)``,
        ``levels(x_BCDHW)`` (feature maps, of which that is the last) and ``embedding_dim``; x is float32 in [0, 1], see
        :func:`components.models.intensity.apply_windows`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(config, SegResConfig):
            from components.models.segres import SegRes

            encoder: Encoder = SegRes(config, channels=len(view.windows))
            return encoder.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload, no-any-return]
        return Vit(config, channels=len(view.windows), size=view.size_vox)


def parameter_count(module: torch.nn.Module) -> int:
    """Parameters of a module, trained or not."""
    return sum(parameter.numel() for parameter in module.parameters())


KINDS_OF_BLOCKS = 64  # by sizes of weights and input, with gradient or without; torch gives up after 8


def is_block(module: nn.Module) -> bool:
    """Whether a module is what is compiled, computed again and shared out at a time."""
    monai = sys.modules.get(SEGRES_BLOCKS)  # where it is not loaded, there is none of its blocks
    return isinstance(module, Block if monai is None else (Block, monai.SegResBlock))


def compile_blocks(model: nn.Module) -> None:
    """From now on run each block as torch.compile makes it at its first step; blocks that are alike are made once."""
    torch._dynamo.config.recompile_limit = KINDS_OF_BLOCKS
    for block in model.modules():
        if is_block(block):
            block.forward = torch.compile(block.forward, dynamic=False)  # type: ignore[method-assign]


def checkpoint_activations(encoder: Encoder) -> None:
    """From now on keep each block's input only, and run the block again in the backward pass (arXiv 1604.06174): the
    same gradients for less memory and a forward pass more."""
    for block in encoder.modules():
        if is_block(block):
            again = partial(_first_and_again, block)
            block.forward = partial(  # type: ignore[method-assign]
                checkpoint, block.forward, use_reentrant=False, context_fn=again
            )


def _first_and_again(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _uncounted(block)


@contextmanager
def _uncounted(block: nn.Module) -> Iterator[None]:
    """Batch statistics that were seen before must not move the running ones again."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked.clone() for norm in norms if norm.num_batches_tracked is not None]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield  # torch leaves it by an exception, once it has what it needs
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
        for counter, count in zip(counters, counts, strict=True):
            counter.copy_(count)
