"""Views and training steps of the SegRes recipe: ours beside the MONAI pipeline of equal views, interleaved in one run.

    python -m tests.benchmarks.bench_pretrain [--rounds 5] [--crop 16 64 64] [--crops 15] [--views-only | --machine]

The peer is the pipeline most would write: ``PersistentDataset`` of float32 volumes, dictionary transforms crop by crop
and view by view (RandSpatialCrop, RandScaleCrop and Resize, RandFlip, RandHistogramShift, RandGaussianSmooth),
``DataLoader``, MONAI's encoder in eager float32. Ours reads int16 crops from the store and trains with the platform's
own loop, in bfloat16 where the processor computes it. Both on one thread and the same volumes (phantoms); parameters of
``wholebody.pretrain``, but the crop, and the published recipe's views. Training steps are made by a process for each
side, by turns: our loop sets how its process keeps memory, which is not to help the peer. Prints medians, ratios, the
share of our step that waits for data with and without a loader process, and each side's peak memory.

``--machine``: steps on all cores, as each is used on a machine: ours with one worker per core, the peer with torch's
threads, without loader processes and with one per core.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import psutil
import torch
from monai.data import DataLoader, PersistentDataset
from monai.networks.nets.segresnet_ds import SegResEncoder
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    MapTransform,
    RandFlipd,
    RandGaussianSmoothd,
    RandHistogramShiftd,
    RandScaleCropd,
    RandSpatialCropSamplesd,
    Resized,
    ScaleIntensityRanged,
    SpatialPadd,
)
from torch import nn

from components.ct.dicom import read_series
from components.ct.standardise import standardise
from components.ct.store import StoredVolume, write_volume
from components.preprocess.config import PreprocessConfig
from components.pretrain.config import PretrainConfig
from components.pretrain.loading import batches
from components.pretrain.loop import Trainer
from components.pretrain.objectives.ntxent import within_volume_ntxent
from components.pretrain.process import set_up_process
from components.pretrain.views import build_views
from components.pretrain.workers import World
from components.settings import _tuples, load_stage, parse, read_yaml
from components.sources.config import PhantomConfig
from components.sources.phantom.dealing import plan_scans
from components.sources.phantom.scanner import scan

HERE = World(0, 1, torch.device("cpu"))
VOLUMES, EPOCH = 4, 100
BEST = "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"  # what this processor computes fastest


class LoadStored(MapTransform):  # type: ignore[misc]  # MONAI has no types
    """What ``PersistentDataset`` keeps as its tensor."""

    def __call__(self, data: Any) -> Any:
        return {key: torch.from_numpy(StoredVolume(Path(data[key])).read().hu).float() for key in self.keys}


class TwoViews:
    """Each crop twice through the random transforms."""

    def __init__(self, crops: Any, views: Any) -> None:
        self.crops, self.views = crops, views

    def __call__(self, data: Any) -> Any:
        return {"views": torch.stack([self.view(crop) for crop in self.crops(data)])}

    def view(self, crop: Any) -> Any:
        return torch.stack([torch.as_tensor(self.views({"image": crop["image"]})["image"]) for _ in range(2)])


def peer_batches(config: PretrainConfig, volumes: list[Path], cache: Path, loaders: int = 0) -> Iterator[torch.Tensor]:
    views, size = config.objective.views, config.input.size_vox  # type: ignore[union-attr]
    kept = Compose(
        [
            LoadStored("image"),
            EnsureChannelFirstd("image", channel_dim="no_channel"),
            ScaleIntensityRanged("image", a_min=-1024, a_max=2048, b_min=0.0, b_max=1.0, clip=True),
            SpatialPadd("image", spatial_size=size),
        ]
    )
    crops = RandSpatialCropSamplesd("image", roi_size=size, num_samples=views.crops_per_volume, random_size=False)
    changed = Compose(
        [
            RandScaleCropd("image", roi_scale=views.scale[0], max_roi_scale=views.scale[1], random_size=True),
            Resized("image", spatial_size=size, mode="trilinear"),
            RandFlipd("image", prob=views.flip_probability, spatial_axis=0),
            RandHistogramShiftd("image", prob=views.histogram_probability, num_control_points=views.histogram_points),
            RandGaussianSmoothd(
                "image", prob=views.smooth_probability,
                sigma_x=views.smooth_sigma_vox, sigma_y=views.smooth_sigma_vox, sigma_z=views.smooth_sigma_vox,
            ),
        ]
    )  # fmt: skip
    chain = Compose([*kept.transforms, TwoViews(crops, changed)])
    for path in volumes:  # what a run meets in its first epoch only
        PersistentDataset([{"image": str(path)}], kept, cache_dir=cache)[0]
    names = [{"image": str(path)} for path in volumes] * EPOCH  # loader processes start once an epoch
    while True:
        dataset = PersistentDataset(names, chain, cache_dir=cache)
        loader = DataLoader(
            dataset, batch_size=config.volumes_per_step, shuffle=True, num_workers=loaders, drop_last=True
        )
        yield from (batch["views"] for batch in loader)


def peer_steps(config: PretrainConfig, volumes: list[Path], cache: Path, loaders: int = 0) -> Iterator[None]:
    encoder_config, objective = config.encoder, config.objective
    encoder = SegResEncoder(
        spatial_dims=3, init_filters=encoder_config.init_filters, in_channels=1, blocks_down=encoder_config.blocks_down
    )
    dim = encoder_config.init_filters * 2 ** (len(encoder_config.blocks_down) - 1)
    head = nn.Sequential(nn.Linear(dim, objective.hidden), nn.ReLU(), nn.Linear(objective.hidden, objective.projection))
    optimiser = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-4)
    for views in peer_batches(config, volumes, cache, loaders):
        z = head(encoder(views.flatten(0, 2))[-1].mean(dim=(2, 3, 4))).view(*views.shape[:3], -1)
        optimiser.zero_grad(set_to_none=True)
        within_volume_ntxent(z, objective.temperature).backward()
        optimiser.step()
        yield


def our_views(config: PretrainConfig, volumes: list[Path]) -> Iterator[Any]:
    views = build_views(config)
    for batch in batches(config, tuple(volumes), HERE, 0):
        assert not isinstance(batch, str)
        yield views.render(batch)["views"]


def our_steps(trainer: Trainer) -> Iterator[None]:
    while True:
        trainer.run_step()
        yield


def timed(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each side, in turns, after one round that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            if number:
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def peak(side: str, config: dict[str, Any], volumes: list[Path], scratch: Path) -> float:
    """GB that a fresh process of one side needs for three steps."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return float(pool.apply(alone, (side, config, volumes, scratch)))


