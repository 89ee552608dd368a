"""Two workers with half of the rows each compute what one computes with all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from components.errors import UserError
from components.pretrain.objectives.dino import BatchStandardise, logit_sums, moved_centre
from components.pretrain.objectives.koleo import koleo_loss
from components.pretrain.objectives.ntxent import across_volume_ntxent
from components.pretrain.objectives.vicreg import vicreg_loss
from components.pretrain.workers import GlobalBatchNorm, World, agree, folds

ROWS = 8


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(ROWS, 2, 5, generator=generator) * 3 + 1, torch.randn(ROWS, 2, 5, generator=generator)


def normalised(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Loss, and the running statistics, of a batch norm with an affine part."""
    holder = nn.Sequential(nn.BatchNorm1d(5))
    with torch.no_grad():
        holder[0].weight.copy_(torch.linspace(0.5, 2, 5))
    GlobalBatchNorm.replace(holder)
    loss = (holder(x.flatten(0, 1)).square() * weight.flatten(0, 1)).mean()
    return loss, torch.cat([holder[0].running_mean, holder[0].running_var])


def folded(x: Tensor, weight: Tensor) -> Tensor:
    """The same of a map of 5 channels that are last in memory, and so taken several rows at a time."""
    maps, weights = (each.view(-1, 2, 2, 5).movedim(-1, 1) for each in (x.repeat(2, 1, 1), weight.repeat(2, 1, 1)))
    assert folds(maps) > 1
    holder = nn.Sequential(nn.BatchNorm2d(5))
    GlobalBatchNorm.replace(holder)
    return (nn.functional.relu(holder(maps), inplace=True).square() * weights).mean()


CASES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "batch_norm": lambda x, w: normalised(x, w)[0],
    "batch_norm, folded": folded,
    "running": lambda x, w: normalised(x, w)[1].sum() + 0 * x.sum(),
    "standardise": lambda x, w: (BatchStandardise()(x.flatten(1)).square() * w.flatten(1)).mean(),
    "ntxent": lambda x, w: across_volume_ntxent(x, 0.3),
    "vicreg": lambda x, w: vicreg_loss(0.1 * x, 25.0, 25.0, 1.0),
    "koleo": lambda x, w: koleo_loss(x[:, 0]),
    "centre": lambda x, w: moved_centre(torch.zeros(5), logit_sums(x[:, 0].detach()), 0.9).sum() + 0 * x.sum(),
}


def compute(x: Tensor, weight: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    results = {}
    for name, function in CASES.items():
        leaf = x.clone().requires_grad_()
        loss = function(leaf, weight)
        loss.backward()
        assert leaf.grad is not None
        results[name] = (loss.detach(), leaf.grad)
    return results


def one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    x, weight = (part.chunk(2)[rank] for part in data())
    message = ""
    try:
        agree(World(rank, 2, torch.device("cpu")), UserError("volume 7") if rank == 1 else None)
    except UserError as error:
        message = str(error)
    torch.save((compute(x, weight), message), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, tuple[Tensor, Tensor]], str]]:
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(one_of_two, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_one_worker(
    name: str, found: list[tuple[dict[str, tuple[Tensor, Tensor]], str]]
) -> None:
    loss, gradient = compute(*data())[name]
    losses, gradients = zip(*(part[0][name] for part in found), strict=True)
    assert torch.stack(losses).mean().item() == pytest.approx(loss.item(), rel=1e-5)
    assert torch.allclose(torch.cat(gradients) / 2, gradient, atol=1e-6), "DDP averages over the workers"


def test_an_error_of_one_worker_is_told_by_all(found: list[tuple[dict[str, tuple[Tensor, Tensor]], str]]) -> None:
    assert [message for _, message in found] == ["volume 7", "volume 7"]


def test_alone_it_is_torchs_batch_norm_under_the_same_names() -> None:
    plain, ours = nn.Sequential(nn.BatchNorm3d(3)), nn.Sequential(nn.BatchNorm3d(3))
    GlobalBatchNorm.replace(ours)
    x = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain(x), ours(x))
    assert {name: value.tolist() for name, value in plain.state_dict().items()} == {
        name: value.tolist() for name, value in ours.state_dict().items()
    }


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("channels", [1, 8, 24, 64])
def test_alone_and_channels_last_it_is_torchs_in_value_gradient_and_statistics(
    channels: int, dtype: torch.dtype, atol: float
) -> None:
    generator = torch.Generator().manual_seed(channels)
    x, weight = (torch.randn(3, channels, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    affine = torch.linspace(0.5, 2, channels, dtype=torch.float64)
    results = []
    for ours in (False, True):
        holder = nn.Sequential(nn.BatchNorm3d(channels)).to(torch.promote_types(dtype, torch.float32))
        with torch.no_grad():
            holder[0].weight.copy_(affine)
            holder[0].bias.copy_(affine - 1)
        if ours:
            GlobalBatchNorm.replace(holder)
        leaf = (3 * x + 1).to(dtype).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
        y = holder(leaf)
        assert y.stride() == leaf.stride()
        assert y.dtype == dtype
        y.backward(weight.to(dtype).contiguous())
        found = [y, leaf.grad, *(value for value in holder.state_dict().values())]
        results.append([each.double() for each in [*found, holder[0].weight.grad, holder[0].bias.grad]])
    for plain, own in zip(*results, strict=True):
        assert torch.allclose(plain, own, atol=atol, rtol=atol)
