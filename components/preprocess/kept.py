"""Finished volumes, kept between runs: a series is computed again only where its bytes, the grid or the code changed.

A shard that gains two series computes two; a run that was killed goes on behind the last series that it finished. State
of this machine, beside the outputs, never one of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from components import arithmetic
from components.code import ROOT, code_digest, imports
from components.ct.labels.stored import LabelMap, names_of, write_label_map
from components.ct.store import Volume, write_volume
from components.files import STATE, replacing, sha256_file
from components.preprocess.config import PreprocessConfig
from components.preprocess.masks import SeriesMasks
from components.sources.series import SeriesJob

KEPT = STATE / "volumes"
# Their own order of steps counts; what else they import moves files and starts workers.
STEPS = ("components/preprocess/stage.py", "components/preprocess/masks.py")
KEEPS = "components/preprocess/kept.py"
MAKERS = ("components/preprocess/", "components/ct/")  # rooms whose code makes a volume
VOLUME, LABELS, ROW = "volume.b2nd", "labels.b2nd", "row.json"
# What the voxels, and the bytes they are stored as, depend on besides our own code.
LIBRARIES = ("blosc2", "dicomsdl", "highdicom", "nibabel", "numpy", "opencv-python-headless", "pydicom", "pylibjpeg",
             "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "scipy")  # fmt: skip


def code_version() -> str:
    """Digest of the code and the libraries' versions that turn raw files into a stored volume."""
    imported = {module for step in STEPS for module in imports(step)}
    makers = (module for module in imported if module.startswith(MAKERS) and module not in (KEEPS, *STEPS))
    return code_digest(tuple(sorted(makers)), LIBRARIES) + "".join(sha256_file(ROOT / step) for step in STEPS)


def entry(job: SeriesJob, receipt: pd.DataFrame, config: PreprocessConfig, masks: SeriesMasks | None = None) -> Path:
    """Where the finished volume of a series lies, if it does.

    Args:
        job: the series.
        receipt: its files (columns file, sha256).
        config: the grid.
        masks: that a labelled set has of it.
    """
    series, files = job.row, sorted(zip(receipt["file"], receipt["sha256"], strict=True))
    code = [code_version(), arithmetic.mode(), config.grid, job.config.mixed_series]
    # No receipt holds the labels' bytes: the source's version stands for them.
    labels = "" if job.labels is None else f"labels {series.get('version', '')}"
    asked = json.dumps([*code, series["series"], series["source"], files, masks.asked if masks else labels])
    return KEPT / job.line / f"{series['series']}-{hashlib.sha256(asked.encode()).hexdigest()[:16]}"


def keep(
    folder: Path, row: dict[str, Any], volume: Volume | None, provenance: dict[str, Any], labels: LabelMap | None = None
) -> None:
    """Write an entry, whole or not at all. ``row``: what was measured; None for ``volume``: it did not decode."""
    with replacing(folder, durable=False) as temporary:  # read_whole compares it with its digests
        temporary.mkdir(parents=True)
        if volume is not None:
            write_volume(temporary / VOLUME, volume, provenance)
            row = {**row, "sha256": sha256_file(temporary / VOLUME), "labels_sha256": ""}
            if labels is not None:
                write_label_map(temporary / LABELS, labels, volume.affine)
                row["labels_sha256"] = _labels_digest(temporary / LABELS)
        (temporary / ROW).write_text(json.dumps(row))  # in the order of the catalogue's columns


def _labels_digest(path: Path) -> str:
    """Of a label map and its names."""
    return hashlib.sha256((sha256_file(path) + sha256_file(names_of(path))).encode()).hexdigest()


def read(folder: Path) -> dict[str, Any]:
    """What was measured. Raises OSError or ValueError where there is no such entry."""
    row: dict[str, Any] = json.loads((folder / ROW).read_text())
    return row


def read_whole(folder: Path) -> dict[str, Any] | None:
    """As :func:`read`; None where the entry is missing or has been damaged since it was written."""
    try:
        row = read(folder)
        os.utime(folder)  # the cohort forgets what was long not in use
        whole = not row["decoded"] or sha256_file(folder / VOLUME) == row["sha256"]
        if row["decoded"] and row["labels_sha256"]:
            whole = whole and _labels_digest(folder / LABELS) == row["labels_sha256"]
    except (OSError, ValueError, KeyError):
        return None
    return row if whole else None


def place(folder: Path, volume: Path, labels: Path) -> None:
    """Put an entry into the store.

    Args:
        folder: of the entry.
        volume: where its volume goes.
        labels: where its label map goes, if it has one.
    """
    _place(folder / VOLUME, volume)
    if (folder / LABELS).is_file():
        _place(folder / LABELS, labels)
        _place(names_of(folder / LABELS), names_of(labels))


def _place(kept: Path, target: Path) -> None:
    """As a second name of the same bytes where the disk can do that."""
    try:
        os.link(kept, target)
    except OSError:
        shutil.copyfile(kept, target)
