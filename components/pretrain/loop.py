"""The training loop. Needs torch and the volume store; knows nothing of Ray (see :mod:`ray_driver`)."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from components.errors import UserError
from components.models.build import BLOCKS, checkpoint_activations, compile_blocks
from components.models.vit import TOKENS
from components.pretrain.config import OptimiserConfig, PretrainConfig
from components.pretrain.loading import batches
from components.pretrain.monitors import effective_rank, spread, uniformity
from components.pretrain.objectives.build import build_objective
from components.pretrain.objectives.dino import cosine_schedule
from components.pretrain.views import Batch, build_views
from components.pretrain.workers import (
    GlobalBatchNorm,
    World,
    agree,
    gather,
    mean_over_workers,
    shard,
    share_of,
    sum_over_workers,
    whole,
)

TRIM_THRESHOLD, MMAP_THRESHOLD = 2**31 - 1, 2**30  # bytes that glibc keeps, and takes from what it has kept
State = dict[str, Any]
HistoryRow = dict[str, float]


class Checkpoints(Protocol):
    """Where the run's state is kept between attempts."""

    def load(self) -> State | None:
        """The newest complete state, or None at the start of a run."""

    def save(self, state: State | None) -> None:
        """Keep a state. Every worker calls it at the same step; all but rank 0 pass None. It may be written while
        training goes on."""

    def keep(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Keep the encoder of a step to the run's end, beside the checkpoints; rank 0 calls it. Raises UserError."""

    def settle(self, wait: bool) -> None:
        """Make what has been written since count, or say why it could not be; with ``wait`` all that was saved."""


@dataclass(frozen=True)
class Incoming:
    """A batch on its way: what the model will see, or why it cannot be read; numbers of volumes that were skipped."""

    rendered: Batch
    mistake: str = ""
    skipped: Tensor | None = None


def learning_rate(config: OptimiserConfig, step: int, steps: int) -> float:
    """Linear warm-up over the first share of the steps, then half a cosine down to the final rate."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return cosine_schedule(config.learning_rate, config.final_learning_rate, (step - warmup) / max(1, steps - warmup))


def build_optimiser(objective: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW; vectors (norms, biases) and tokens, however many, are not decayed."""
    trained = [(name.rpartition(".")[2], p) for name, p in objective.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if _axes(p) > 1 and name not in TOKENS]
    vectors = [p for name, p in trained if _axes(p) <= 1 or name in TOKENS]
    groups = [{"params": matrices, "decayed": True}, {"params": vectors, "decayed": False, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay[0],
        fused=True,  # one pass over the memory, of which all must be laid out alike: see laid_out
    )


def laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """A gradient or moment in the memory order of its parameter: on a CPU, torch 2.13's fused AdamW takes this for
    granted, and would move other weights by it."""
    if value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter).copy_(value)


def _axes(parameter: Tensor) -> int:
    return sum(length > 1 for length in parameter.shape)


class Trainer:
    """Model, optimiser and step of one worker."""

    def __init__(self, config: PretrainConfig, volumes: tuple[Path, ...], world: World) -> None:
        self.config, self.volumes, self.world = config, volumes, world
        self.views = build_views(config, world.device.type)
        self.objective = build_objective(config).to(world.device)
        if world.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # all steps have the same sizes
            if world.size > 1:
                nn.SyncBatchNorm.convert_sync_batchnorm(self.objective)  # type: ignore[no-untyped-call]
        elif world.size > 1 or not config.compile:  # torch.compile makes one worker's plain ones faster
            GlobalBatchNorm.replace(self.objective)
        if config.compile:
            compile_blocks(self.objective)
        if config.activation_checkpointing:
            checkpoint_activations(self.objective.encoder)
        # the model handed to DDP must be in its final place; its parameters stay those of self.objective
        self.model: nn.Module = self.objective
        if config.sharded and world.size > 1:
            shard(self.objective, BLOCKS, world.device)
        elif world.size > 1:
            self.model = DistributedDataParallel(self.objective)
        self.optimiser = build_optimiser(self.objective, config.optimiser)
        self.step = 0
        self.history: list[HistoryRow] = []
        self.waited = 0.0  # seconds without a batch
        self.skipped = torch.zeros(len(volumes), dtype=torch.int64)  # samples lost with each volume, on all workers
        self._incoming: Iterator[Batch | str] | None = None
        self._ahead: Incoming | None = None  # on a GPU: what the next part sees, copied and rendered beside the step
        self._beside: torch.cuda.Stream | None = None
        if world.device.type == "cuda":
            self._beside = torch.cuda.Stream(world.device)  # type: ignore[no-untyped-call]

    def state(self) -> State:
        """Everything that the rest of the run depends on; all workers call it at the same step. Where parameters are
        shared out, only rank 0 gets them whole: the others have no use for them, and perhaps no room."""
        state: State = {
            "step": self.step,
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "history": self.history,
            "skipped": self.skipped,
        }
        together: State = whole(state, kept=self.world.rank == 0)
        return together

    def restore(self, state: State) -> None:
        """Go on from ``state``."""
        own = self.objective.state_dict()
        self.objective.load_state_dict({name: share_of(value, own[name]) for name, value in state["objective"].items()})
        parameters = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]

        def placed(value: Tensor, parameter: Tensor) -> Tensor:
            return laid_out(share_of(value, parameter), parameter)

        moments = {
            number: {name: placed(value, parameters[number]) for name, value in kept.items()}
            for number, kept in state["optimiser"]["state"].items()
        }
        self.optimiser.load_state_dict(state["optimiser"] | {"state": moments})
        self.step, self.history, self.skipped = int(state["step"]), list(state["history"]), state["skipped"]

    def run_step(self) -> None:
        """One step: read, render, loss, gradients over all workers, update, teacher, history.

        A GPU is told all of a step, and to render the next one, before anything is asked of it.
        """
        rate = self._set_schedules(self.step / self.config.steps)
        self.objective.train()
        self.optimiser.zero_grad(set_to_none=True)
        parts = [self._part(last=n == self.config.accumulate - 1) for n in range(self.config.accumulate)]
        scalars = [key for key in parts[0] if key != "embedding"]
        outcome = {key: torch.stack([part[key] for part in parts]).mean(dim=0) for key in scalars}
        limit = self.config.optimiser.clip_norm or math.inf
        norm = whole(nn.utils.clip_grad_norm_(self.objective.parameters(), limit))
        for parameter in self.objective.parameters():
            if parameter.grad is not None:
                parameter.grad = laid_out(parameter.grad, parameter)
        self.optimiser.step()
        self.objective.after_step((self.step + 1) / self.config.steps)
        if self._beside is not None:
            self._ahead = self._read()
        self._check(parts, norm)
        self.step += 1
        if self.step == 1 or self.step % self.config.log_every == 0 or self.step == self.config.steps:
            self._log(outcome, torch.cat([part["embedding"] for part in parts]), rate, float(norm))

    def _check(self, parts: list[dict[str, Tensor]], norm: Tensor) -> None:
        """Raise where the step was worth nothing; the state, which it has spoilt, is not kept."""
        for part in parts:  # the mean is not finite on any worker if it is not on one
            if not math.isfinite(part["loss"]):
                loss = float(part["loss"])
                raise UserError(f"step {self.step}: loss {loss} is not finite; lower optimiser.learning_rate")
        if not math.isfinite(norm):
            raise UserError(
                f"step {self.step}: gradient norm {float(norm)} is not finite; lower optimiser.learning_rate"
            )

    def _part(self, last: bool) -> dict[str, Tensor]:
        """Loss and gradients of one part of this worker's share; scalars as means over the workers. Gradients are
        exchanged with the ``last`` part only."""
        rendered = self._rendered()  # in full precision: bf16 has 12 HU between neighbours
        with self._exchanging(last):
            bf16 = self.config.precision == "bfloat16"
            with torch.autocast(self.world.device.type, torch.bfloat16, enabled=bf16):
                outcome: dict[str, Tensor] = self.model(rendered)
            loss = mean_over_workers(outcome["loss"])
            (outcome["loss"] / self.config.accumulate).backward()  # type: ignore[no-untyped-call]
        return {key: value.detach() for key, value in outcome.items()} | {"loss": loss}

    def _exchanging(self, last: bool) -> AbstractContextManager[None]:
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
        if isinstance(self.model, DistributedDataParallel) and not last:
            alone: AbstractContextManager[None] = self.model.no_sync()
            return alone
        return contextlib.nullcontext()

    def repeat_batch(self) -> None:
        """See the next batch again and again from now on: what a step takes without data loading."""
        batch = self._next()
        assert isinstance(batch, dict)
        self._incoming = itertools.repeat(self._there(batch))

    def _rendered(self) -> Batch:
        """What the next part sees."""
        incoming, self._ahead = self._ahead or self._read(), None
        assert incoming is not None  # a run has as many parts as its steps want
        agree(self.world, UserError(incoming.mistake) if incoming.mistake else None)
        if incoming.skipped is not None:
            numbers = incoming.skipped.flatten()
            lost = torch.bincount(numbers[numbers >= 0], minlength=len(self.volumes)).to(self.world.device)
            self.skipped = self.skipped + sum_over_workers(lost).cpu()
        if self._beside is not None:
            here = torch.cuda.current_stream(self.world.device)
            here.wait_stream(self._beside)
            for value in incoming.rendered.values():
                value.record_stream(here)  # or its memory would be used again before the step has read it
        return incoming.rendered

    def _read(self) -> Incoming | None:
        """Wait for the next batch, and on a GPU have it copied and rendered beside the step. None at the run's end."""
        batch = self._next()
        if batch is None:
            return None
        if isinstance(batch, str):
            return Incoming({}, mistake=batch)
        skipped = batch.pop("skipped", None)
        with torch.cuda.stream(self._beside):  # of None: nothing
            return Incoming(self.views.render(self._there(batch)), skipped=skipped)

    def _next(self) -> Batch | str | None:
        if self._incoming is None:
            self._incoming = batches(self.config, self.volumes, self.world, self.step)
        started = time.monotonic()
        batch = next(self._incoming, None)
        self.waited += time.monotonic() - started
        return batch

    def _there(self, batch: Batch) -> Batch:
        """``batch`` on this worker's device, but for what the views want on the host."""
        return {
            key: value if key in self.views.on_host else value.to(self.world.device, non_blocking=True)
            for key, value in batch.items()
        }

    def _set_schedules(self, progress: float) -> float:
        optimiser = self.config.optimiser
        rate = learning_rate(optimiser, self.step, self.config.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
            if group["decayed"]:
                group["weight_decay"] = cosine_schedule(*optimiser.weight_decay, progress)
        return rate

    def _log(self, outcome: dict[str, Tensor], embedding_BE: Tensor, rate: float, norm: float) -> None:
        embedding_BE = gather(embedding_BE.float())
        gpus = self.world.size if self.world.device.type == "cuda" else 0
        row: HistoryRow = {"step": self.step, "workers": self.world.size, "gpus": gpus}
        row |= {"batch": self.config.volumes_per_step}
        row |= {"loss": float(outcome["loss"]), "learning_rate": rate, "gradient_norm": norm}
        row |= {"embedding_spread": spread(embedding_BE), "effective_rank": effective_rank(embedding_BE)}
        row["uniformity"] = uniformity(embedding_BE)
        row |= {name: float(mean_over_workers(outcome[name])) for name in sorted(set(outcome) - {"loss"})}
        self.history.append(row)
        self._stop_collapsed()

    def _stop_collapsed(self) -> None:
        """Raise where the embedding has been nearly one vector for all since a while."""
        config, warm = self.config.collapse, self.config.optimiser.warmup * self.config.steps
        last = self.history[-config.patience :]
        if len(last) == config.patience and all(
            row["step"] > warm and row["embedding_spread"] < config.min_spread for row in last
        ):
            raise UserError(
                f"step {self.step}: training has collapsed: embedding_spread {last[-1]['embedding_spread']:.3g}, "
                f"below collapse.min_spread {config.min_spread} in {config.patience} logged steps in a row; lower "
                "optimiser.learning_rate, or change the objective's temperatures or weights"
            )


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
        The final state, see :meth:`Trainer.state`.

    Raises:
        UserError: no volumes, a volume that cannot be read, a loss that is not finite, a full disk.
    """
    if not volumes:
        raise UserError("pretrain: no accepted series has the role 'pretrain'; nothing to train on")
    set_up_process()
    trainer = Trainer(config, volumes, world)
    state = checkpoints.load()
    if state is not None:
        trainer.restore(state)
        progress(f"resuming from the checkpoint at step {trainer.step} of {config.steps}")
    for line in _steps(trainer, checkpoints):
        progress(line)
    checkpoints.settle(wait=True)
    return trainer.state()


def set_up_process() -> None:
    """What a worker's process sets: one thread, and that glibc keeps what large tensors leave. Else each step gets it
    anew from the system, page by page, which takes a quarter of a CPU's step where activations are large. That holds
    for a process's first thread (see also :mod:`ray_driver`); other C libraries are left as they are."""
    torch.set_num_threads(1)  # the order of additions, and so the last bit, must not depend on the machine's cores
    cv2.setNumThreads(1)  # one process per core: more threads would only contend
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    trim_threshold, mmap_threshold = -1, -3
    libc.mallopt(trim_threshold, TRIM_THRESHOLD)
    for most in (MMAP_THRESHOLD, 2**25):  # the second is the most that glibc below 2.35 allows
        if libc.mallopt(mmap_threshold, most):
            break


def _steps(trainer: Trainer, checkpoints: Checkpoints) -> Iterator[str]:
    """Run the remaining steps; yields a line for a person at every logged step."""
    config, first, started = trainer.config, trainer.step, time.monotonic()
    while trainer.step < config.steps:
        logged, known = len(trainer.history), trainer.skipped > 0
        trainer.run_step()
        if trainer.step in config.candidate_steps():
            _keep(trainer, checkpoints)
        checkpoints.settle(wait=False)
        if trainer.step % config.checkpoint_every == 0 or trainer.step == config.steps:
            state = trainer.state()
            checkpoints.save(state if trainer.world.rank == 0 else None)
        for number in ((trainer.skipped > 0) & ~known).nonzero().flatten().tolist():
            yield f"step {trainer.step}/{config.steps}  volume {trainer.volumes[number]} cannot be read: skipped"
        if len(trainer.history) > logged:
            per_step = (time.monotonic() - started) / (trainer.step - first)
            left = per_step * (config.steps - trainer.step)
            yield (
                f"step {trainer.step}/{config.steps}  loss {trainer.history[-1]['loss']:.4f}  "
                f"{config.volumes_per_step / per_step:.1f} volumes/s  waiting for data "
                f"{trainer.waited / (time.monotonic() - started):.0%}  {left:.0f} s left"
            )


def _keep(trainer: Trainer, checkpoints: Checkpoints) -> None:
    """Have rank 0 keep the encoder as it is now. All workers call it at the same step."""
    first, mistake = trainer.world.rank == 0, None
    weights = whole(trainer.objective.encoder.state_dict(), kept=first)
    if first:
        try:
            checkpoints.keep(trainer.step, weights)
        except UserError as error:
            mistake = error
    agree(trainer.world, mistake)
