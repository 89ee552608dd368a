"""AdamW: which parameters are decayed, what rate and decay a step has, and how its memory must be laid out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from components.models.vit import TOKENS
from components.pretrain.config import OptimiserConfig
from components.pretrain.workers import share_of


def cosine_schedule(start: float, end: float, progress: float) -> float:
    """From ``start`` at progress 0 to ``end`` at progress 1, along half a cosine."""
    # Ours, not torch's schedulers: those move the rate alone, decay and the teacher's momentum need this all the same;
    # and LinearLR with CosineAnnealingLR goes from one rate to the next, which ends in other last bits.
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def learning_rate(config: OptimiserConfig, step: int, steps: int) -> float:
    """Linear warm-up over the first share of the steps, then half a cosine down to the final rate."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return cosine_schedule(config.learning_rate, config.final_learning_rate, (step - warmup) / max(1, steps - warmup))


def set_schedules(optimiser: Optimizer, config: OptimiserConfig, step: int, steps: int) -> float:
    """Give every group its rate and decay for ``step``, the first being 0; returns the rate."""
    rate = learning_rate(config, step, steps)
    for group in optimiser.param_groups:
        group["lr"] = rate
        if group["decayed"]:
            group["weight_decay"] = cosine_schedule(*config.weight_decay, step / steps)
    return rate


def build_optimiser(objective: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW; vectors (norms, biases) and tokens, however many, are not decayed."""
    trained = [(name.rpartition(".")[2], p) for name, p in objective.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if _axes(p) > 1 and name not in TOKENS]
    vectors = [p for name, p in trained if _axes(p) <= 1 or name in TOKENS]
    groups = [{"params": matrices, "decayed": True}, {"params": vectors, "decayed": False, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay[0],
        fused=True,  # one pass over the memory, of which all must be laid out alike: see _laid_out
    )
    optimiser.register_step_pre_hook(_lay_out_gradients)
    return optimiser


def load_optimiser(optimiser: Optimizer, state: dict[str, Any]) -> None:
    """Take over a ``state`` whose moments are whole: of each, this worker's share."""
    parameters = _parameters(optimiser)
    moments = {
        number: {
            name: _laid_out(share_of(value, parameters[number]), parameters[number]) for name, value in kept.items()
        }
        for number, kept in state["state"].items()
    }
    optimiser.load_state_dict(state | {"state": moments})


def _lay_out_gradients(optimiser: Optimizer, *_: Any) -> None:
    for parameter in _parameters(optimiser):
        if parameter.grad is not None:
            parameter.grad = _laid_out(parameter.grad, parameter)


def _laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """A gradient or moment in the memory order of its parameter: on a CPU, torch 2.13's fused AdamW takes this for
    granted, and would move other weights by it."""
    if value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter).copy_(value)


def _parameters(optimiser: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _axes(parameter: Tensor) -> int:
    return sum(length > 1 for length in parameter.shape)
