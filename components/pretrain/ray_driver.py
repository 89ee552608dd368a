"""Training on Ray Train V2: a local cluster, one actor per worker, DDP between them, resume from the run's folder.

Ray resumes by itself when a run of the same name is started again in the same storage, even a finished one; the name
is therefore a hash of parameters, data and code (see :mod:`components.pretrain.__main__`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
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

from components.cluster import ray_cluster
from components.errors import UserError
from components.files import sha256_file
from components.models.embed import candidate_file
from components.nodes import check_arithmetic
from components.pretrain.apart import BEGUN_WITH, RUNS, Bucket, Distant, check_cache, kept_here, run_place
from components.pretrain.checkpoints import State, read_state, write_candidate, write_state
from components.pretrain.config import PretrainConfig
from components.pretrain.loop import train
from components.pretrain.on_cluster import lines_to, require_room, within_deadline
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
    others are ignored. On several nodes the folder lies where all of them see it; with a bucket it is this node's own,
    and Ray takes what was written to the bucket."""

    def __init__(self, folder: Path, world: World, bucket: Bucket | None = None, run: str = "") -> None:
        self.folder, self.world, self.bucket, self.run = folder, world, bucket, run
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
        if self.bucket is not None:
            self.bucket.send(self.folder / candidate_file(step), f"{RUNS}/{self.run}/{candidate_file(step)}")

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
        mode = CheckpointUploadMode.NO_UPLOAD if self.bucket is None else CheckpointUploadMode.SYNC
        ray.train.report({}, checkpoint=checkpoint, checkpoint_upload_mode=mode,
                         delete_local_checkpoint_after_upload=self.bucket is not None)  # fmt: skip
        self._open, self._writing = False, None


def _work(job: dict[str, Any]) -> str:
    """What each worker runs. A user's mistake is returned, not raised: Ray would try it again."""
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    config, bucket, run = PretrainConfig.model_validate(job["config"]), job["bucket"], job["run"]
    try:
        _agree_on_node(world, bucket)
        with _folder_of(job["folder"]) as folder:
            start = _begun_with(world, config, folder, bucket, job["start"])
            checkpoints = RayCheckpoints(folder, world, bucket, run)
            train(config, tuple(job["volumes"]), world, checkpoints, _teller(world, folder, job["lines"]), start)
    except UserError as error:
        return str(error)
    return ""


@contextmanager
def _folder_of(shared: str | None) -> Iterator[Path]:
    """The run's folder; where nodes share none, one of this worker's own, which goes with it."""
    if shared is not None:
        yield Path(shared)
        return
    own = Path(tempfile.mkdtemp(prefix="ctfoundry-run-"))
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _begun_with(
    world: World, config: PretrainConfig, folder: Path, bucket: Bucket | None, sha256: str | None
) -> Path | None:
    """The weights that the run begins with, on this node. Raises UserError, on every worker, where one has not got
    them."""
    if bucket is None:
        return placed_at(config, folder)
    path, mistake = None, None
    try:
        path = None if sha256 is None else kept_here(bucket, f"{BEGUN_WITH}/{sha256}", sha256)
    except OSError as error:
        mistake = UserError(f"{bucket.url}: the weights to start from cannot be fetched: {error}")
    agree(world, mistake)
    return path


def _teller(world: World, folder: Path, lines: Any) -> Callable[[str], None]:
    """How a worker says a line: into the run's file, or to the driver where nodes share no folder."""

    def progress(line: str) -> None:
        if world.rank != 0:
            return
        if lines is not None:
            lines.add.remote(line)
            return
        # a full disk may end the run with a checkpoint, which every worker hears of; not with a line
        with contextlib.suppress(OSError), (folder / PROGRESS_FILE).open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    return progress


def _agree_on_node(world: World, bucket: Bucket | None) -> None:
    """End on every worker where one's node computes otherwise, or is set up wrongly: the others would wait for it for
    ever."""
    mistake = None
    try:
        check_arithmetic()
        if bucket is not None:
            check_cache()
    except UserError as error:
        mistake = error
    agree(world, mistake)


