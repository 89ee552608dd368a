"""Training on Ray Train V2: a local cluster, one actor per worker, DDP between them, resume from the run's folder.

Ray resumes by itself when a run of the same name is started again in the same storage, even a finished one; the name
is therefore a hash of parameters, data and code (see :mod:`components.pretrain.__main__`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

os.environ |= {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one more process that polls; this machine is not lent
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a checkpoint counts once the controller has looked
}

import ray
import ray.train
import ray.train.torch
from ray.train import CheckpointUploadMode

from components.cluster import check_arithmetic, ray_cluster
from components.errors import UserError
from components.pretrain.checkpoints import State, read_state, write_candidate, write_state
from components.pretrain.config import PretrainConfig
from components.pretrain.loop import train
from components.pretrain.process import MEMORY
from components.pretrain.start import placed_at
from components.pretrain.workers import World, agree, on_gpus, sum_over_workers

START_S = "600"  # a busy machine takes more than Ray's 60 s to import torch twice
ELASTIC_START_S = "90"  # a node that was lost counts as there for half a minute; then fewer workers must do
WORKER_FAILURES_TOLERATED = 2  # without a new checkpoint
RESIZE_AFTER_S = 10.0  # an elastic run looks so often whether the cluster has room for more workers
STATE_FILE = "state.pt"
PROGRESS_FILE = "progress.log"


class RayCheckpoints:
    """Checkpoints in the run's folder, written while training goes on, then entered in Ray's snapshot of the run;
    others are ignored. On several nodes the folder lies where all of them see it."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        self._open = False  # on every worker: one is being written, which does not count yet
        self._writing: Future[Path] | None = None  # on rank 0
        self._thread = ThreadPoolExecutor(1)

    def load(self) -> State | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return read_state(Path(folder) / STATE_FILE)

    def save(self, state: State | None) -> None:
        self.settle(wait=True)
        self._open = True
        if state is not None:  # training changes its tensors in place: the copy stays
            copy = tree_map(lambda value: value.to("cpu", copy=True) if isinstance(value, Tensor) else value, state)
            self._writing = self._thread.submit(self._write, copy)

    def _write(self, state: State) -> Path:
        place = self.folder / f"checkpoint_{state['step']:09d}"
        try:
            write_state(place / STATE_FILE, state)
        except UserError:
            with contextlib.suppress(OSError):  # of an attempt before, one may lie there
                place.rmdir()
            raise
        return place

    def keep(self, step: int, weights: Mapping[str, Tensor]) -> None:
        write_candidate(self.folder, step, weights)

    def settle(self, wait: bool) -> None:
        if not self._open:
            return
        mistake, checkpoint = None, None
        on_its_way = torch.zeros(1, device=self.world.device)
        if self._writing is not None and not wait and not self._writing.done():
            on_its_way += 1
        elif self._writing is not None:
            try:
                checkpoint = ray.train.Checkpoint.from_directory(self._writing.result())
            except UserError as error:
                mistake = error
        if float(sum_over_workers(on_its_way)):
            return
        agree(self.world, mistake)
        ray.train.report({}, checkpoint=checkpoint, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)
        self._open, self._writing = False, None


def _work(job: dict[str, Any]) -> str:
    """What each worker runs. A user's mistake is returned, not raised: Ray would try it again."""
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    folder, config = Path(job["folder"]), PretrainConfig.model_validate(job["config"])

    def progress(line: str) -> None:
        # a full disk may end the run with a checkpoint, which every worker hears of; not with a line
        with contextlib.suppress(OSError):
            if world.rank == 0:
                with (folder / PROGRESS_FILE).open("a", encoding="utf-8") as stream:
                    stream.write(line + "\n")

    try:
        _agree_on_arithmetic(world)
        train(
            config,
            tuple(Path(path) for path in job["volumes"]),
            world,
            RayCheckpoints(folder, world),
            progress,
            placed_at(config, folder),
        )
    except UserError as error:
        return str(error)
    return ""


def _agree_on_arithmetic(world: World) -> None:
    """End on every worker where one's node computes otherwise: the others would wait for it for ever."""
    mistake = None
    try:
        check_arithmetic()
    except UserError as error:
        mistake = error
    agree(world, mistake)


def train_with_ray(
    config: PretrainConfig, volumes: tuple[Path, ...], folder: Path, progress: Callable[[str], None]
) -> State:
    """Train with ``config.workers`` workers; resumes from ``folder`` if it holds a checkpoint.

    With RAY_ADDRESS set the workers are that cluster's: folder and volumes must lie where all its nodes see them. A
    node that is lost ends the attempt; the next begins at the last checkpoint, once there is room for the workers.
    Failures are counted from the last checkpoint on: a run of weeks has many.

    Args:
        config: the whole block.
        volumes: the training volumes.
        folder: the run's folder; its name is the run's name, its parent Ray's storage.
        progress: receives the workers' lines.

    Returns:
        The final state.

    Raises:
        UserError: as :func:`components.pretrain.loop.train`; GPUs are asked for and there are too few.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job = {
        "config": config.model_dump(),
        "volumes": [str(path.resolve()) for path in volumes],
        "folder": str(folder.resolve()),
    }
    elastic = config.least_workers < config.most_workers
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = ELASTIC_START_S if elastic else START_S
    with ray_cluster(config.most_workers), _following(folder / PROGRESS_FILE, progress):
        found = int(ray.cluster_resources().get("GPU", 0))
        gpus = on_gpus(config.device, config.least_workers, found)
        if found and not gpus:
            progress(f"device {config.device}: {found} GPUs for {config.least_workers} workers: training on CPUs")
        result = _fit(config, job, folder, gpus, progress)
    mistake: str = result.return_value  # type: ignore[attr-defined]  # typed as V1's result
    if mistake:
        raise UserError(mistake)
    if result.checkpoint is None:
        raise RuntimeError(f"run {folder.name}: ended without a checkpoint")
    with result.checkpoint.as_directory() as path:
        return read_state(Path(path) / STATE_FILE)


def _fit(
    config: PretrainConfig, job: dict[str, Any], folder: Path, gpus: bool, progress: Callable[[str], None]
) -> ray.train.Result:
    """Train to the end; again and again, while the attempts that failed have got farther."""
    while True:
        trainer = ray.train.torch.TorchTrainer(
            _work,  # type: ignore[arg-type]  # typed as V1's, which returned nothing
            train_loop_config=job,
            torch_config=ray.train.torch.TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ray.train.ScalingConfig(  # typed as V1's, which knew no elastic runs
                num_workers=config.workers,  # type: ignore[arg-type]
                use_gpu=gpus,
                elastic_resize_monitor_interval_s=RESIZE_AFTER_S,  # type: ignore[call-arg]
            ),
            run_config=ray.train.RunConfig(
                name=folder.name,
                storage_path=str(folder.resolve().parent),
                worker_runtime_env={"env_vars": MEMORY},  # type: ignore[call-arg]  # beside the cluster's own
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
                failure_config=ray.train.FailureConfig(max_failures=WORKER_FAILURES_TOLERATED),
            ),
        )
        before = _newest(folder)
        try:
            return trainer.fit()
        except ray.train.WorkerGroupError:
            if _newest(folder) <= before:
                raise
            progress(f"workers were lost {WORKER_FAILURES_TOLERATED + 1} times; there are new checkpoints: going on")


def _newest(folder: Path) -> str:
    """Name of the newest checkpoint that was written, whether it counts or not; empty where there is none."""
    return max((path.parent.name for path in folder.glob(f"checkpoint_*/{STATE_FILE}")), default="")


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
