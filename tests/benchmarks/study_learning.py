"""Does pretraining teach anything that chance, brightness or size do not? Three seeds against three random encoders.

    python -m tests.benchmarks.study_learning nodules --ct ../shared/ct [--out .ctfoundry/study] [--jobs 2]
                                                      [--only across_volume --folds | --explore]
    python -m tests.benchmarks.study_learning wholebody      # in a checkout whose data/wholebody is made
    python -m tests.benchmarks.study_learning head

Fixed before any figure was seen: frozen features, pooled as the line pools (the mean over the last level of the crop
round the point; class and mean token of the whole head); linear probe with the line's own penalty; patients split by a
seeded hash; the mean over three pretraining seeds less the mean over three random encoders, paired within each of 1,000
bootstrap draws of test patients. Random encoders are of two kinds: untouched, and with batch-norm statistics
re-estimated on training crops. Phantom tasks named in advance: organs (wholebody), findings (head), by retrieval.

``nodules``: LIDC nodules on a 1 mm grid, crops of 24 mm. Pretrained, without labels, on the nodule volumes of training
patients and on the folder's other scans of that part (the sarcomas are split otherwise: some that are tested were seen,
without labels). Calcification is the primary task, texture the secondary, the rest descriptive. ``--explore`` stays
within the training half, for choosing parameters. ``--folds`` tests every patient once: five parts by a seeded hash,
each tested by encoders and probes that have met none of its patients; a figure is the mean over the parts, patients
drawn within each. Encoders are kept in ``--out``: what is there is not trained again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from components.command import data_dir
from components.curate.stage import training_set
from components.evaluate.cases import build_cases
from components.evaluate.layout import inputs_of
from components.figures.averages import class_mean
from components.figures.classification import macro_auc
from components.figures.resampling import draws, percentile_interval
from components.figures.retrieval import retrieve
from components.figures.similarity import cosine_similarity
from components.files import sha256_file, write_text
from components.models.embed import EmbedConfig, Embedder, untrained_embedder
from components.preprocess.config import PreprocessConfig
from components.pretrain.__main__ import training_volumes
from components.pretrain.config import PretrainConfig
from components.pretrain.loading import load_batch
from components.pretrain.local_driver import train_here
from components.pretrain.objectives.build import build_objective
from components.pretrain.views import build_views
from components.settings import _tuples, parse, read_yaml, shards
from components.sources.lidc import ROOT
from components.sources.sets import sets_of
from components.tables import read_table, write_table
from components.tasks.config import EvaluateConfig
from components.tasks.features import Features, Method, Volumes, encoder_method, extract, places_of
from components.tasks.kinds import tasks_of
from components.tasks.plain import baselines
from components.tasks.probes import linear_probe
from components.tasks.table import task_table
from tests.benchmarks.study_nodules import FOLDS, WholeNodules, prepare_nodules, sarcomas

SEEDS, RANDOM_SEEDS = (7, 8, 9), (101, 102, 103)
GRID: dict[str, Any] = {"orientation": "SPL", "spacing_mm": [1.0, 1.0, 1.0]}
CROP = (24, 24, 24)  # of a file at its full extent; what lies outside is air, as everywhere in the store
RUN = {"volumes_per_step": 64, "workers": 0, "checkpoint_every": 50, "log_every": 10}
# Chosen within the training half, before any figure of these encoders on the test half (RESULTS.md). Three levels: a
# crop of 24 voxels ends in 6^3 places. Of the line's five levels, untouched, the last tells calcium as well as any
# encoder that was pretrained. A gain is expected of across_volume and vicreg: the others were hardly tried.
SEGRES: dict[str, Any] = {"kind": "segres", "init_filters": 8, "blocks_down": [1, 2, 2]}
STEPS = {"across_volume": 300, "vicreg": 200, "within_volume": 100, "simsiam": 100}  # the others: 80, of 32 volumes
HEADS: dict[str, dict[str, Any]] = {
    "across_volume": {"temperature": 0.1, "hidden": 128, "projection": 64},
    "within_volume": {"temperature": 0.1, "hidden": 128, "projection": 64},
    "vicreg": {"invariance": 25.0, "variance": 25.0, "covariance": 1.0, "hidden": 256, "projection": 256},
    "simsiam": {"hidden": 256, "projection": 256, "predictor": 64},
}
VIT = {
    "kind": "vit", "patch_vox": 6, "dim": 96, "depth": 4, "heads": 3, "mlp_ratio": 4.0, "registers": 4,
    "position_waves": "grid",
}  # fmt: skip
VIT_KINDS = ("dino", "dino_ibot", "mae", "dino_mae")


@dataclass(frozen=True)
class Study:
    """What a set of runs shares.

    Attributes:
        tasks: task to its figure, in the order of the table.
        table: the task table, split into train and test.
        runs: objective to its parameters.
    """

    line: Any
    tasks: Mapping[str, str]
    table: pd.DataFrame
    training: tuple[Path, ...]
    volumes: Volumes
    evaluate: EvaluateConfig
    runs: Mapping[str, dict[str, Any]]


def nodule_runs() -> dict[str, dict[str, Any]]:
    content = read_yaml()
    body, head = content["wholebody"]["pretrain"], content["head"]["pretrain"]
    grid = GRID | {"sees": "crop", "size_vox": list(CROP), "windows": body["input"]["windows"]}
    # Hounsfield units tell calcium: views that bend them teach the encoder to overlook it. With the line's histogram
    # shift and smoothing across_volume fell to .76 where random encoders have .89 (calcification, test half).
    views = body["objective"]["views"] | {
        "crops_per_volume": 1, "body_fraction": 0.0, "histogram_probability": 0.0, "smooth_probability": 0.0,
    }  # fmt: skip
    runs = {}
    for kind, sizes in HEADS.items():
        own = {"volumes_per_step": 4} if kind == "within_volume" else {}
        crops = {"crops_per_volume": 16} if kind == "within_volume" else {}
        objective = {"kind": kind, "views": views | crops} | sizes
        # autocast: 1.9 times the steps a second where the processor has bf16 arithmetic
        short = {"steps": STEPS[kind], "precision": "bfloat16", "encoder": SEGRES}
        runs[kind] = body | RUN | own | short | {"input": grid, "objective": objective}
    for kind in VIT_KINDS:
        multi = head["objective"]["views"] | {
            "global_side": [0.75, 1.0], "local_side": [0.4, 0.6],
            "local_size_vox": [max(6, n // 2) for n in CROP],
            "shift": 0.0, "gamma": [1.0, 1.0], "smooth_probability": 0.0,
        }  # fmt: skip
        objective = head["objective"] | {"kind": kind, "views": multi}
        objective["dino"] = objective["dino"] | {"koleo_weight": 0.1, "ema_start": 0.99}
        encoder = VIT | {"pooling": "class_mean"}
        short = {"steps": 80, "volumes_per_step": 32, "optimiser": head["optimiser"] | {"learning_rate": 0.001}}
        runs[kind] = head | RUN | short | {"input": grid, "encoder": encoder, "objective": objective}
    return runs


def nodule_study(ct: Path, out: Path, part: str) -> Study:
    os.environ[f"CTFOUNDRY_ROOT_{ROOT.upper()}"] = str((ct / ROOT).resolve())
    content = read_yaml()["wholebody"]
    labels = sha256_file(ct / ROOT / "labels.csv")
    changes = {"lidc_nodules": labels, "nodule_window_mm": [float(n) for n in CROP]}
    evaluate = parse(EvaluateConfig, content["evaluate"] | changes, "evaluate")
    preprocess = parse(PreprocessConfig, content["preprocess"] | GRID, "preprocess")
    if not (out / "table.parquet").is_file():
        tables = [prepare_nodules(ct, out, evaluate, preprocess, part)]
        tables += [sarcomas(ct, out, preprocess)] if part == "nodules" else []
        write_table(out / "table.parquet", task_table(tables))
    tasks = {f"{ROOT}/{name}": "linear_auc" for name in ("calcification", "texture", "malignancy")}
    tasks |= {"sarcoma": "linear_auc"} if part == "nodules" else {}
    return Study(
        "wholebody", tasks, read_table(out / "table.parquet"), tuple(sorted((out / "volumes").iterdir())),
        WholeNodules(evaluate, preprocess, CROP), evaluate, nodule_runs(),
    )  # fmt: skip


def line_study(line: str) -> Study:
    """A line's own phantoms, as its release was made from them."""
    inputs, tasks = inputs_of(line), tasks_of(line, sets_of(line))
    evaluate, preprocess = inputs.config, inputs.preprocess
    table = task_table([asked.built.table for asked in build_cases(inputs, tasks).values()])
    named = "organs" if line == "wholebody" else "findings"
    table = table[table["task"].str.startswith(named)]
    pretrain = read_yaml()[line]["pretrain"]
    volumes = Volumes(evaluate, preprocess, tuple(pretrain["input"]["size_vox"]))
    runs = {pretrain["objective"]["kind"]: pretrain | {"workers": 0}}
    training = training_volumes(training_set(inputs.curated), data_dir(line, "preprocess"), len(shards()))
    return Study(line, {named: "retrieval_map"}, table, training, volumes, evaluate, runs)


