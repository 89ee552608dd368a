"""The raw cache: scratch copies of series, one folder each, evicted after preprocessing and fetched again on demand.

A folder takes its name only when it is complete, and the name holds a digest of what was asked for, so that a folder
that exists is whole and is the right one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from components.acquire.config import TransferConfig
from components.acquire.sources import Source
from components.files import replacing, sha256_file
from components.params import PassingError, UserError

log = logging.getLogger(__name__)

RAW = Path(".ctfoundry/raw")
BUDGET_VARIABLE = "CTFOUNDRY_RAW_BUDGET_GB"
RESERVE = 200 * 2**20  # the rest of the machine needs a little, too
ANNOTATIONS = "annotations.json"  # beside the files, so that a resumed acquisition still has them
RECEIVED = "received.json"  # file to SHA-256 as it arrived: what a later look at the disk is compared with


class StopStageError(UserError):
    """No other series will fare better, so the stage stops; what is finished stays, and a later run goes on from it."""


class SourceGoneError(StopStageError, PassingError):
    """The source does not answer; it may at the next try."""


class DiskFullError(StopStageError):
    """The disk is full."""


def raw_folder(line: str, row: dict[str, Any], members: list[str], version: str) -> Path:
    """Where a series' raw files lie. ``version``: the source's, which tells apart data that share names."""
    asked = json.dumps([row["source"], row["location"], row["plan"], members, version])
    return RAW / line / f"{row['series']}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"


def fetch(
    source: Source, row: dict[str, Any], members: list[str], folder: Path, transfer: TransferConfig
) -> dict[str, str]:
    """Bring a series into ``folder``, unless it is there and unharmed; nothing half-done stays.

    Returns:
        File name to SHA-256, of the series' own files.

    Raises:
        DiskFullError: see there.
        UserError or OSError: the transfer failed.
    """
    if folder.is_dir():
        hashes = _hashes(folder)
        if hashes == _received(folder):
            return hashes
        log.warning(
            "series %s: its raw files on this disk have changed since they arrived; fetched again", row["series"]
        )
        evict(folder)
    try:
        with replacing(folder) as temporary:
            temporary.mkdir(parents=True)
            known = source.fetch(row, members, temporary, transfer)
            hashes = _hashes(temporary)
            (temporary / RECEIVED).write_text(json.dumps(hashes))
            if known is not None:
                (temporary / ANNOTATIONS).write_text(known.to_json(orient="records", double_precision=6))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"disk: full while a series came in at {RAW}") from None
        raise
    return hashes


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in data_files(folder)}


def _received(folder: Path) -> Any:
    """What was noted on arrival; None where the note is gone or damaged."""
    try:
        return json.loads((folder / RECEIVED).read_text())
    except (OSError, ValueError):
        return None


def make_room(needed: int, keep: set[Path]) -> None:
    """Evict series until ``needed`` more bytes fit into the cache's budget, then make sure that the disk holds them.

    The budget is ``CTFOUNDRY_RAW_BUDGET_GB`` on this machine; without one, the free disk is the budget.

    Args:
        needed: bytes that are still to come.
        keep: folders that may not go: those of the shard itself.

    Raises:
        UserError: the budget is no number, or budget or disk cannot hold the shard.
    """
    RAW.mkdir(parents=True, exist_ok=True)
    for partial in RAW.glob("*/.*.partial"):  # what a killed run has left
        if not _alive(int(partial.name.split(".")[-2])):
            evict(partial)
    held = {folder: _size(folder) for folder in RAW.glob("*/*") if folder.is_dir()}
    of_shard = sum(size for folder, size in held.items() if folder in keep)
    others = sorted((f for f in held if f not in keep), key=lambda f: (f.stat().st_mtime, f.name))
    budget = _budget()
    if budget is not None and needed + of_shard > budget:
        raise UserError(
            f"raw cache: the shard's {(needed + of_shard) / 1e9:.2f} GB are more than {BUDGET_VARIABLE} "
            f"({budget / 1e9:.2f} GB) allows; raise it, or use more shards"
        )
    while others and ((budget is not None and sum(held.values()) + needed > budget) or needed > _free()):
        oldest = others.pop(0)
        evict(oldest)
        del held[oldest]
    if needed > _free():
        raise UserError(
            f"disk: {needed / 1e9:.2f} GB of the shard are still to come, {_free() / 1e9:.2f} GB are free at {RAW}; "
            "free some, or use more shards"
        )


def _budget() -> int | None:
    text = os.environ.get(BUDGET_VARIABLE)
    if text is None:
        return None
    try:
        return int(float(text) * 1e9)
    except ValueError:
        raise UserError(f"{BUDGET_VARIABLE}: {text!r} is not allowed: a number of gigabytes") from None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _free() -> int:
    return shutil.disk_usage(RAW).free - RESERVE


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def data_files(folder: Path) -> list[Path]:
    """The series' own files, sorted: instances, or the one NIfTI volume. Masks and notes beside them are left out."""
    return sorted(p for p in folder.iterdir() if p.suffix == ".dcm" or p.name.startswith("volume.nii"))


def read_annotations(folder: Path) -> pd.DataFrame | None:
    """What the source knows about the series, or None."""
    path = folder / ANNOTATIONS
    return pd.DataFrame(json.loads(path.read_text())) if path.is_file() else None


def check(series: str, found: dict[str, str], receipt: pd.DataFrame) -> None:
    """Compare a series' raw files (name to SHA-256) with their receipt (columns file, sha256).

    Raises:
        UserError: a file is missing, new, or other bytes than those received.
    """
    expected = dict(zip(receipt["file"], receipt["sha256"], strict=True))
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        raise UserError(
            f"raw series {series}: {len(wrong)} of {len(expected)} files differ from the receipt, first {wrong[0]}; "
            "the source has changed since `acquire`: run `dvc repro --force acquire`"
        )


def evict(folder: Path) -> None:
    """Free the space of one series."""
    shutil.rmtree(folder, ignore_errors=True)