def train_with_ray(
    config: PretrainConfig,
    volumes: tuple[Path, ...],
    folder: Path,
    progress: Callable[[str], None],
    digests: Sequence[str] = (),
) -> State:
    """Train with ``config.workers`` workers; resumes from ``folder`` if it holds a checkpoint.

    With RAY_ADDRESS set the workers are that cluster's: folder and volumes must lie where all its nodes see them, or go
    through the bucket that ``CTFOUNDRY_TRAIN_STORAGE`` names. A node that is lost ends the attempt; the next begins at
    the last checkpoint, once there is room for the workers. Failures are counted from the last checkpoint on: a run of
    weeks has many.

    Args:
        config: the whole block.
        volumes: the training volumes.
        folder: the run's folder; its name is the run's name, its parent Ray's storage.
        progress: receives the workers' lines.
        digests: SHA-256 of each volume, by which a bucket has them.

    Returns:
        The final state.

    Raises:
        UserError: as :func:`components.pretrain.loop.train`; GPUs are asked for and there are too few; the bucket does
            not take what is sent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bucket = Bucket.from_environment() if os.environ.get("RAY_ADDRESS") else None
    job = {"config": config.model_dump(), "run": folder.name, "bucket": bucket, "lines": None, "start": None,
           "folder": str(folder.resolve()), "volumes": [path.resolve() for path in volumes]}  # fmt: skip
    if bucket is not None:
        job |= _sent(config, volumes, digests, folder, bucket)
    elastic = config.least_workers < config.most_workers
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = ELASTIC_START_S if elastic else START_S
    with ray_cluster(config.most_workers, apart=bucket is not None), _told(job, folder, progress):
        found = int(ray.cluster_resources().get("GPU", 0))
        gpus = on_gpus(config.device, config.least_workers, found)
        if found and not gpus:
            progress(f"device {config.device}: {found} GPUs for {config.least_workers} workers: training on CPUs")
        if os.environ.get("RAY_ADDRESS"):
            require_room(config.least_workers, "GPU" if gpus else "CPU", progress)
        result = within_deadline(lambda: _fit(config, job, folder, gpus, progress))
        mistake: str = result.return_value  # type: ignore[attr-defined]  # typed as V1's result
        if mistake:
            raise UserError(mistake)
        if result.checkpoint is None:
            raise RuntimeError(f"run {folder.name}: ended without a checkpoint")
        if bucket is not None:
            bucket.candidates_to(folder)
        with result.checkpoint.as_directory() as path:
            return read_state(Path(path) / STATE_FILE)


def _sent(
    config: PretrainConfig, volumes: Sequence[Path], digests: Sequence[str], folder: Path, bucket: Bucket
) -> dict[str, Any]:
    """What of a job is otherwise where nodes share no folder; all of it is in the bucket. Raises UserError."""
    bucket.check()
    bucket.send_all(volumes, digests)
    begins, start = placed_at(config, folder), None
    if begins is not None:
        start = sha256_file(begins)
        bucket.send(begins, f"{BEGUN_WITH}/{start}")
    named = zip(volumes, digests, strict=True)
    return {"folder": None, "start": start, "volumes": [Distant(bucket, sha256, path.name) for path, sha256 in named]}


def _fit(
    config: PretrainConfig, job: dict[str, Any], folder: Path, gpus: bool, progress: Callable[[str], None]
) -> ray.train.Result:
    """Train to the end; again and again, while the attempts that failed have got farther."""
    bucket: Bucket | None = job.get("bucket")
    storage = {"storage_path": str(folder.resolve().parent)} if bucket is None else run_place(bucket)

    def newest() -> str:
        return _newest(folder) if bucket is None else bucket.newest(folder.name, STATE_FILE)

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
                **storage,
                worker_runtime_env={"env_vars": MEMORY},  # type: ignore[call-arg]  # beside the cluster's own
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
                failure_config=ray.train.FailureConfig(max_failures=WORKER_FAILURES_TOLERATED),
            ),
        )
        before = newest()
        try:
            return trainer.fit()
        except ray.train.WorkerGroupError:
            if newest() <= before:
                raise
            progress(f"workers were lost {WORKER_FAILURES_TOLERATED + 1} times; there are new checkpoints: going on")


def _newest(folder: Path) -> str:
    """Name of the newest checkpoint that was written, whether it counts or not; empty where there is none."""
    return max((path.parent.name for path in folder.glob(f"checkpoint_*/{STATE_FILE}")), default="")


@contextmanager
def _told(job: dict[str, Any], folder: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Pass on what workers say: by a file that they share with this process, or by an actor beside it."""
    if job["folder"] is not None:
        with _following(folder / PROGRESS_FILE, progress):
            yield
    else:
        with lines_to(progress) as job["lines"]:
            yield


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
