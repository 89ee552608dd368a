"""Training in this process, without Ray: ``workers: 0``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from components.pretrain.checkpoints import FileCheckpoints, State
from components.pretrain.config import PretrainConfig
from components.pretrain.loop import train
from components.pretrain.start import placed_at
from components.pretrain.workers import World, on_gpus


def train_here(
    config: PretrainConfig, volumes: tuple[Path, ...], folder: Path, progress: Callable[[str], None]
) -> State:
    """Train with one worker, this process; resumes from ``folder`` if it holds a checkpoint.

    Raises:
        UserError: as :func:`components.pretrain.loop.train`; a GPU is asked for and there is none.
    """
    device = torch.device("cuda" if on_gpus(config.device, 1, torch.cuda.device_count()) else "cpu")
    threads = torch.get_num_threads()
    try:
        return train(config, volumes, World(0, 1, device), FileCheckpoints(folder), progress, placed_at(config, folder))
    finally:
        torch.set_num_threads(threads)
