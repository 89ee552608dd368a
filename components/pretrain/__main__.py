"""Pretrain one line: curated volumes to a frozen encoder, its history and pictures."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from components import arithmetic
from components.code import ROOT, closure
from components.command import data_dir, run_stage, stored_volume
from components.ct.store import StoredVolume
from components.errors import UserError
from components.files import STATE, replacing, sha256_file, write_json, write_text
from components.models.build import parameter_count
from components.models.embed import WEIGHTS, EmbedConfig, Embedder, candidate_file, check_grid, write_weights
from components.models.weights import parted, read_weights
from components.pretrain.apart import Bucket
from components.pretrain.checkpoints import State
from components.pretrain.config import PretrainConfig
from components.pretrain.loading import load_batch
from components.pretrain.local_driver import train_here
from components.pretrain.objectives.build import build_objective, fresh_heads
from components.pretrain.plots import plot_history, plot_views
from components.pretrain.start import placed, placed_at
from components.pretrain.views import build_views
from components.settings import load_stage, shards
from components.tables import read_table

TRAINING = "training.parquet"
OBJECTIVE = "objective.safetensors"  # the encoder with heads and teacher: what a later run may go on from
SHOWN = 4  # volumes whose views are in the picture
RUNS = STATE / "runs"
ENTRY = "components/pretrain/__main__.py"
OF_A_STEP = (
    "components/pretrain/",
    "components/models/",
    "components/ct/store.py",
)  # rooms, and what reads the volumes
LOOKS_ON = {  # modules that a step does not run
    ENTRY,
    "components/pretrain/plots.py",
    "components/pretrain/start.py",
    "components/models/embed.py",
    "components/models/hub.py",
}
UNFELT = {"loaders", "checkpoint_every", "activation_checkpointing"}  # settings that change no bit of a weight
log = logging.getLogger(__name__)


def training_volumes(training: pd.DataFrame, store: Path, shards: int) -> tuple[Path, ...]:
    """Paths of the training set (columns series, sha256), in order of their keys.

    Args:
        training: the series.
        store: the line's folder of stage *preprocess*.
        shards: how many it has.

    Raises:
        UserError: there are none, or a file is missing.
    """
    paths = tuple(stored_volume(store, series, shards) for series in sorted(training["series"]))
    if not paths:
        raise UserError("training.parquet: no series; nothing to train on")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"volume {missing[0]}: missing ({len(missing)} in all); run preprocess again")
    return paths


def run_name(line: str, config: PretrainConfig, training: pd.DataFrame) -> str:
    """A name that changes with what decides the weights, and with that alone: parameters, the volumes' digests as the
    catalogue has them, code that a step runs, and the arithmetic and libraries that compute. Only equal runs resume."""
    digest = hashlib.sha256(json.dumps(config.model_dump(mode="json", exclude=UNFELT), sort_keys=True).encode())
    for series, sha256 in training.sort_values("series")[["series", "sha256"]].itertuples(index=False):
        digest.update(f"{series}\0{sha256}\n".encode())
    for path in sorted(closure([ENTRY]) - LOOKS_ON):
        if path.startswith(OF_A_STEP):
            digest.update(f"{path}\0{sha256_file(ROOT / path)}\n".encode())
    digest.update(f"{arithmetic.mode()} torch {torch.__version__} numpy {np.__version__}".encode())
    return f"{line}-{digest.hexdigest()[:16]}"


def _check_first(path: Path, config: PretrainConfig) -> None:
    """Raise UserError where the volumes are not on the encoder's grid: evaluation would say so after the training."""
    try:
        volume = StoredVolume(path)
    except (OSError, ValueError):
        return  # the training tells, or sees another in its place
    check_grid(volume, config.input)


