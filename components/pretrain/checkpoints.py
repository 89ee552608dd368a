"""Where a run's state is kept between attempts: what training asks of it, and the files that hold it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError

from components.errors import UserError
from components.files import replacing
from components.models.embed import candidate_file, write_weights

State = dict[str, Any]


class Checkpoints(Protocol):
    """Where the run's state is kept between attempts."""

    def load(self) -> State | None:
        """The newest complete state, or None at the start of a run."""

    def save(self, state: State | None) -> None:
        """Keep a state. Every worker calls it at the same step; all but rank 0 pass None. It may be written while
        training goes on."""

    def keep(self, step: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Keep the encoder of a step to the run's end, beside the checkpoints; rank 0 calls it. Raises UserError."""

    def settle(self, wait: bool) -> None:
        """Make what has been written since count, or say why it could not be; with ``wait`` all that was saved."""


def write_state(path: Path, state: State) -> None:
    """Write a checkpoint under a temporary name and rename it, so that a half-written one is never read.

    Raises:
        UserError: it cannot be written, as when the disk is full; what was written of it is gone.
    """
    what = f"checkpoint of step {state['step']}"
    with _room_for(what, path.parent), replacing(path) as temporary, temporary.open("wb") as stream:
        torch.save(state, stream)


def write_candidate(folder: Path, step: int, weights: Mapping[str, torch.Tensor]) -> None:
    """Write an encoder of the run below its ``folder``, once: it is in no checkpoint. Raises UserError as above."""
    path = folder / candidate_file(step)
    with _room_for(f"encoder of step {step}", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_weights(path, weights)


@contextmanager
def _room_for(what: str, folder: Path) -> Iterator[None]:
    """A full disk, in one line."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch closes its archive after a failed write, and reports that instead of the cause
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(error, SafetensorError):
            cause = OSError(0, str(error))
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"{what}: cannot be written to {folder}: {cause.strerror}; make room and start again: it goes on from the "
            "checkpoint before"
        ) from None


def read_state(path: Path) -> State:
    """Read a checkpoint; tensors and plain values only, nothing in it can run."""
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state


class FileCheckpoints:
    """One file that always holds the newest complete state."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "state.pt"

    def load(self) -> State | None:
        return read_state(self.path) if self.path.is_file() else None

    def save(self, state: State | None) -> None:
        if state is not None:
            write_state(self.path, state)

    def keep(self, step: int, weights: Mapping[str, torch.Tensor]) -> None:
        write_candidate(self.folder, step, weights)

    def settle(self, wait: bool) -> None:
        """Nothing is on its way: it is written at once."""
