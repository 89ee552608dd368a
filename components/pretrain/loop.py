"""The training loop. Needs torch and the volume store; knows nothing of Ray (see :mod:`ray_driver`).

There is no random state to save: the volumes, crops and views of a step are a function of (seed, step, place in the
global batch). Which worker handles a place does not change what is drawn there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from components.params import UserError
from components.preprocess.store import StoredVolume
from components.pretrain.config import OptimiserConfig, PretrainConfig
from components.pretrain.dino import cosine_schedule
from components.pretrain.objectives import (
    Objective,
    Outcome,
    build_objective,
    build_views,
    effective_rank,
    spread,
)
from components.pretrain.views import Batch, Views

State = dict[str, Any]
HistoryRow = dict[str, float]
ORDER_STREAM, SAMPLE_STREAM = 0, 1  # independent random streams below one seed


@dataclass(frozen=True)
class World:
    """This process's place among the workers."""

    rank: int
    size: int
    device: torch.device


class Checkpoints(Protocol):
    """Where the run's state is kept between attempts."""

    def load(self) -> State | None:
        """The newest complete state, or None at the start of a run."""

    def save(self, state: State | None) -> None:
        """Keep a state. Every worker calls it at the same step; all but rank 0 pass None."""


def sample_order(seed: int, volumes: int, index: int) -> int:
    """The volume at place ``index`` of the endless sequence of shuffled epochs."""
    epoch, place = divmod(index, volumes)
    return int(np.random.default_rng([seed, ORDER_STREAM, epoch]).permutation(volumes)[place])


def sample_rng(seed: int, index: int) -> np.random.Generator:
    """The generator of everything random about sample ``index`` of the run."""
    return np.random.default_rng([seed, SAMPLE_STREAM, index])


def load_batch(config: PretrainConfig, views: Views, volumes: tuple[Path, ...], world: World, step: int) -> Batch:
    """This worker's share of the global batch of ``step``.

    Raises:
        UserError: a volume is missing or not readable; the message names it.
    """
    share = config.volumes_per_step // world.size
    first = step * config.volumes_per_step + world.rank * share
    samples = []
    for index in range(first, first + share):
        path = volumes[sample_order(config.seed, len(volumes), index)]
        try:
            samples.append(views.draw(StoredVolume(path), sample_rng(config.seed, index)))
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"volume {path}: cannot be read for training: {error}; run preprocess again") from error
    stacked: dict[str, npt.NDArray[np.generic]] = {k: np.stack([s[k] for s in samples]) for k in samples[0]}
    return {key: torch.from_numpy(value).to(world.device) for key, value in stacked.items()}


