"""The raw cache: scratch copies of series, one folder each, evicted after preprocessing and fetched again on demand.

A folder takes its name only when it is complete, and the name holds a digest of what was asked for, so that a folder
that exists is whole and is the right one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from components.acquire.sources import Source
from components.files import replacing, sha256_file
from components.params import UserError

RAW = Path(".ctfoundry/raw")
ANNOTATIONS = "annotations.json"  # beside the files, so that a resumed acquisition still has them


def raw_folder(line: str, row: dict[str, Any], members: list[str], version: str) -> Path:
    """Where a series' raw files lie. ``version``: the source's, which tells apart data that share names."""
    asked = json.dumps([row["source"], row["location"], row["plan"], members, version])
    return RAW / line / f"{row['series']}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"


def fetch(source: Source, row: dict[str, Any], members: list[str], folder: Path) -> None:
    """Bring a series into ``folder``, unless it is there. Raises UserError or OSError; nothing half-done stays."""
    if folder.is_dir():
        return
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        known = source.fetch(row, members, temporary)
        if known is not None:
            (temporary / ANNOTATIONS).write_text(known.to_json(orient="records", double_precision=6))


def data_files(folder: Path) -> list[Path]:
    """The series' own files, sorted: instances, or the one NIfTI volume. Masks and notes beside them are left out."""
    return sorted(p for p in folder.iterdir() if p.suffix == ".dcm" or p.name.startswith("volume.nii"))


def read_annotations(folder: Path) -> pd.DataFrame | None:
    """What the source knows about the series, or None."""
    path = folder / ANNOTATIONS
    return pd.DataFrame(json.loads(path.read_text())) if path.is_file() else None


def check(folder: Path, receipt: pd.DataFrame) -> None:
    """Compare the raw files with their receipt (columns file, sha256).

    Raises:
        UserError: a file is missing, new, or other bytes than those received.
    """
    found = {path.name: sha256_file(path) for path in data_files(folder)}
    expected = dict(zip(receipt["file"], receipt["sha256"], strict=True))
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        raise UserError(
            f"raw series {folder.name.partition('-')[0]}: {len(wrong)} of {len(expected)} files differ from the "
            f"receipt, first {wrong[0]}; the source has changed since `acquire`: run `dvc repro --force acquire`"
        )


def evict(folder: Path) -> None:
    """Free the space of one series."""
    shutil.rmtree(folder, ignore_errors=True)