def config_of(study: Study, objective: str, seed: int) -> PretrainConfig:
    return parse(PretrainConfig, _tuples(study.runs[objective] | {"seed": seed}), objective)


def train_one(study: Study, objective: str, seed: int, folder: Path) -> None:
    """Train, and write the encoder with the seconds that it took."""
    config = config_of(study, objective, seed)
    started = time.monotonic()
    state = train_here(config, study.training, folder / "run", lambda line: print(objective, seed, line, flush=True))
    trained = build_objective(config)
    trained.load_state_dict(state["objective"])
    embed = EmbedConfig(encoder=config.encoder, input=config.input)
    Embedder.from_encoder(trained.encoder, embed).save(folder / "encoder")
    write_text(folder / "seconds.txt", f"{time.monotonic() - started:.0f}\n")


def recalibrated(embedder: Embedder, config: PretrainConfig, training: tuple[Path, ...]) -> Embedder:
    """Batch-norm statistics as the mean over training crops, as pretraining leaves them behind, weights untouched."""
    norms = [module for module in embedder.encoder.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean
    views = build_views(config)
    with torch.no_grad():
        embedder.encoder.train()
        for part in views.render(load_batch(config, training, 64))["views"].flatten(0, 2).split(128):
            embedder.encoder(part)
        embedder.encoder.eval()
    return embedder


def methods_of(study: Study, out: Path) -> dict[str, Method]:
    methods = baselines(study.evaluate, config_of(study, next(iter(study.runs)), SEEDS[0]).input)
    seen: dict[str, str] = {}
    for objective in study.runs:
        config = config_of(study, objective, SEEDS[0])
        for seed in SEEDS:
            methods[f"{objective}|{seed}"] = encoder_method(Embedder.load(out / objective / str(seed) / "encoder"))
        kind = config.encoder.kind
        if kind in seen:
            continue
        seen[kind] = objective
        like = Embedder.load(out / objective / str(SEEDS[0]) / "encoder")
        for seed in RANDOM_SEEDS:
            methods[f"random {kind}|{seed}"] = encoder_method(untrained_embedder(like.config, seed))
            if kind == "segres":
                again = recalibrated(untrained_embedder(like.config, seed), config, study.training)
                methods[f"random {kind}, recalibrated|{seed}"] = encoder_method(again)
    return methods


def replicates(study: Study, task: str, figure: str, features: Callable[[pd.DataFrame], Any]) -> Any:
    """The figure and its bootstrap replicates; of several tasks below one name, their mean."""
    found = []
    for name, rows in study.table.groupby("task"):
        if name != task and not str(name).startswith(f"{task}/"):
            continue
        test = (rows["split"] == "test").to_numpy()
        labels, patients = rows["label"].to_numpy(np.str_), rows["patient"].to_numpy(np.str_)
        classes = sorted(set(labels.tolist()))
        vectors = features(rows)
        weights = draws(patients[test].tolist(), study.evaluate.bootstrap, study.evaluate.seed).weights(
            patients[test].tolist()
        )
        if figure == "linear_auc":
            scores = linear_probe(vectors[~test], labels[~test], vectors[test], classes, study.evaluate.linear_c)
            found.append(macro_auc(scores, labels[test], classes, weights))
        else:
            similarity = cosine_similarity(vectors[test], vectors, vectors[~test].mean(axis=0))
            once = np.ones((1, len(labels)))
            precision = retrieve(similarity, np.flatnonzero(test), labels, patients, once).average_precision[0]
            found.append(class_mean(precision, labels[test], classes, weights))
    return np.nanmean(found, axis=0)


def figures(study: Study, out: Path) -> dict[str, dict[str, Any]]:
    """Task to method (``name|seed``) to its figure and replicates."""
    features: Features = extract(places_of([study.table]), methods_of(study, out), study.volumes, study.volumes._patch)
    found: dict[str, dict[str, Any]] = {}
    for task, figure in study.tasks.items():
        found[task] = {
            method: replicates(study, task, figure, lambda rows, m=method: features.of(m, rows))
            for method in features.by_method
        }
        if study.table.loc[study.table["task"] == task, "diameter_mm"].notna().all() and figure == "linear_auc":
            size = replicates(study, task, figure, lambda rows: rows[["diameter_mm"]].to_numpy(dtype=np.float64))
            found[task]["diameter only"] = size
    return found


def report(studies: Mapping[Path, Study]) -> str:
    """The table of one study, or of its folds: the mean over them."""
    parts = [figures(study, out) for out, study in studies.items()]
    study = next(iter(studies.values()))
    kinds = {objective: config_of(study, objective, SEEDS[0]).encoder.kind for objective in study.runs}
    lines = ["| task | features | figure | less random, untouched | less random, recalibrated |", "|---" * 5 + "|"]
    for task in study.tasks:
        groups: dict[str, list[Any]] = {}
        for method in parts[0][task]:
            groups.setdefault(method.split("|")[0], []).append(np.mean([p[task][method] for p in parts], axis=0))
        means = {name: np.mean(values, axis=0) for name, values in groups.items()}
        for name, values in groups.items():
            kind = kinds.get(name)
            against = [f"random {kind}", f"random {kind}, recalibrated"]
            cells = [difference(means[name], means[other]) if other in means else "" for other in against]
            seeds = f" ({', '.join(f'{float(v[0]):.3f}' for v in values)})" if len(values) > 1 else ""
            lines.append(f"| {task} | {name} | {float(means[name][0]):.3f}{seeds} | {' | '.join(cells)} |")
    return "\n".join(lines)


def difference(ours: Any, theirs: Any) -> str:
    low, high = percentile_interval(ours - theirs)
    return f"{float(ours[0] - theirs[0]):+.3f} [{low:+.3f}, {high:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("nodules", "wholebody", "head"))
    parser.add_argument("--ct", type=Path, default=Path("../shared/ct"))
    parser.add_argument("--out", type=Path, default=Path(".ctfoundry/study"))
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one core each")
    parser.add_argument("--explore", action="store_true", help="nodules: within the training half")
    parser.add_argument("--folds", action="store_true", help=f"nodules: every patient tested once, {FOLDS} parts")
    parser.add_argument("--only", nargs="+", metavar="OBJECTIVE", help="these objectives (default: all)")
    parser.add_argument("--one", nargs=3, metavar=("PART", "OBJECTIVE", "SEED"), help="train this one and stop")
    arguments = parser.parse_args()
    nodules_asked, ct = arguments.what == "nodules", arguments.ct
    parts = [arguments.what]
    if nodules_asked and arguments.explore:
        parts = ["explore"]
    elif nodules_asked and arguments.folds:
        parts = [f"fold-{number}" for number in range(FOLDS)]
    if arguments.one:
        parts = [arguments.one[0]]
    outs = {part: arguments.out / part for part in parts}
    studies = {outs[part]: nodule_study(ct, outs[part], part) if nodules_asked else line_study(part) for part in parts}
    if arguments.only:
        studies = {out: replace(s, runs={name: s.runs[name] for name in arguments.only}) for out, s in studies.items()}
    if arguments.one:
        part, objective, seed = arguments.one
        train_one(studies[outs[part]], objective, int(seed), outs[part] / objective / seed)
        return
    runs = next(iter(studies.values())).runs
    jobs = [(part, objective, str(seed)) for seed in SEEDS for part in parts for objective in runs]

    def start(job: tuple[str, str, str]) -> None:
        part, objective, seed = job
        if not (outs[part] / objective / seed / "seconds.txt").is_file():
            again = [sys.executable, "-m", "tests.benchmarks.study_learning", *sys.argv[1:]]
            subprocess.run([*again, "--one", *job], check=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(start, jobs))
    took = sorted(int((outs[part] / o / s / "seconds.txt").read_text()) for part, o, s in jobs)
    on = ", ".join(str(len(study.training)) for study in studies.values())
    table = f"{report(studies)}\n\n{on} volumes pretrained on; {took[0]} to {took[-1]} s a run\n"
    write_text(arguments.out / ("folds" if len(parts) > 1 else parts[0]) / "table.md", table)
    print(table)


if __name__ == "__main__":
    main()
