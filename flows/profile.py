"""``ctfoundry profile``: how fast a line's recipe trains on this machine, and what it waits for. Nothing is kept."""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from components.errors import UserError
from components.files import replacing, require_file_name
from components.pretrain.config import PretrainConfig
from components.pretrain.loop import Trainer
from components.pretrain.process import set_up_process
from components.pretrain.workers import World, on_gpus
from components.settings import load_stage, parse, shards

TRACED_STEPS = 3
ENDLESS = 10**9 - 1  # the most that is allowed


@dataclass(frozen=True)
class Speed:
    """Steps in steady state.

    Attributes:
        step_s, step_s_without_data: median seconds of a step, from the store and with one batch again and again.
        waiting: share of the time without a batch.
        flops: floating-point operations of a step, counted by torch.
        memory: most bytes on the device, or of this process on a CPU.
    """

    step_s: float
    step_s_without_data: float
    waiting: float
    flops: int
    memory: int


def measure(trainer: Trainer, steps: int) -> Speed:
    """Time ``steps`` steps from the store and as many without data loading, each after a third as many that warm up."""
    step_s, waiting = _timed(trainer, steps)
    trainer.incoming.repeat()
    without, _ = _timed(trainer, steps)
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        trainer.run_step()  # what torch.compile has made is not counted
    on_gpu = trainer.world.device.type == "cuda"
    most = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Speed(step_s, without, waiting, counter.get_total_flops(), most)


def _timed(trainer: Trainer, steps: int) -> tuple[float, float]:
    for _ in range(max(2, steps // 3)):
        _step(trainer)
    trainer.incoming.waited, taken, first = 0.0, [], time.perf_counter()
    for _ in range(steps):
        started = time.perf_counter()
        _step(trainer)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken), trainer.incoming.waited / (time.perf_counter() - first)


def _step(trainer: Trainer) -> None:
    trainer.run_step()
    if trainer.world.device.type == "cuda":
        torch.cuda.synchronize()


def trace(trainer: Trainer, path: Path) -> None:
    """Record some steps for chrome://tracing or ui.perfetto.dev."""
    on_gpu = trainer.world.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(TRACED_STEPS):
            _step(trainer)
    with replacing(path) as temporary:
        profiler.export_chrome_trace(str(temporary))


def run(arguments: argparse.Namespace) -> int:
    """The command. Raises UserError for a number that is not allowed, and where the line's data is not there."""
    from rich.table import Table

    from components.command import data_dir
    from components.pretrain.__main__ import TRAINING, training_volumes
    from components.progress import wide_console
    from components.tables import read_table

    if arguments.trace:
        require_file_name(arguments.trace)
    for option, least in (("steps", 1), ("volumes_per_step", 1), ("loaders", 0)):
        given = getattr(arguments, option)
        if given is not None and given < least:
            raise UserError(f"--{option.replace('_', '-')} {given} is not allowed: at least {least}")
    if arguments.peak_tflops is not None and arguments.peak_tflops <= 0:
        raise UserError(f"--peak-tflops {arguments.peak_tflops:g} is not allowed: above 0")
    config = load_stage(PretrainConfig, arguments.line, "pretrain")
    share = arguments.volumes_per_step or config.volumes_per_step // max(1, config.most_workers)
    loaders = config.loaders if arguments.loaders is None else arguments.loaders
    alone = {
        "start": None,  # weights change nothing of the speed
        "workers": 0,
        "unreadable": "stop",
        "volumes_per_step": share,
        "loaders": loaders,
        "steps": ENDLESS,
        "log_every": ENDLESS,
    }
    config = parse(PretrainConfig, config.model_dump() | alone, f"{arguments.line}.pretrain")
    training = data_dir(arguments.line, "curate") / TRAINING
    if not training.is_file():
        raise UserError(f"{training}: not found; make the line's data first, `dvc repro curate@{arguments.line}`")
    set_up_process()
    device = torch.device("cuda" if on_gpus(config.device, 1, torch.cuda.device_count()) else "cpu")
    store = data_dir(arguments.line, "preprocess")
    volumes = training_volumes(read_table(training), store, len(shards()))
    trainer = Trainer(config, volumes, World(0, 1, device))
    if arguments.trace:
        _step(trainer)
        trace(trainer, arguments.trace)
    speed = measure(trainer, arguments.steps)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "one CPU thread"
    table = Table(title=f"{arguments.line} on {name}, {share} volumes a step, {config.precision}", show_header=False)
    for label, value in rows(speed, share, arguments.peak_tflops).items():
        table.add_row(label, value)
    wide_console().print(table)
    if arguments.trace:
        print(f"timeline of {TRACED_STEPS} steps: {arguments.trace}")
    return 0


def rows(speed: Speed, volumes: int, peak_tflops: float | None) -> dict[str, str]:
    """What the table shows."""
    rate = speed.flops / speed.step_s_without_data
    peak = "" if peak_tflops is None else f", {rate / peak_tflops / 1e10:.1f} % of peak"
    return {
        "a step": f"{speed.step_s:.3f} s, {volumes / speed.step_s:.1f} volumes/s",
        "without data loading": f"{speed.step_s_without_data:.3f} s, "
        f"{volumes / speed.step_s_without_data:.1f} volumes/s",
        "waiting for data": f"{speed.waiting:.1%} of the time",
        "arithmetic": f"{speed.flops / 1e9:.1f} GFLOP a step, {rate / 1e12:.3f} TFLOP/s without data loading{peak}",
        "peak memory": f"{speed.memory / 1e9:.2f} GB",
    }
