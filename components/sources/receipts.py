"""Receipts, kept between runs: a series is transferred again only where the source has other bytes for it, or where the
code that reads its headers changed and its files are gone.

State of this machine, beside the outputs, never one of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from components.code import code_digest
from components.files import STATE, write_text
from components.sources.kinds import KINDS

KEPT = STATE / "receipts"
# What the measurements of headers depend on.
DICOM_READER = ("components/ct/headers.py",)
NIFTI_READER = (*DICOM_READER, "components/ct/nifti.py")  # its rows have all columns of the other
LIBRARIES = ("nibabel", "numpy", "pydicom")


def entry(line: str, row: dict[str, Any], members: list[str], mixed_series: str) -> Path:
    """Where the receipt of a series lies, if it does.

    Args:
        line: model line.
        row, members: of the cohort.
        mixed_series: as which a series of several stacks is measured.
    """
    reader = NIFTI_READER if KINDS[row["source"]].nifti else DICOM_READER
    asked = [code_digest(reader, LIBRARIES), mixed_series, row.get("version", "")]
    asked += [row[name] for name in ("source", "location", "plan", "files", "bytes")]
    digest = hashlib.sha256(json.dumps([*asked, members], default=int).encode()).hexdigest()
    return KEPT / line / f"{row['series']}-{digest[:16]}.json"


def keep(path: Path, receipt: dict[str, Any]) -> None:
    """Write an entry. ``receipt``: plain values."""
    text = json.dumps(receipt)
    write_text(path, f"{_digest(text)}\n{text}\n")


def forget_others(entries: Collection[Path]) -> None:
    """Remove what other bytes, code or parameters made of the same series, and what killed runs left of it.

    Of a shard at once: a look at a folder of 150,000 entries takes a tenth of a second, and for each series hours.

    Args:
        entries: ``<series>-<digest>`` each, a file or a folder: of receipts, or of volumes.
    """
    names = {entry.name for entry in entries}
    series = {_series(name) for name in names}
    for folder in {entry.parent for entry in entries if entry.parent.is_dir()}:
        with os.scandir(folder) as found:
            old = [entry for entry in found if entry.name not in names and _series(entry.name) in series]
        for entry in old:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry, ignore_errors=True)
            else:
                Path(entry).unlink(missing_ok=True)


def _series(name: str) -> str:
    """Of an entry, or of one that is half-written."""
    return name.removeprefix(".").partition("-")[0]


def read(path: Path) -> dict[str, Any] | None:
    """An entry; None where there is none, or a damaged one."""
    try:
        digest, _, text = path.read_text(encoding="utf-8").removesuffix("\n").partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    if digest != _digest(text):
        return None
    os.utime(path)  # the cohort forgets what was long not in use
    receipt: dict[str, Any] = json.loads(text)
    return receipt


def plain(measured: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """``measured`` as values that JSON and a table's column can hold.

    Args:
        measured: one value per column.
        known: the columns, with the text, truth value or None of a series without files.

    Raises:
        TypeError: a value is none, or of another kind than its column; the message holds no value.
    """
    found = {name: value.item() if isinstance(value, np.generic) else value for name, value in measured.items()}
    for name, value in found.items():
        empty = known.get(name)
        kinds = type(empty) if isinstance(empty, str | bool) else (str, bool, int, float, type(None))
        if not isinstance(value, kinds):
            raise TypeError(f"column {name}: {type(value).__name__}")
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
