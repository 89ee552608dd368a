"""Training in this process, without Ray: ``workers: 0``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from components.files import replacing
from components.params import UserError
from components.pretrain.config import PretrainConfig
from components.pretrain.loop import State, train
from components.pretrain.workers import World


def write_state(path: Path, state: State) -> None:
    """Write a checkpoint under a temporary name and rename it, so that a half-written one is never read.

    Raises:
        UserError: it cannot be written, as when the disk is full; what was written of it is gone.
    """
    try:
        with replacing(path) as temporary, temporary.open("wb") as stream:
            torch.save(state, stream)
    except (OSError, RuntimeError) as error:
        # torch closes its archive after a failed write, and reports that instead of the cause
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"checkpoint of step {state['step']}: cannot be written to {path.parent}: {cause.strerror}; make room and "
            "start again: it goes on from the checkpoint before"
        ) from None


def read_state(path: Path) -> State:
    """Read a checkpoint; tensors and plain values only, nothing in it can run."""
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state


class FileCheckpoints:
    """One file that always holds the newest complete state."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state.pt"

    def load(self) -> State | None:
        return read_state(self.path) if self.path.is_file() else None

    def save(self, state: State | None) -> None:
        if state is not None:
            write_state(self.path, state)

    def settle(self, wait: bool) -> None:
        """Nothing is on its way: it is written at once."""


def train_here(
    config: PretrainConfig, volumes: tuple[Path, ...], folder: Path, progress: Callable[[str], None]
) -> State:
    """Train with one worker, this process; resumes from ``folder`` if it holds a checkpoint."""
    threads = torch.get_num_threads()
    try:
        return train(config, volumes, World(0, 1, torch.device("cpu")), FileCheckpoints(folder), progress)
    finally:
        torch.set_num_threads(threads)
