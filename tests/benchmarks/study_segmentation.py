"""Does pretraining help to segment real nodules from few labels? Fine-tuned, and from scratch by the same steps.

    python -m tests.benchmarks.study_segmentation --ct ../shared/ct --encoders <study>/across_volume [--steps 150]

Encoders are those of :mod:`study_learning` (`nodules --only across_volume`), pretrained without labels on the training
half's patients, a seed each. Each is fine-tuned with the decoder of kind ``segment`` on the nodules of 10, 25 and 100 %
of the training patients, as is the same network from fresh weights of the same seed: its batch norms know the labelled
nodules first, then its decoder learns, then both, with as many steps of as many crops. Dice of every nodule of the test
half, mean of a patient's nodules; the figure is the mean over patients and the three seeds, the difference is paired in
each of 2,000 draws of test patients. Everything here was fixed before the test half was met.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components.ct.nifti import read_nifti
from components.ct.standardise import resample_only
from components.figures.arrays import Array
from components.figures.resampling import draws, percentile_interval
from components.files import sha256_file
from components.models.embed import Embedder, fixed_threads, untrained_embedder
from components.preprocess.config import PreprocessConfig
from components.settings import _tuples, parse, read_yaml
from components.sources.lidc import ROOT, read_ratings
from components.tasks.dense import Labelled, Learner, labelled
from components.tasks.nodules import half_of, mirrored
from components.tasks.segment_config import DecoderConfig
from tests.benchmarks.study_learning import GRID, SEEDS

SHARES = (0.10, 0.25, 1.00)
WINDOW = (32, 32, 32)  # voxels of 1 mm about the file's centre, mirrored beyond the file: its extent must not tell
ARMS = ("fine-tuned", "scratch")


def decoder() -> DecoderConfig:
    """Small: three levels, ending at the finest."""
    shipped = next(task["decoder"] for task in read_yaml()["wholebody"]["tasks"].values() if task["kind"] == "segment")
    own = {
        "averaged": [1, 1, 1], "finest": 0, "width": 32, "dropout": 0.1, "voxels": 4000, "batch": 4096, "steps": 150,
        "crops": 16, "crop_cells": [6, 6, 6], "learning_rate": 0.003, "window_vox": [64, 64, 64], "overlap": 0.25,
    }  # fmt: skip
    return parse(DecoderConfig, {key: own.get(key, value) for key, value in shipped.items()} | own, "study")


def nodule(ct: Path, name: str, preprocess: PreprocessConfig) -> tuple[Any, Any]:
    """HU and mask (0, 1) of a nodule, through the window."""
    image = resample_only(read_nifti(ct / ROOT / "image" / name), preprocess)
    drawn = read_nifti(ct / ROOT / "mask" / name)
    drawn.hu[:] = (drawn.hu > 0) * 1000  # interpolated linearly, and cut at the half
    mask = resample_only(drawn, preprocess)
    cut = []
    for array in (image.hu, mask.hu):
        where = [
            mirrored(np.arange(size) + round((extent - size) / 2), extent)
            for size, extent in zip(WINDOW, array.shape, strict=True)
        ]
        cut.append(array[np.ix_(*where)])
    return cut[0], (cut[1] > 500).astype(np.uint8)


def learners(encoder: Embedder, seed: int, scans: Sequence[Labelled], config: DecoderConfig, steps: int,
             rates: tuple[float, float]) -> dict[str, Learner]:  # fmt: skip
    """Both arms, trained: the decoder first, then encoder and decoder together."""
    scratch = untrained_embedder(encoder.config, seed)
    found = {}
    for arm, start, rate in zip(ARMS, (encoder, scratch), rates, strict=True):
        learner = Learner(Embedder(copy.deepcopy(start.encoder), start.config, "cpu"), config, 2, seed)
        if arm == "scratch":
            learner.settle(scans)
        learner.fit(scans, [learner.levels(scan.image) for scan in scans])
        learner.fit_whole(scans, steps, rate)
        found[arm] = learner
    return found


def drawn_patients(patients: Sequence[str], share: float, seed: int) -> set[str]:
    order = sorted(set(patients), key=lambda patient: hashlib.sha256(f"{seed}/share/{patient}".encode()).hexdigest())
    return set(order[: max(2, round(share * len(order)))])


def dice(found: Any, truth: Any) -> float:
    both = np.count_nonzero(found.astype(bool) & truth.astype(bool))
    return float(2 * both / max(1, np.count_nonzero(found) + np.count_nonzero(truth)))


def told(rows: pd.DataFrame, seed: int) -> None:
    """Dice of both arms and their paired difference."""
    for share, of in rows.groupby("share"):
        of_patient = of.groupby(["patient", "arm"])["dice"].mean().unstack()  # over nodules and seeds
        weights = draws(of_patient.index.tolist(), 2000, seed).weights(of_patient.index.tolist())
        means: dict[str, Array] = {arm: weights @ of_patient[arm].to_numpy() / weights.sum(axis=1) for arm in ARMS}
        gain = means[ARMS[0]] - means[ARMS[1]]
        seeds = of.groupby(["seed", "arm"])["dice"].mean().unstack()
        each = ", ".join(f"{value:+.3f}" for value in seeds[ARMS[0]] - seeds[ARMS[1]])
        low, high = percentile_interval(gain)
        print(
            f"{share:4.0%} of the training patients: fine-tuned {means[ARMS[0]][0]:.3f}, scratch "
            f"{means[ARMS[1]][0]:.3f}; difference {gain[0]:+.3f} [{low:+.3f}, {high:+.3f}]; by seed {each}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ct", type=Path, required=True)
    parser.add_argument("--encoders", type=Path, required=True, help="a folder with <seed>/encoder")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rates", type=float, nargs=2, default=(0.001, 0.003), metavar=("TUNED", "SCRATCH"))
    parser.add_argument("--explore", action="store_true", help="within the training half, to choose steps and rates")
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES))
    arguments = parser.parse_args()
    line = read_yaml()["wholebody"]
    preprocess = parse(PreprocessConfig, _tuples(line["preprocess"] | GRID), "study")
    ratings = read_ratings(arguments.ct / ROOT, sha256_file(arguments.ct / ROOT / "labels.csv"))
    seed = int(line["evaluate"]["seed"])
    side = ratings["patient"].map(lambda patient: half_of(seed, str(patient)))
    if arguments.explore:
        ratings = ratings[side == "train"]
        side = ratings["patient"].map(lambda patient: half_of(seed + 1, str(patient)))
    read = {str(name): nodule(arguments.ct, str(name), preprocess) for name in ratings["file"]}
    print(f"{len(read)} nodules, {ratings['patient'].nunique()} patients", file=sys.stderr, flush=True)
    config, rows = decoder(), []
    for number in SEEDS:
        encoder = Embedder.load(arguments.encoders / str(number) / "encoder")
        with fixed_threads():
            grids = Learner(encoder, config, 2, number).grids
            ready = {name: labelled(*of, encoder.config, grids) for name, of in read.items()}
            for share in arguments.shares:
                start = time.perf_counter()
                chosen = drawn_patients(ratings.loc[side == "train", "patient"].tolist(), share, number)
                names = ratings.loc[ratings["patient"].isin(chosen), "file"].astype(str)
                rates = tuple(arguments.rates)
                both = learners(encoder, number, [ready[name] for name in names], config, arguments.steps, rates)
                for row in ratings[side == "test"].itertuples():
                    hu, mask = read[str(row.file)]
                    rows += [(share, number, arm, str(row.patient), dice(learner.segment(hu), mask))
                             for arm, learner in both.items()]  # fmt: skip
                spent = time.perf_counter() - start
                print(f"seed {number}, {share:.0%}, {len(names)} nodules: {spent:.0f} s", file=sys.stderr, flush=True)
    told(pd.DataFrame(rows, columns=["share", "seed", "arm", "patient", "dice"]), seed)


if __name__ == "__main__":
    main()
