"""What the workers of a run do together: agree on an error, average, gather with gradient, normalise over all rows,
train one model.

For one worker each does what the plain operation does. Several need equal shares of rows.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from components import arithmetic
from components.errors import UserError
from components.models.build import is_block

WIDE = 64  # channels, of which a CPU's kernels make good use


@dataclass(frozen=True)
class World:
    """This process's place among the workers."""

    rank: int
    size: int
    device: torch.device


def on_gpus(device: str, wanted: int, found: int) -> bool:
    """Whether a run with ``pretrain.device`` trains on GPUs, of which it wants one per worker.

    Raises:
        UserError: ``cuda`` is asked for and there are too few.
    """
    if device == "cuda" and found < wanted:
        raise UserError(
            f"pretrain.device 'cuda': {found} GPUs found, {wanted} wanted, one for each worker; lower "
            "pretrain.workers, or allow device auto or cpu"
        )
    if device == "auto" and arithmetic.mode() == arithmetic.PORTABLE:
        return False  # a GPU keeps no promise of equal bytes
    return device != "cpu" and found >= wanted


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


def over_workers(model: nn.Module, world: World, sharded: bool) -> nn.Module:
    """``model``, whose parameters stay where they are, as all workers train it together: what a step has to call.

    Args:
        model: on its device, with nothing in it to be replaced or wrapped later.
        world: this worker.
        sharded: keep a share of the parameters on each worker, instead of all on all.
    """
    if world.size == 1:
        return model
    if not sharded:
        return DistributedDataParallel(model)
    _shard(model, world.device)
    return model


def _shard(model: nn.Module, device: torch.device) -> None:
    """Keep a share of the parameters only on each worker, in place; blocks are put together one at a time, where they
    compute (FSDP, arXiv 2304.11277)."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # those in channels_last cannot be cut up
    for module in model.modules():
        if is_block(module):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def exchanging(model: nn.Module, gradients: bool) -> AbstractContextManager[None]:
    """Where :func:`over_workers`' model runs forward and backward; whether ``gradients`` are exchanged there."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(gradients)
    if isinstance(model, DistributedDataParallel) and not gradients:
        alone: AbstractContextManager[None] = model.no_sync()
        return alone
    return nullcontext()