def learning_rate(config: OptimiserConfig, step: int, steps: int) -> float:
    """Linear warm-up over the first share of the steps, then half a cosine down to the final rate."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return cosine_schedule(config.learning_rate, config.final_learning_rate, (step - warmup) / max(1, steps - warmup))


def build_optimiser(objective: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW; vectors (norms, biases, tokens) are not decayed."""
    trained = [p for p in objective.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.squeeze().ndim > 1]
    vectors = [p for p in trained if p.squeeze().ndim <= 1]
    groups = [{"params": matrices, "decayed": True}, {"params": vectors, "decayed": False, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay[0])


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


def mean_over_workers(world: World, values: Tensor) -> Tensor:
    """The mean of a tensor over all workers."""
    values = values.detach().clone()
    if world.size > 1:
        dist.all_reduce(values)
        values /= world.size
    return values


def gather(world: World, rows_BE: Tensor) -> Tensor:
    """The rows of all workers, in order of rank."""
    if world.size == 1:
        return rows_BE
    parts = [torch.empty_like(rows_BE) for _ in range(world.size)]
    dist.all_gather(parts, rows_BE.contiguous())
    return torch.cat(parts)


class Trainer:
    """Model, optimiser and step of one worker."""

    def __init__(self, config: PretrainConfig, volumes: tuple[Path, ...], world: World) -> None:
        self.config, self.volumes, self.world = config, volumes, world
        self.views = build_views(config)
        self.objective: Objective = build_objective(config).to(world.device)
        if world.size > 1 and world.device.type == "cuda":  # torch has no synchronised batch norm for CPUs
            self.objective = nn.SyncBatchNorm.convert_sync_batchnorm(self.objective)  # type: ignore[no-untyped-call]
        self.optimiser = build_optimiser(self.objective, config.optimiser)
        # the model handed to DDP must be in its final place; its parameters stay those of self.objective
        self.model: nn.Module = DistributedDataParallel(self.objective) if world.size > 1 else self.objective
        self.step = 0
        self.history: list[HistoryRow] = []

    def state(self) -> State:
        """Everything that the rest of the run depends on."""
        return {
            "step": self.step,
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "history": self.history,
        }

    def restore(self, state: State) -> None:
        """Go on from ``state``."""
        self.objective.load_state_dict(state["objective"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.history = int(state["step"]), list(state["history"])

    def run_step(self) -> None:
        """One step: read, render, loss, gradients over all workers, update, teacher, history."""
        batch = self._batch()
        progress = self.step / self.config.steps
        rate = self._set_schedules(progress)
        self.objective.train()
        bf16 = self.config.precision == "bfloat16"
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=bf16):
            outcome: Outcome = self.model(self.views.render(batch))
        loss = float(mean_over_workers(self.world, outcome["loss"]))
        if not math.isfinite(loss):  # the mean is not finite on any worker if it is not on one
            raise UserError(f"step {self.step}: loss {loss} is not finite; lower optimiser.learning_rate")
        self.optimiser.zero_grad(set_to_none=True)
        outcome["loss"].backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.optimiser.clip_norm))
        if not math.isfinite(norm):
            raise UserError(f"step {self.step}: gradient norm {norm} is not finite; lower optimiser.learning_rate")
        self.optimiser.step()
        self.step += 1
        self.objective.after_step(self.step / self.config.steps)
        if self.step == 1 or self.step % self.config.log_every == 0 or self.step == self.config.steps:
            self._log(outcome, loss, rate, norm)

    def _batch(self) -> Batch:
        error, batch = None, {}
        try:
            batch = load_batch(self.config, self.views, self.volumes, self.world, self.step)
        except UserError as problem:
            error = problem
        agree(self.world, error)
        return batch

    def _set_schedules(self, progress: float) -> float:
        optimiser = self.config.optimiser
        rate = learning_rate(optimiser, self.step, self.config.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
            if group["decayed"]:
                group["weight_decay"] = cosine_schedule(*optimiser.weight_decay, progress)
        return rate

    def _log(self, outcome: Outcome, loss: float, rate: float, norm: float) -> None:
        embedding_BE = gather(self.world, outcome["embedding"].float())
        row = {"step": self.step, "loss": loss, "learning_rate": rate, "gradient_norm": norm}
        row |= {"embedding_spread": spread(embedding_BE), "effective_rank": effective_rank(embedding_BE)}
        extra = sorted(set(outcome) - {"loss", "embedding"})
        row |= {name: float(mean_over_workers(self.world, outcome[name])) for name in extra}
        self.history.append(row)


def train(
    config: PretrainConfig,
    volumes: tuple[Path, ...],
    world: World,
    checkpoints: Checkpoints,
    progress: Callable[[str], None],
) -> State:
    """Train from the newest checkpoint, or from the start, to the last step.

    Args:
        config: the whole block.
        volumes: the training volumes, in an order that is the same in every run.
        world: this worker.
        checkpoints: load and save; the last step is always saved.
        progress: receives one line now and then (rank 0 only), meant for a person.

    Returns:
        The final state (the same on every worker).

    Raises:
        UserError: no volumes, a volume that cannot be read, a loss that is not finite.
    """
    if not volumes:
        raise UserError("pretrain: no accepted series has the role 'pretrain'; nothing to train on")
    torch.set_num_threads(1)  # the order of additions, and so the last bit, must not depend on the machine's cores
    trainer = Trainer(config, volumes, world)
    state = checkpoints.load()
    if state is not None:
        trainer.restore(state)
        progress(f"resuming from the checkpoint at step {trainer.step} of {config.steps}")
    for line in _steps(trainer, checkpoints):
        progress(line)
    return trainer.state()


def _steps(trainer: Trainer, checkpoints: Checkpoints) -> Iterator[str]:
    """Run the remaining steps; yields a line for a person at every logged step."""
    config, first, started = trainer.config, trainer.step, time.monotonic()
    while trainer.step < config.steps:
        logged = len(trainer.history)
        trainer.run_step()
        if trainer.step % config.checkpoint_every == 0 or trainer.step == config.steps:
            checkpoints.save(trainer.state() if trainer.world.rank == 0 else None)
        if len(trainer.history) > logged:
            per_step = (time.monotonic() - started) / (trainer.step - first)
            left = per_step * (config.steps - trainer.step)
            yield (
                f"step {trainer.step}/{config.steps}  loss {trainer.history[-1]['loss']:.4f}  "
                f"{config.volumes_per_step / per_step:.1f} volumes/s  {left:.0f} s left"
            )
