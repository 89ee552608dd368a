"""What the workers of a run do together: agree on an error, average, gather with gradient, normalise over all rows.

Each function is exact for one worker, where it does nothing, and needs equal shares of rows on each of several.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from components.params import UserError


@dataclass(frozen=True)
class World:
    """This process's place among the workers."""

    rank: int
    size: int
    device: torch.device


def together() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def agree(world: World, error: UserError | None) -> None:
    """Raise on every worker if any worker has an error, so that none waits for another for ever."""
    if world.size == 1:
        if error is not None:
            raise error
        return
    flag = torch.tensor([float(error is not None)], device=world.device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    if flag.item() == 0:
        return
    messages: list[str | None] = [None] * world.size
    dist.all_gather_object(messages, str(error) if error is not None else None)
    raise UserError(next(message for message in messages if message is not None))


def mean_over_workers(values: Tensor) -> Tensor:
    """The mean of a tensor over all workers, without gradient."""
    values = values.detach().clone()
    if together():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def gather(rows_BE: Tensor) -> Tensor:
    """The rows of all workers in order of rank, (workers * B, E). The gradient of every worker's loss comes back."""
    if not together():
        return rows_BE
    before, after = dist.get_rank(), dist.get_world_size() - 1 - dist.get_rank()
    placed = functional.pad(rows_BE, (0, 0, before * len(rows_BE), after * len(rows_BE)))
    return sum_over_workers(placed)  # zeros from everybody else


def sum_over_workers(values: Tensor) -> Tensor:
    """The sum of a tensor over all workers. The gradient of every worker's loss comes back."""
    total: Tensor = _Sum.apply(values) if together() else values  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def shard(model: nn.Module, blocks: tuple[type[nn.Module], ...], device: torch.device) -> None:
    """Keep a share of the parameters only on each worker, in place; ``blocks`` are put together one at a time, where
    they compute (FSDP, arXiv 2304.11277)."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # those in channels_last cannot be cut up
    for module in model.modules():
        if isinstance(module, blocks):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tree: Any) -> Any:
    """``tree`` with plain tensors on the CPU in the place of shares: a device may not have room for all of them. Every
    worker calls it at the same step."""
    return tree_map(lambda value: value.full_tensor().cpu() if isinstance(value, DTensor) else value, tree)


def share_of(value: Tensor, like: Tensor) -> Tensor:
    """This worker's share of a tensor that is whole on every worker, as ``like`` is shared; of none the whole."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    shared: Tensor = distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return shared


class GlobalBatchNorm(_BatchNorm):
    """Batch norm over the rows of all workers, on any device: torch's own synchronised one needs CUDA.

    Without it two workers train another model than one does with the same global batch.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes from two on."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and together()):
            normalised: Tensor = super().forward(input)
            return normalised
        y, mean_C, var_C, count = _Normalise.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, self.eps
        )
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean_C, share)
                self.running_var.lerp_(var_C * (count / (count - 1).clamp(min=1)), share)
        return y  # type: ignore[no-any-return]

    @classmethod
    def replace(cls, module: nn.Module) -> None:
        """Put one in the place of each batch norm below ``module``, with the same tensors under the same names."""
        for name, child in module.named_children():
            if not isinstance(child, _BatchNorm):
                cls.replace(child)
                continue
            new = cls(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            new.weight, new.bias = child.weight, child.bias
            new.running_mean, new.running_var = child.running_mean, child.running_var
            new.num_batches_tracked = child.num_batches_tracked
            setattr(module, name, new)


class _Normalise(torch.autograd.Function):
    """The sums that torch's SyncBatchNorm exchanges, with plain tensor operations."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Rows in bfloat16 have statistics in float32; torch gives them in the type of running ones.
        precise = torch.promote_types(x.dtype, torch.float32)
        nowhere_2C = torch.zeros(2, x.shape[1], dtype=precise, device=x.device)
        mean_C, var_C = torch.ops.aten.batch_norm_update_stats(x, nowhere_2C[0], nowhere_2C[1], 0.0)
        count = torch.tensor([x.numel() / x.shape[1]], dtype=precise, device=x.device)
        mine = torch.cat([mean_C, var_C, count])
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine)
        parts_WX = torch.stack(parts).double()
        (means_WC, vars_WC), counts_W1 = parts_WX[:, :-1].chunk(2, dim=1), parts_WX[:, -1:]
        total = counts_W1.sum()
        whole_C = (means_WC * counts_W1).sum(dim=0) / total
        spread_C = ((vars_WC + (means_WC - whole_C) ** 2) * counts_W1).sum(dim=0) / total
        mean_C, var_C, count = whole_C.to(precise), spread_C.to(precise), total.to(precise)
        y = functional.batch_norm(x, mean_C, var_C, weight_C, bias_C, training=False, eps=eps)
        ctx.eps = eps
        ctx.save_for_backward(x, weight_C, mean_C, var_C, count)
        ctx.mark_non_differentiable(mean_C, var_C, count)
        return y, mean_C, var_C, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight_C, mean_C, var_C, count = ctx.saved_tensors
        factor_C = torch.ones_like(mean_C) if weight_C is None else weight_C
        # As if mean and variance were constants: torch's own, in one pass over the rows.
        dx, weight_gradient, bias_gradient = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, factor_C, mean_C, var_C, None, None, False, ctx.eps, [True, True, True]
        )
        sums_2C = torch.stack([bias_gradient, weight_gradient])
        dist.all_reduce(sums_2C)
        shift_C, slope_C = sums_2C / count
        scale_C = torch.rsqrt(var_C + ctx.eps)
        # What their own dependence on the rows adds: (shift + slope * normalised x) * scale * factor.
        slope_C = slope_C * scale_C * scale_C * factor_C
        shift_C = shift_C * scale_C * factor_C - slope_C * mean_C
        wide = (1, -1, *[1] * (x.ndim - 2))
        dx.sub_(shift_C.to(dx).view(wide)).addcmul_(x, slope_C.to(dx).view(wide), value=-1)
        return (dx, None, None, None) if weight_C is None else (dx, weight_gradient, bias_gradient, None)