def write_outputs(
    folder: Path, line: str, config: PretrainConfig, volumes: tuple[Path, ...], state: State, run: Path
) -> None:
    """Encoder, history, pictures and summary into ``folder``; ``run`` holds the encoders kept on the way."""
    objective = build_objective(config)
    objective.load_state_dict(state["objective"])
    weights = objective.encoder.state_dict().values()
    if not all(bool(torch.isfinite(weight).all()) for weight in weights if weight.is_floating_point()):
        raise UserError(f"the encoder's weights are not finite after step {config.steps}; try a lower "
                        f"{line}.pretrain.optimiser.learning_rate")  # fmt: skip
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)  # before the encoder is frozen
    embed_config = EmbedConfig(encoder=config.encoder, input=config.input)
    Embedder.from_encoder(objective.encoder, embed_config).save(folder / "encoder")
    write_weights(folder / "encoder" / OBJECTIVE, state["objective"])
    start = placed_at(config, run)
    if start is not None and config.steps == 0 and not _wrapped(start):
        shutil.copyfile(start, folder / "encoder" / WEIGHTS)  # the very bytes that were given
    if config.candidates > 1:
        write_weights(folder / "encoder" / candidate_file(config.steps), objective.encoder.state_dict())
        for step in config.candidate_steps():
            shutil.copyfile(run / candidate_file(step), folder / "encoder" / candidate_file(step))
    history = pd.DataFrame(state["history"]).astype({"step": int})
    write_text(folder / "history.csv", history.to_csv(index=False, float_format="%.8g", lineterminator="\n"))
    plot_history(history, folder / "history.png")
    views = build_views(config)
    shown = views.render(load_batch(config, volumes, min(SHOWN, config.volumes_per_step)))
    plot_views(views.sheet(shown), folder / "views.png")
    last = history.iloc[-1]
    lost = {path.name: count for path, count in zip(volumes, state["skipped"].tolist(), strict=True) if count}
    write_json(
        folder / "summary.json",
        {
            "steps": config.steps,
            "start": None if config.start is None else config.start.sha256,
            "volumes": len(volumes),
            "samples_skipped": lost,
            "samples_seen": config.steps * config.volumes_per_step,
            "parameters_encoder": parameter_count(objective.encoder),
            "parameters_training": trained,
            "device": "cuda" if last["gpus"] else "cpu",
            "final_loss": float(last["loss"]),
            "final_embedding_spread": float(last["embedding_spread"]),
            "final_effective_rank": float(last["effective_rank"]),
        },
    )


def _wrapped(weights: Path) -> bool:
    """Whether the encoder's tensors have other names there than its own."""
    tensors = read_weights(weights)
    return parted(tensors)[0].keys() != tensors.keys()


def _begun_with(line: str, config: PretrainConfig, run: Path) -> None:
    """Put the weights that the run starts from into its folder, and say what begins with them. Raises UserError."""
    weights = placed(line, config, run)
    if weights is None or config.start is None:
        return
    fresh = fresh_heads(build_objective(config), parted(read_weights(weights))[1])
    heads = f"heads begin anew ({fresh})" if fresh else "heads go on from it"
    log.info("starting from %s, SHA-256 %s: %s", config.start.told, config.start.sha256, heads)


def pretrain(line: str) -> None:
    """The stage: train (or go on), write the outputs in one piece, then drop the resume state."""
    config = load_stage(PretrainConfig, line, "pretrain")
    training = read_table(data_dir(line, "curate") / TRAINING)
    volumes = training_volumes(training, data_dir(line, "preprocess"), len(shards()))
    run = RUNS / run_name(line, config, training)
    _check_first(volumes[0], config)
    _begun_with(line, config, run)
    log.info("%d volumes, %d steps, %s workers, run %s", len(volumes), config.steps, config.workers, run.name)

    def progress(text: str) -> None:
        print(f"pretrain: {text}", file=sys.stderr, flush=True)

    if config.workers == 0 or config.steps == 0:
        state = train_here(config, volumes, run, progress)
    else:
        from components.pretrain.ray_driver import train_with_ray

        digests = tuple(training.sort_values("series")["sha256"])
        state = train_with_ray(config, volumes, run, progress, digests)
    with replacing(data_dir(line, "pretrain")) as folder:
        folder.mkdir(parents=True)
        write_outputs(folder, line, config, volumes, state, run)
    shutil.rmtree(run)
    if (bucket := Bucket.from_environment()) is not None:
        bucket.forget(run.name)


if __name__ == "__main__":
    run_stage("pretrain", __doc__ or "", pretrain)
