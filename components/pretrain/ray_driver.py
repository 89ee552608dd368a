"""Training on Ray Train V2: a local cluster, one actor per worker, DDP between them, resume from the run's folder.

Ray resumes by itself when a run of the same name is started again in the same storage, even a finished one; the name
is therefore a hash of parameters, data and code (see :mod:`components.pretrain.__main__`).
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

os.environ |= {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one more process that polls; this machine is not lent
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # a busy machine takes more than Ray's 60 s to import torch twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a checkpoint counts once the controller has looked
}

import ray
import ray.train
import ray.train.torch

from components.cluster import local_ray
from components.params import UserError
from components.pretrain.config import PretrainConfig
from components.pretrain.local_driver import read_state, write_state
from components.pretrain.loop import State, train
from components.pretrain.workers import World

WORKER_FAILURES_TOLERATED = 2
STATE_FILE = "state.pt"
PROGRESS_FILE = "progress.log"


class RayCheckpoints:
    """Checkpoints through Ray: uploaded whole, then entered in the run's snapshot; others are ignored."""

    def load(self) -> State | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return read_state(Path(folder) / STATE_FILE)

    def save(self, state: State | None) -> None:
        if state is None:
            ray.train.report({}, checkpoint=None)
            return
        with tempfile.TemporaryDirectory() as folder:
            write_state(Path(folder) / STATE_FILE, state)
            ray.train.report({"step": state["step"]}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _work(job: dict[str, Any]) -> str:
    """What each worker runs. A user's mistake is returned, not raised: Ray would try it again."""
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())

    def progress(line: str) -> None:
        if world.rank == 0:
            with Path(job["progress"]).open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")

    try:
        train(
            PretrainConfig.model_validate(job["config"]),
            tuple(Path(path) for path in job["volumes"]),
            world,
            RayCheckpoints(),
            progress,
        )
    except UserError as error:
        return str(error)
    return ""


def train_with_ray(
    config: PretrainConfig, volumes: tuple[Path, ...], folder: Path, progress: Callable[[str], None]
) -> State:
    """Train with ``config.workers`` workers; resumes from ``folder`` if it holds a checkpoint.

    Args:
        config: the whole block.
        volumes: the training volumes.
        folder: the run's folder; its name is the run's name, its parent Ray's storage.
        progress: receives the workers' lines.

    Returns:
        The final state.

    Raises:
        UserError: as :func:`components.pretrain.loop.train`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job = {
        "config": config.model_dump(),
        "volumes": [str(path.resolve()) for path in volumes],
        "progress": str((folder / PROGRESS_FILE).resolve()),
    }
    with local_ray(config.workers, {"GLOO_SOCKET_IFNAME": "lo"}), _following(folder / PROGRESS_FILE, progress):
        trainer = ray.train.torch.TorchTrainer(
            _work,  # type: ignore[arg-type]  # typed as V1's, which returned nothing
            train_loop_config=job,
            torch_config=ray.train.torch.TorchConfig(backend="nccl" if torch.cuda.is_available() else "gloo"),
            scaling_config=ray.train.ScalingConfig(num_workers=config.workers, use_gpu=torch.cuda.is_available()),
            run_config=ray.train.RunConfig(
                name=folder.name,
                storage_path=str(folder.resolve().parent),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
                failure_config=ray.train.FailureConfig(max_failures=WORKER_FAILURES_TOLERATED),
            ),
        )
        result = trainer.fit()
    mistake: str = result.return_value  # type: ignore[attr-defined]  # typed as V1's result
    if mistake:
        raise UserError(mistake)
    if result.checkpoint is None:
        raise RuntimeError(f"run {folder.name}: ended without a checkpoint")
    with result.checkpoint.as_directory() as path:
        return read_state(Path(path) / STATE_FILE)


@contextmanager
def _following(path: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Pass on what the workers append to ``path``, from its present end until the block is left."""
    path.touch()
    done = threading.Event()

    def follow() -> None:
        with path.open(encoding="utf-8") as stream:
            stream.seek(0, os.SEEK_END)
            finished = False
            while not finished:
                finished = done.wait(0.5)
                for line in stream:
                    progress(line.rstrip("\n"))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        sys.stderr.flush()