def alone(side: str, config: dict[str, Any], volumes: list[Path], scratch: Path) -> float:
    torch.set_num_threads(1)
    parsed = parse(PretrainConfig, _tuples(config), "bench")
    if side == "ours":
        set_up_process()
    steps = our_steps(Trainer(parsed, tuple(volumes), HERE)) if side == "ours" else peer_steps(parsed, volumes, scratch)
    for _ in range(3):
        next(steps)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def one_of_ours(rank: int, size: int, config: dict[str, Any], volumes: list[Path], meet: Path, turn: Any) -> None:
    """A worker that makes a step whenever it is told to."""
    set_up_process()
    if size > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=size)
    parsed = parse(PretrainConfig, _tuples(config | {"workers": size}), "bench")
    trainer = Trainer(parsed, tuple(volumes), World(rank, size, torch.device("cpu")))
    while turn.recv():
        trainer.run_step()
        turn.send(True)


def the_peer(loaders: int, threads: int, config: dict[str, Any], volumes: list[Path], cache: Path, turn: Any) -> None:
    torch.set_num_threads(threads)
    steps = peer_steps(parse(PretrainConfig, _tuples(config), "bench"), volumes, cache, loaders)
    while turn.recv():
        next(steps)
        turn.send(True)


def on_cores(
    cores: int, peers: tuple[int, ...], block: dict[str, Any], volumes: list[Path], scratch: Path, rounds: int
) -> dict[str, float]:
    """Median seconds of a step of one volume per core, of the peer with each of these numbers of loader processes. Who
    is not on turn stands still, its loader processes too."""
    context = multiprocessing.get_context("spawn")
    block = block | {"volumes_per_step": cores}
    teams: dict[str, list[Any]] = {"ours": []}
    started = []
    jobs: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("ours", one_of_ours, (rank, cores, block, volumes, scratch / "meet")) for rank in range(cores)
    ]
    jobs += [(f"peer, {count} loaders", the_peer, (count, cores, block, volumes, scratch / "cache")) for count in peers]
    for name, function, arguments in jobs:
        mine, its = context.Pipe()
        process = context.Process(target=function, args=(*arguments, its))
        process.start()
        its.close()  # or a process that ends would be waited for
        started.append(process)
        teams.setdefault(name, []).append((psutil.Process(process.pid), mine))

    def step(team: list[Any]) -> None:
        for process, turn in team:
            for one in (process, *process.children(recursive=True)):
                one.resume()
            turn.send(True)
        for _, turn in team:
            turn.recv()
        for process, _ in team:
            for one in (*process.children(recursive=True), process):
                one.suspend()

    try:
        return timed({name: (lambda team=team: step(team)) for name, team in teams.items()}, rounds)
    finally:
        for process, turn in (member for team in teams.values() for member in team):
            with contextlib.suppress(OSError, psutil.NoSuchProcess):  # of those that ended with an error
                turn.send(False)
                for one in (process, *process.children(recursive=True)):
                    one.resume()
        for process in started:
            process.join()


