"""A tiny project for the tests of pretraining: parameters of both lines and curated synthetic volumes."""

from __future__ import annotations

import copy
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from components.command import stored_volume
from components.ct.store import Volume, write_volume
from components.files import sha256_file
from components.pretrain.checkpoints import State, write_candidate, write_state
from components.pretrain.config import PretrainConfig
from components.pretrain.workers import World
from components.settings import _tuples, parse
from components.tables import write_table

HEAD_WINDOWS = [[40.0, 80.0], [80.0, 200.0], [600.0, 2800.0]]
RUN: dict[str, Any] = {
    "seed": 3,
    "start": None,
    "steps": 6,
    "volumes_per_step": 2,
    "candidates": 1,
    "accumulate": 1,
    "activation_checkpointing": False,
    "sharded": False,
    "compile": False,
    "checkpoint_every": 2,
    "log_every": 1,
    "device": "cpu",
    "workers": 0,
    "loaders": 0,
    "unreadable": "stop",
    "precision": "float32",
    "optimiser": {
        "learning_rate": 1e-3,
        "final_learning_rate": 0.0,
        "betas": [0.9, 0.999],
        "weight_decay": [1e-6, 1e-2],
        "warmup": 0.2,
        "clip_norm": 3.0,
    },
    "collapse": {"min_spread": 0.0, "patience": 2},
}
WHOLEBODY: dict[str, Any] = RUN | {
    "input": {
        "orientation": "SPL",
        "spacing_mm": [3.0, 1.0, 1.0],
        "sees": "crop",
        "size_vox": [8, 16, 16],
        "windows": [[512.0, 3072.0]],
    },
    "encoder": {"kind": "segres", "init_filters": 2, "blocks_down": [1, 1, 1]},
    "objective": {
        "kind": "within_volume",
        "temperature": 0.1,
        "hidden": 16,
        "projection": 8,
        "views": {
            "crops_per_volume": 3,
            "body_fraction": 0.3,
            "scale": [0.4, 1.0],
            "flip_probability": 0.5,
            "histogram_probability": 0.5,
            "histogram_points": 5,
            "smooth_probability": 0.5,
            "smooth_sigma_vox": [0.25, 1.5],
        },
    },
}
HEAD: dict[str, Any] = RUN | {
    "input": {
        "orientation": "RAS",
        "spacing_mm": [1.0, 1.0, 1.0],
        "sees": "scan",
        "size_vox": [24, 24, 24],
        "windows": HEAD_WINDOWS,
    },
    "encoder": {
        "kind": "vit",
        "patch_vox": 12,
        "dim": 24,
        "depth": 2,
        "heads": 2,
        "mlp_ratio": 2.0,
        "registers": 1,
        "position_waves": "grid",
        "pooling": "class_mean",
    },
    "objective": {
        "kind": "dino_mae",
        "mae_weight": 1.0,
        "dino": {
            "standardise": True,
            "hidden": 16,
            "bottleneck": 8,
            "prototypes": 16,
            "student_temperature": 0.1,
            "teacher_temperature": 0.04,
            "centre_momentum": 0.9,
            "ema_start": 0.9,
            "ema_end": 1.0,
            "koleo_weight": 0.0,
        },
        "ibot": {"weight": 1.0, "prototypes": 16, "masked_views": 0.5, "mask_ratio": [0.2, 0.5]},
        "mae": {"mask_ratio": 0.75, "decoder_dim": 12, "decoder_depth": 1, "decoder_heads": 2, "normalise": False},
        "views": {
            "globals": 2,
            "locals": 2,
            "global_side": [0.5, 1.0],
            "local_side": [0.33, 0.58],
            "local_field": 0.857,
            "local_size_vox": [12, 12, 12],
            "flip_probability": 0.5,
            "shift": 0.05,
            "smooth_probability": 0.5,
            "smooth_sigma_vox": [0.25, 1.0],
            "gamma": [0.8, 1.25],
            "cache_mb": 16,
        },
    },
}
BLOCKS = {"wholebody": WHOLEBODY, "head": HEAD}
AFFINES = {
    "wholebody": np.array([[0, 0, -1, 0], [0, -1, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64),
    "head": np.eye(4),
}


def block(line: str, **changes: Any) -> Any:
    """The line's block of parameters as the parser would hand it over."""
    return _tuples(copy.deepcopy(BLOCKS[line]) | changes)


def volume(line: str, seed: int) -> Volume:
    """A soft ball in air, both with noise, other in size and place for every seed."""
    rng = np.random.default_rng(seed)
    shape = (20, 40, 44) if line == "wholebody" else (40, 44, 36)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    centre = rng.uniform(-0.2, 0.2, size=(3, 1, 1, 1))
    inside = ((grid - centre) ** 2).sum(0) < rng.uniform(0.5, 0.9)
    hu = np.where(inside, rng.normal(40, 20, shape) + 30 * np.sin(8 * grid[1]), rng.normal(-980, 15, shape))
    return Volume(hu=hu.astype(np.int16), affine=AFFINES[line])


def write_project(root: Path, line: str, volumes: int = 4, **changes: Any) -> Path:
    """``params.yaml`` and ``data/<line>/curate/training.parquet`` with its volumes below ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    block = {"reproducible": "machine", "pretrain": copy.deepcopy(BLOCKS[line]) | changes}
    content = {"lines": [line], "shards": [0], line: block}
    (root / "params.yaml").write_text(yaml.safe_dump(content))
    rows = []
    for index in range(volumes):
        path = stored_volume(root / "data" / line / "preprocess", f"s{index:016x}", 1)
        write_volume(path, volume(line, index), {"series": path.stem})
        rows.append({"series": path.stem, "sha256": sha256_file(path)})
    write_table(root / "data" / line / "curate" / "training.parquet", pd.DataFrame(rows))
    return root


def wait_for_checkpoint(runs: Path, process: subprocess.Popen[Any], seconds: float = 240) -> None:
    """Wait until Ray's own snapshot of a run names a checkpoint: only then does a restart go on from it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        for snapshot in runs.rglob("checkpoint_manager_snapshot.json"):
            if "checkpoint_" in snapshot.read_text().replace("checkpoint_results", ""):
                return
        time.sleep(0.1)
    raise AssertionError(f"no checkpoint counted before the run ended or {seconds:.0f} s were over")


HERE = World(0, 1, torch.device("cpu"))


class InMemory:
    """Keeps every checkpoint, as a file would: a later step must not change an earlier state."""

    def __init__(self, folder: Path, start: State | None = None) -> None:
        self.folder, self.start, self.steps = folder, start, list[int]()

    def load(self) -> State | None:
        return self.start

    def save(self, state: State | None) -> None:
        if state is not None:  # all workers but the first have none
            self.steps.append(state["step"])
            write_state(self.folder / f"{state['step']}.pt", state)

    def keep(self, step: int, weights: Mapping[str, torch.Tensor]) -> None:
        write_candidate(self.folder, step, weights)

    def settle(self, wait: bool) -> None:
        """Nothing is on its way."""


def config_of(line: str, **changes: Any) -> PretrainConfig:
    return parse(PretrainConfig, block(line, **changes), f"{line}.pretrain")


def volumes_of(root: Path, line: str) -> tuple[Path, ...]:
    return tuple(sorted((root / "data" / line / "preprocess" / "0" / "volumes").iterdir()))
