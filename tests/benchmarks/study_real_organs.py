"""What a decoder that learned from phantoms makes of patients: organs of the real scans, frozen and fine-tuned.

    python -m tests.benchmarks.study_real_organs --ct ../shared/ct [--steps 200]     # where wholebody's release is made

The encoder of the line and task ``organs_segmented`` as they are: the same labelled phantoms, decoder and seed. Dice of
each organ of the scan that has labels of all (``nifti/abdomen_pelvis``, drawn by TotalSegmentator: whole or in part in
the field of view), beside an untrained encoder. Nothing is chosen by it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components.ct.labels.onto_grid import label_map
from components.ct.nifti import read_nifti
from components.ct.origin import Origin
from components.ct.standardise import standardise
from components.evaluate.layout import Layout, inputs_of, read_cases
from components.models.embed import Embedder, fixed_threads, untrained_embedder
from components.models.segmenter import grids_of
from components.sources.sets import sets_of
from components.tasks import dense
from components.tasks.features import Volumes
from components.tasks.kinds import tasks_of
from components.tasks.segment_scans import open_scan

LINE, TASK = "wholebody", "organs_segmented"
# Values of TotalSegmentator v2.
THEIRS = {
    "spleen": (1,), "kidney_right": (2,), "kidney_left": (3,), "liver": (5,), "lung_left": (10, 11),
    "lung_right": (12, 13, 14), "spine": tuple(range(26, 51)), "heart": (51,), "aorta": (52,),
}  # fmt: skip


def labelled_phantoms(rows: pd.DataFrame, task: Any, encoder: Embedder, structures: list[str]) -> list[dense.Labelled]:
    """The scans that the task learns from, with their varied copies."""
    inputs = inputs_of(LINE)
    volumes = Volumes(inputs.config, inputs.preprocess, encoder.config.input.size_vox)
    grids, ready = grids_of(encoder.config, task.decoder), []
    for row in rows[rows["split"] == "train"].drop_duplicates("volume").itertuples():
        patient, name = str(row.patient), str(row.volume)
        scan = open_scan(str(row.case).split("/")[0], patient, name, volumes.open(name), structures)
        pairs = dense.with_copies(scan.volume.hu, scan.classes, task.decoder.varied, inputs.config.seed, patient)
        ready += [dense.labelled(hu, classes, encoder.config, grids) for hu, classes in pairs]
    return ready


def dice(predicted: Any, drawn: Any, structures: list[str]) -> list[str]:
    """Of each structure, as text."""
    told = []
    for code, structure in enumerate(structures, start=1):
        theirs, own = np.isin(drawn, THEIRS[structure]), predicted == code
        both, sizes = np.count_nonzero(own & theirs), np.count_nonzero(own) + np.count_nonzero(theirs)
        told.append(f"{2 * both / sizes:.2f}" if theirs.any() else "not there")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ct", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=0.0003)
    parser.add_argument(
        "--crop-cells", type=int, nargs=3, default=(4, 6, 6), help="of the coarsest level, to fine-tune by"
    )
    arguments = parser.parse_args()
    layout, task, inputs = Layout.of(LINE), tasks_of(LINE, sets_of(LINE))[TASK], inputs_of(LINE)
    rows = read_cases(layout.cases, TASK).table
    structures = sorted(set(rows["label"]))
    encoder = Embedder.load(layout.features / "encoder")
    folder = arguments.ct / "nifti" / "abdomen_pelvis"
    real = standardise(read_nifti(folder / "ct.nii.gz"), inputs.preprocess)
    drawn = label_map(folder / "labels_totalsegmentator.nii.gz", real, Origin()).values
    print("| encoder | " + " | ".join(structures) + " |")
    print("|---" * (1 + len(structures)) + "|")
    with fixed_threads():
        ready = labelled_phantoms(rows, task, encoder, structures)
        untrained = untrained_embedder(encoder.config, inputs.config.random_seeds[0])
        for name, embedder in (("ours", encoder), ("untrained", untrained)):
            frozen = dense.Learner(embedder, task.decoder, len(structures) + 1, inputs.config.seed)
            frozen.fit(ready, [frozen.levels(scan.image) for scan in ready])
            frozen.config = task.decoder.model_copy(update={"crop_cells": tuple(arguments.crop_cells)})
            tuned = frozen.fine_tuned(ready, arguments.steps, arguments.rate)
            for arm, learner in (("frozen", frozen), ("fine-tuned", tuned)):
                told = dice(learner.segment(real.hu), drawn, structures)
                print(f"| {name}, {arm} | " + " | ".join(told) + " |", flush=True)


if __name__ == "__main__":
    main()