def whole(tree: Any, kept: bool = True) -> Any:
    """``tree`` with plain tensors on the CPU in the place of shares: a device may not have room for all of them. Every
    worker calls it at the same step; where they are not to be ``kept``, empty tensors stand in their place."""

    def plain(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        full = value.full_tensor()  # of all workers together, also for those that do not keep it
        return full.cpu() if kept else full.new_empty(0, device="cpu")

    return tree_map(plain, tree)


def share_of(value: Tensor, like: Tensor) -> Tensor:
    """This worker's share of a tensor that is whole on every worker, as ``like`` is shared; of none the whole."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    shared: Tensor = distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return shared


def normalise_together(model: nn.Module, world: World, compiled: bool) -> None:
    """Make the batch norms of ``model`` take their statistics over all workers, in place."""
    if world.device.type == "cuda":
        if world.size > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    elif world.size > 1 or not compiled:  # torch.compile makes one worker's plain ones faster
        GlobalBatchNorm.replace(model)


class GlobalBatchNorm(_BatchNorm):
    """Batch norm over the rows of all workers, on any device: torch's own synchronised one needs CUDA.

    Without it two workers train another model than one does with the same global batch. On a CPU it is for one worker
    too, where maps have few channels, last in memory: torch's takes four times as long for 8 channels as for 64.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes from two on."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not (together() or folds(input) > 1):
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


def folds(x: Tensor) -> int:
    """How many rows of ``x`` (any axes, channels second) a CPU takes together as one of 64 channels at most; 1 for a
    GPU, and for channels that are not last in memory."""
    if x.device.type != "cpu" or not x.movedim(1, -1).is_contiguous():
        return 1
    return math.gcd(x.numel() // x.shape[1], max(1, WIDE // x.shape[1]))


def _as_rows(x: Tensor, fold: int) -> Tensor:
    return x if fold == 1 else x.movedim(1, -1).reshape(-1, fold * x.shape[1])


class _Normalise(torch.autograd.Function):
    """The sums that torch's SyncBatchNorm exchanges, with plain tensor operations.

    Statistics of parts of the rows (F folds on each of W workers, where channels stand F times side by side) become
    those of all rows.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        fold, channels = folds(x), x.shape[1]
        rows = _as_rows(x, fold)
        # Rows in bfloat16 have statistics in float32; torch gives them in the type of running ones.
        precise = torch.promote_types(x.dtype, torch.float32)
        nowhere = torch.zeros(2, fold * channels, dtype=precise, device=x.device)
        mean, var = torch.ops.aten.batch_norm_update_stats(rows, nowhere[0], nowhere[1], 0.0)
        count = torch.tensor([rows.numel() / rows.shape[1]], dtype=precise, device=x.device)
        mine = torch.cat([mean, var, count])
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())] if together() else [mine]
        if together():
            dist.all_gather(parts, mine)
        parts_WX = torch.stack(parts).double()
        means_WFC, vars_WFC = parts_WX[:, :-1].view(-1, 2, fold, channels).unbind(dim=1)
        counts_W11 = parts_WX[:, -1].view(-1, 1, 1)
        total = counts_W11.sum() * fold
        whole_C = (means_WFC * counts_W11).sum(dim=(0, 1)) / total
        spread_C = ((vars_WFC + (means_WFC - whole_C) ** 2) * counts_W11).sum(dim=(0, 1)) / total
        mean_C, var_C, count = whole_C.to(precise), spread_C.to(precise), total.to(precise)
        weight, bias = (None if affine_C is None else affine_C.repeat(fold) for affine_C in (weight_C, bias_C))
        y, unused = torch.empty_like(x), x.new_empty(0, dtype=precise)
        torch.ops.aten.native_batch_norm.out(
            rows, weight, bias, mean_C.repeat(fold), var_C.repeat(fold), False, 0.0, eps,
            out=_as_rows(y, fold), save_mean=unused, save_invstd=unused.clone(),
        )  # fmt: skip
        ctx.eps, ctx.fold = eps, fold
        ctx.save_for_backward(x, weight_C, mean_C, var_C, count)
        ctx.mark_non_differentiable(mean_C, var_C, count)
        return y, mean_C, var_C, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight_C, mean_C, var_C, count = ctx.saved_tensors
        fold, rows = ctx.fold, _as_rows(x, ctx.fold)
        factor_C = torch.ones_like(mean_C) if weight_C is None else weight_C
        mean, var, factor = (each_C.repeat(fold) for each_C in (mean_C, var_C, factor_C))
        # As if mean and variance were constants: torch's own, in one pass over the rows.
        dx, *sums = torch.ops.aten.native_batch_norm_backward(
            _as_rows(gradients[0], fold), rows, factor, mean, var, None, None, False, ctx.eps, [True] * 3
        )
        weight_gradient, bias_gradient = (total.view(fold, -1).sum(dim=0) for total in sums)
        sums_2C = torch.stack([bias_gradient, weight_gradient])
        if together():
            dist.all_reduce(sums_2C)
        # What their own dependence on the rows adds: (shift + slope * normalised x) * scale * factor.
        shift, slope = (sums_2C / count * torch.rsqrt(var_C + ctx.eps) * factor_C).repeat(1, fold)
        dx.sub_(functional.batch_norm(rows, mean, var, slope, shift, False, eps=ctx.eps))
        if fold > 1:
            dx = dx.view(x.movedim(1, -1).shape).movedim(-1, 1)
        return (dx, None, None, None) if weight_C is None else (dx, weight_gradient, bias_gradient, None)