def phantoms(folder: Path) -> list[Path]:
    config = load_stage(PreprocessConfig, "wholebody", "preprocess")
    plan = PhantomConfig(
        anatomy="trunk", pretrain_patients=VOLUMES, evaluation_patients=4, retest_patients=0, fault_share=0.0, seed=1
    )
    paths = []
    for number, planned in enumerate(plan_scans(plan)[:VOLUMES]):
        series = folder / "series" / str(number)
        series.mkdir(parents=True)
        scan(planned, series)
        paths.append(folder / "volumes" / f"{number}.b2nd")
        write_volume(paths[-1], standardise(read_series(sorted(series.glob("*.dcm"))), config), {})
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--crop", type=int, nargs=3, default=(16, 64, 64), help="voxels (default: 16 64 64)")
    parser.add_argument("--crops", type=int, default=15, help="per volume (default: 15)")
    parser.add_argument("--views-only", action="store_true", help="no training: for crops of real size")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default=BEST,
        help=f"of ours (here: {BEST}); the peer's is float32",
    )
    parser.add_argument("--machine", action="store_true", help="steps on all cores")
    arguments = parser.parse_args()
    block = read_yaml()["wholebody"]["pretrain"]
    block["precision"] = arguments.precision
    block |= {"workers": 0, "volumes_per_step": 1, "steps": 10**6, "log_every": 10**6}
    block["input"] |= {"size_vox": list(arguments.crop)}
    recipe = read_yaml(Path("components/pretrain/recipes/ct_fm.yaml"))["pretrain"]
    block["objective"]["views"] = recipe["objective"]["views"] | {"crops_per_volume": arguments.crops}
    config = parse(PretrainConfig, _tuples(block), "bench")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        volumes = phantoms(scratch)
        if arguments.machine:
            cores = len(os.sched_getaffinity(0))
            taken = on_cores(cores, (0, cores), block, volumes, scratch, arguments.rounds)
            best = min(seconds for name, seconds in taken.items() if name != "ours")
            said = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in taken.items())
            print(f"steps on all cores: {said}; ratio to the better of the peer's {best / taken['ours']:.2f}")
            return
        ours, peer = our_views(config, volumes), peer_batches(config, volumes, scratch / "cache")
        views = timed({"ours": lambda: next(ours), "peer": lambda: next(peer)}, max(arguments.rounds, VOLUMES + 1))
        count, size = 2 * arguments.crops, "x".join(map(str, arguments.crop))
        print(
            f"pretrain, {arguments.rounds} rounds, one thread, {arguments.precision}, {count} views of {size} a step: "
            f"views/s {count / views['ours']:.0f} and {count / views['peer']:.0f}, "
            f"ratio {views['peer'] / views['ours']:.1f}"
        )
        if arguments.views_only:
            return
        steps = on_cores(1, (0,), block, volumes, scratch, arguments.rounds)
        steps["peer"] = steps.pop("peer, 0 loaders")
        set_up_process()
        shares = {n: waiting(config.model_copy(update={"loaders": n}), volumes, arguments.rounds) for n in (0, 1)}
        memory = {side: peak(side, block, volumes, scratch / "cache") for side in ("ours", "peer")}
    print(
        f"steps {steps['ours']:.3f} and {steps['peer']:.3f} s, ratio {steps['peer'] / steps['ours']:.2f}; "
        f"waiting for data {shares[0]:.1%} of our step, {shares[1]:.1%} with one loader process; "
        f"peak memory {memory['ours']:.2f} and {memory['peer']:.2f} GB"
    )


def waiting(config: PretrainConfig, volumes: list[Path], rounds: int) -> float:
    """Share of the time that our loop waits for a batch, after its first step."""
    trainer = Trainer(config, tuple(volumes), HERE)
    trainer.run_step()
    trainer.incoming.waited, started = 0.0, time.perf_counter()
    for _ in range(rounds):
        trainer.run_step()
    return trainer.incoming.waited / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
