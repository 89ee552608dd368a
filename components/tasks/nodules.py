"""Lung nodules of LIDC-IDRI (CC BY 3.0, doi:10.7937/K9/TCIA.2015.LO9QL9SX): real CT, rated by radiologists.

The data set is a folder with ``labels.csv`` and ``image/*.nii.gz`` in HU, each a crop that grows with its nodule. Size
alone predicts malignancy; so every nodule is seen through the same window, and the diameter is a baseline.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd

from components.ct.grid import GridConfig
from components.ct.nifti import read_nifti
from components.ct.standardise import resample_only
from components.ct.store import Volume
from components.errors import UserError
from components.sources.lidc import LABELS, ROOT, nodule_file, read_ratings
from components.sources.roots import root_of
from components.tasks.table import Built, Inputs, none_built, task_table

EXTENT = ("superior_mm", "posterior_mm", "left_mm")  # of a file, in the order of the window
# Task to column and to the label of each rating; a rating without one is left out, and counted.
RATINGS: dict[str, tuple[str, dict[int, str]]] = {
    "texture": ("Texture_value", dict.fromkeys((1, 2, 3, 4), "not_solid") | {5: "solid"}),
    "calcification": ("Calcification_value", dict.fromkeys((1, 2, 3, 4, 5), "present") | {6: "absent"}),
    "malignancy": (
        "Malignancy_value",
        dict.fromkeys((1, 2), "likely_benign") | dict.fromkeys((4, 5), "likely_malignant"),
    ),
}


def nodules(task: str, inputs: Inputs) -> Built:
    """Texture, calcification and malignancy of nodules; split by patient.

    Patients that the encoder has seen are left out, with a remark.

    Raises:
        UserError: the data is asked for but not configured, not the pinned one, or incomplete.
    """
    names = [f"{task}/{name}" for name in RATINGS]
    if inputs.config.lidc_nodules is None:
        return none_built(dict.fromkeys(names, "not asked for: evaluate.lidc_nodules is null"))
    root = root_of(ROOT)
    labels = read_ratings(root, inputs.config.lidc_nodules)
    seen = labels["patient"].isin(inputs.pretraining_patients())
    labels = labels[~seen]
    labels["split"] = labels["patient"].map(partial(half_of, inputs.config.seed))
    labels = pd.concat([labels, _grids(root, labels["file"])], axis=1)
    outside = int((labels[list(EXTENT)] < inputs.config.nodule_window_mm).any(axis=1).sum())
    parts, remarks = [], {}
    for name, (column, wording) in RATINGS.items():
        label = labels[column].map(wording)
        parts.append(labels.assign(task=f"{task}/{name}", label=label)[label.notna()])
        left_out = {"rated in between": int(label.isna().sum()), "of patients in pretraining": int(seen.sum())}
        said = ", ".join(f"{count} {why}" for why, count in left_out.items() if count)
        window = "The window is larger than {} of {} files, mirrored there, which tells something of a nodule's extent."
        told = [f"Nodules left out: {said}."] if said else []
        remarks[f"{task}/{name}"] = " ".join(told + [window.format(outside, len(labels))] * (outside > 0))
    return Built(task_table(parts), remarks=remarks)


def half_of(seed: int, patient: str) -> str:
    """``train`` or ``test``, by a seeded hash of the patient's key alone."""
    return "train" if hashlib.sha256(f"{seed}/{patient}".encode()).digest()[0] % 2 == 0 else "test"


def _grids(root: Path, files: pd.Series) -> pd.DataFrame:
    """Centre in RAS mm and extent of each file's grid, from the header."""
    rows = []
    for name in files:
        try:
            image: Any = nib.load(nodule_file(root, name))
        except (OSError, nib.filebasedimages.ImageFileError) as error:
            why = " ".join(str(error).split())
            raise UserError(f"root {ROOT!r}: a nodule of {LABELS} is not readable: {why}") from None
        shape, axes = np.asarray(image.shape[:3]), image.affine[:3, :3]
        centre = axes @ ((shape - 1) / 2) + image.affine[:3, 3]
        rows.append([*centre, *(np.abs(axes) @ shape)[::-1]])  # as the window: along z, y, x
    return pd.DataFrame(rows, columns=["x", "y", "z", *EXTENT], index=files.index)


def read_nodule(
    path: Path, preprocess: GridConfig, window_mm: tuple[float, float, float], patch: tuple[int, int, int]
) -> Volume:
    """One nodule on the line's grid, seen through a window of fixed size about the file's centre.

    Outside the window the picture is mirrored at the window's border until it fills the encoder's ``patch``: air round
    it would be an edge no CT has, and whatever is farther out would tell the nodule's size (with air round the file the
    malignancy of unseen nodules was told with AUC .886, mirrored with .854; by untrained encoders with .832 and .782).
    A file smaller than the window is mirrored at its own border; how many are is a remark of the tasks.
    """
    volume = resample_only(read_nifti(path), preprocess)
    window = [max(1, round(mm / voxel)) for mm, voxel in zip(window_mm, volume.spacing, strict=True)]
    # Two voxels more on each side than the encoder takes: its crop may round the centre either way.
    indices, origin = [], []
    for size, wanted, extent in zip(window, patch, volume.hu.shape, strict=True):
        start, lead = round((extent - size) / 2), (wanted + 4 - size) // 2
        seen = mirrored(np.arange(start, start + size), extent)
        indices.append(seen[mirrored(np.arange(wanted + 4) - lead, size)])
        origin.append(start - lead)
    affine = volume.affine.copy()
    affine[:3, 3] = volume.affine[:3, :3] @ np.asarray(origin, dtype=np.float64) + volume.affine[:3, 3]
    return Volume(hu=np.ascontiguousarray(volume.hu[np.ix_(*indices)]), affine=affine)


def mirrored(index: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Indices reflected at the borders of 0..size-1, the border repeated: -1 is 0, ``size`` is ``size - 1``."""
    within = index % (2 * size)
    return np.where(within < size, within, 2 * size - 1 - within)
