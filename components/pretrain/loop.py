"""The training loop: read this first. Needs torch and the volume store; knows nothing of Ray.

What a step is made of is changed where it is kept: volumes and their order in :mod:`loading`, views in :mod:`views`,
losses in :mod:`objectives.build`, rate and decay in :mod:`optimiser`, columns of the history in :mod:`monitors`.
``local_driver`` and ``ray_driver`` start :func:`train`, with one worker or many.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from components.errors import UserError
from components.models.build import checkpoint_activations, compile_blocks
from components.pretrain.apart import Place
from components.pretrain.checkpoints import Checkpoints, State
from components.pretrain.config import PretrainConfig
from components.pretrain.loading import Incoming
from components.pretrain.monitors import (
    HistoryRow,
    monitored,
    require_alive,
    stop_if_collapsed,
    stop_if_not_finite,
)
from components.pretrain.objectives.build import build_objective
from components.pretrain.optimiser import build_optimiser, load_optimiser, set_schedules
from components.pretrain.process import set_up_process
from components.pretrain.workers import (
    World,
    agree,
    exchanging,
    mean_over_workers,
    normalise_together,
    over_workers,
    share_of,
    whole,
)


def train(
    config: PretrainConfig,
    volumes: tuple[Place, ...],
    world: World,
    checkpoints: Checkpoints,
    progress: Callable[[str], None],
    start: Path | None = None,
) -> State:
    """Train from the newest checkpoint, or from the start, to the last step. Of none it looks at the weights only.

    Args:
        config: the whole block.
        volumes: the training volumes, in an order that is the same in every run.
        world: this worker.
        checkpoints: load and save; the last step is always saved.
        progress: receives one line now and then (rank 0 only), meant for a person.
        start: weights that a run begins with, see :func:`components.pretrain.objectives.build.build_objective`.

    Returns:
        The final state, see :meth:`Trainer.state`.

    Raises:
        UserError: no volumes, a volume that cannot be read, a loss that is not finite, a full disk.
    """
    if not volumes:
        raise UserError("no accepted series has the role 'pretrain'; nothing to train on")
    set_up_process()
    trainer = Trainer(config if config.steps else config.glance(), volumes, world, start)
    state = checkpoints.load()
    if state is not None:
        trainer.restore(state)
        progress(f"resuming from the checkpoint at step {trainer.step} of {config.steps}")
    if config.steps == 0:
        trainer.look()
    for line in _steps(trainer, checkpoints):
        progress(line)
    checkpoints.settle(wait=True)
    return trainer.state()


def _steps(trainer: Trainer, checkpoints: Checkpoints) -> Iterator[str]:
    """Run the remaining steps; yields a line for a person at every logged step."""
    config, incoming, first, started = trainer.config, trainer.incoming, trainer.step, time.monotonic()
    while trainer.step < config.steps:
        logged, known = len(trainer.history), incoming.skipped > 0
        trainer.run_step()
        if trainer.step in config.candidate_steps():
            _keep(trainer, checkpoints)
        checkpoints.settle(wait=False)
        if trainer.step % config.checkpoint_every == 0 or trainer.step == config.steps:
            state = trainer.state()
            checkpoints.save(state if trainer.world.rank == 0 else None)
        for number in ((incoming.skipped > 0) & ~known).nonzero().flatten().tolist():
            yield f"step {trainer.step}/{config.steps}  volume {incoming.volumes[number]} cannot be read: skipped"
        if len(trainer.history) > logged:
            per_step = (time.monotonic() - started) / (trainer.step - first)
            left = per_step * (config.steps - trainer.step)
            yield (
                f"step {trainer.step}/{config.steps}  loss {trainer.history[-1]['loss']:.4f}  "
                f"{config.volumes_per_step / per_step:.1f} volumes/s  waiting for data "
                f"{incoming.waited / (time.monotonic() - started):.0%}  {left:.0f} s left"
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


class Trainer:
    """Model, optimiser and step of one worker."""

    def __init__(
        self, config: PretrainConfig, volumes: tuple[Place, ...], world: World, start: Path | None = None
    ) -> None:
        if (config.start is None) != (start is None):
            raise ValueError(f"start {config.start} wants its weights, and no others: {start}")
        self.config, self.world = config, world
        self.incoming = Incoming(config, volumes, world)
        self.objective = build_objective(config, start).to(world.device)
        if world.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # all steps have the same sizes
        normalise_together(self.objective, world, config.compile)
        if config.compile:
            compile_blocks(self.objective)
        if config.activation_checkpointing:
            checkpoint_activations(self.objective.encoder)
        self.model = over_workers(self.objective, world, config.sharded)  # with the parameters of self.objective
        self.optimiser = build_optimiser(self.objective, config.optimiser)
        self.step = 0
        self.history: list[HistoryRow] = []

    def run_step(self) -> None:
        """One step: read, render, loss, gradients over all workers, update, teacher, history.

        A GPU is told all of a step, and to render the next one, before anything is asked of it.
        """
        config = self.config
        rate = set_schedules(self.optimiser, config.optimiser, self.step, config.steps)
        self.objective.train()
        self.optimiser.zero_grad(set_to_none=True)
        parts = [self._part(last=n == config.accumulate - 1) for n in range(config.accumulate)]
        limit = config.optimiser.clip_norm or math.inf
        norm = whole(nn.utils.clip_grad_norm_(self.objective.parameters(), limit))
        self.optimiser.step()
        self.objective.after_step((self.step + 1) / config.steps)
        self.incoming.read_ahead()
        # the mean over the workers is not finite on any of them if it is not on one
        stop_if_not_finite(self.step, [part["loss"] for part in parts], norm)
        self.step += 1
        if self.step == 1 or self.step % config.log_every == 0 or self.step == config.steps:
            self._log(parts, {"learning_rate": rate, "gradient_norm": float(norm)})
            stop_if_collapsed(self.history, config)

    def look(self) -> None:
        """A row of the history on weights that are not trained: the first volumes, seen as the encoder will be used,
        with the running statistics of its batch norms."""
        self.objective.eval()
        with torch.no_grad():
            self._log([self._outcome()], {})
        require_alive(self.history[-1], self.config)

    def _part(self, last: bool) -> dict[str, Tensor]:
        """Loss and gradients of one part of this worker's share; the loss as the mean over the workers. Gradients are
        exchanged with the ``last`` part only."""
        with exchanging(self.model, gradients=last):
            outcome = self._outcome()
            loss = mean_over_workers(outcome["loss"])
            (outcome["loss"] / self.config.accumulate).backward()  # type: ignore[no-untyped-call]
        return {key: value.detach() for key, value in outcome.items()} | {"loss": loss}

    def _outcome(self) -> dict[str, Tensor]:
        views = self.incoming.next()  # in full precision: bf16 has 12 HU between neighbours
        bf16 = self.config.precision == "bfloat16"
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=bf16):
            outcome: dict[str, Tensor] = self.model(views)
        return outcome

    def _log(self, parts: list[dict[str, Tensor]], training: HistoryRow) -> None:
        outcome = {
            key: torch.stack([part[key] for part in parts]).mean(dim=0) for key in parts[0] if key != "embedding"
        }
        gpus = self.world.size if self.world.device.type == "cuda" else 0
        row: HistoryRow = {"step": self.step, "workers": self.world.size, "gpus": gpus}
        row |= {"batch": self.config.volumes_per_step}
        row |= {"loss": float(outcome.pop("loss")), **training}
        self.history.append(row | monitored(outcome, torch.cat([part["embedding"] for part in parts])))

    def state(self) -> State:
        """Everything that the rest of the run depends on; all workers call it at the same step. Where parameters are
        shared out, only rank 0 gets them whole: the others have no use for them, and perhaps no room."""
        state: State = {
            "step": self.step,
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "history": self.history,
            "skipped": self.incoming.skipped,
        }
        together: State = whole(state, kept=self.world.rank == 0)
        return together

    def restore(self, state: State) -> None:
        """Go on from ``state``."""
        own = self.objective.state_dict()
        self.objective.load_state_dict({name: share_of(value, own[name]) for name, value in state["objective"].items()})
        load_optimiser(self.optimiser, state["optimiser"])
        self.step, self.history = int(state["step"]), list(state["history"])
        self.incoming.go_on(self.step, state["skipped"])
