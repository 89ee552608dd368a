"""The raw cache: scratch copies of series, one folder each, which go after preprocessing and are fetched on demand.

A folder takes its name only when it is complete, and the name holds a digest of what was asked for, so that a folder
that exists is whole and is the right one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from components.errors import PassingError, UserError
from components.files import STATE, StopStageError, replacing, sha256_file
from components.sources.config import TransferConfig
from components.sources.interface import Source

log = logging.getLogger(__name__)

RAW = STATE / "raw"
BUDGET_VARIABLE = "CTFOUNDRY_RAW_BUDGET_GB"
RESERVE = 200 * 2**20  # the rest of the machine needs a little, too
ANNOTATIONS = "annotations.json"  # beside the files, so that a resumed acquisition still has them
PREPROCESSED = "preprocessed"  # a mark: no stage waits for these files any more
VOLUMES_PER_RAW = 1.0  # the store and DVC's copy of it, each at most half of the raw bytes
RECEIVED = "received.json"  # file to SHA-256 as it arrived: what a later look at the disk is compared with


class SourceGoneError(StopStageError, PassingError):
    """The source does not answer; it may at the next try."""


def raw_folder(line: str, row: dict[str, Any], members: list[str]) -> Path:
    """Where a series' raw files lie: ``row`` of the cohort, and the locations of its files."""
    asked = json.dumps([row["source"], row["location"], row["plan"], members, row.get("version", "")])
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
    with replacing(folder, durable=False) as temporary:  # what is read is compared with RECEIVED
        temporary.mkdir(parents=True)
        known = source.fetch(row, members, temporary, transfer)
        hashes = _hashes(temporary)
        (temporary / RECEIVED).write_text(json.dumps(hashes))
        if known is not None:
            (temporary / ANNOTATIONS).write_text(known.to_json(orient="records", double_precision=6))
    return hashes


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in data_files(folder)}


def _received(folder: Path) -> Any:
    """What was noted on arrival; None where the note is gone or damaged."""
    try:
        return json.loads((folder / RECEIVED).read_text())
    except (OSError, ValueError):
        return None


@contextmanager
def reserved(series: Mapping[Path, int]) -> Iterator[None]:
    """Room in the cache, and the folders of ``series`` for this run alone, as long as the block lasts.

    What no run uses and nobody waits for is evicted, oldest first, until all of ``series`` fits into the cache's budget
    and on the disk, with the volumes that will be made of it. The budget is ``CTFOUNDRY_RAW_BUDGET_GB`` on this
    machine; without one, the free disk is the budget. Runs of other lines, and on other hosts that share the folder,
    see each other by the note that each holds locked.

    Args:
        series: folder to bytes that the source says, 0 where that is known only after the transfer.

    Raises:
        UserError: the budget is no number; or budget or disk cannot hold the series beside what must stay.
    """
    RAW.mkdir(parents=True, exist_ok=True)
    expected = {folder: max(size, _size(folder)) for folder, size in series.items()}
    with (RAW / ".room.lock").open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # one run at a time looks and evicts
        others = _used_by_others()
        if both := expected.keys() & others.keys():
            raise UserError(f"raw cache: {len(both)} series of the shard are at work in another run: wait for it")
        _make_room(expected, others, round(VOLUMES_PER_RAW * sum(series.values())))
        note = RAW / f".{uuid.uuid4().hex}.use"
        lock = note.open("a")
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(json.dumps({f"{f.parent.name}/{f.name}": size for f, size in expected.items()}))
        lock.flush()
    try:
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.close()


def _used_by_others() -> dict[Path, int]:
    """Folder to bytes expected there, of every run that is alive; notes of dead ones go."""
    used: dict[Path, int] = {}
    for note in sorted(RAW.glob(".*.use")):
        try:
            with note.open() as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    used.update({RAW / name: size for name, size in json.load(stream).items()})
                else:
                    note.unlink()
        except FileNotFoundError:  # that run has just ended
            continue
    return used


def _make_room(ours: dict[Path, int], others: dict[Path, int], volumes: int) -> None:
    """``volumes``: bytes that will be made of them."""
    _drop_left_overs(ours, others)
    held = {
        folder: _size(folder)
        for folder in RAW.glob("*/*")
        if folder.is_dir() and "." not in (folder.name[0], folder.parent.name[0])
    }
    planned = held | {folder: max(size, held.get(folder, 0)) for folder, size in (others | ours).items()}
    to_come = {folder: size - held.get(folder, 0) for folder, size in planned.items()}
    free = [f for f in held if f not in ours and f not in others and (f / PREPROCESSED).is_file()]
    free.sort(key=lambda folder: (folder.stat().st_mtime, folder.name), reverse=True)
    budget, wanted = _budget(), sum(ours.values())
    if budget is not None and wanted > budget:
        raise UserError(
            f"raw cache: the shard's {wanted / 1e9:.2f} GB are more than {BUDGET_VARIABLE} "
            f"({budget / 1e9:.2f} GB) allows; raise it, or use more shards"
        )

    def lacks() -> int:
        """Bytes that are missing, on the disk or in the budget."""
        over = sum(planned.values()) - budget if budget is not None else 0
        return max(over, sum(to_come.values()) + volumes - _free())

    # Not diskcache: it drops its own entries one by one, and knows neither a folder that a run, here or on another
    # host, still needs, nor room for a whole shard, nor the free disk.
    while lacks() > 0 and free:
        oldest = free.pop()
        evict(oldest)
        for sizes in (held, planned, to_come):
            sizes.pop(oldest)
    if lacks() > 0:
        raise UserError(_no_room(lacks(), ours, others, held))


def _drop_left_overs(ours: Mapping[Path, int], others: Mapping[Path, int]) -> None:
    """What killed runs have left half-done, and other versions of the series that are worked on now."""
    for partial in RAW.glob("*/.*.partial"):
        if partial.with_name(partial.name[1:].split(".")[0]) not in others:
            evict(partial)
    known = {(folder.parent.name, _series(folder)): folder for folder in ours}
    for folder in RAW.glob("*/*"):
        if known.get((folder.parent.name, _series(folder)), folder) != folder and folder not in others:
            evict(folder)


def _series(folder: Path) -> str:
    return folder.name.rpartition("-")[0]


def _no_room(lacking: int, ours: Mapping[Path, int], others: Mapping[Path, int], held: Mapping[Path, int]) -> str:
    """One line: how much room is missing, and who has it."""
    at_work = sum(others.values())
    waiting = {f: size for f, size in held.items() if f not in ours and f not in others}
    told = f"disk or {BUDGET_VARIABLE}: {lacking / 1e9:.2f} GB more are needed at {RAW} for the shard and its volumes"
    if waiting:
        lines = ", ".join(sorted({folder.parent.name for folder in waiting}))
        told += (
            f"; {sum(waiting.values()) / 1e9:.2f} GB of {lines} still wait for `preprocess` and are not evicted: go "
            "shard by shard, as `ctfoundry release` does, or remove them there"
        )
    if at_work:
        told += f"; {at_work / 1e9:.2f} GB are in use by another run: wait for it"
    return f"{told}; or free some, or use more shards"


def _budget() -> int | None:
    text = os.environ.get(BUDGET_VARIABLE)
    if text is None:
        return None
    try:
        budget = int(float(text) * 1e9)
        if budget < 0:
            raise ValueError
        return budget
    except (ValueError, OverflowError):
        raise UserError(f"{BUDGET_VARIABLE}: {text!r} is not allowed: a number of gigabytes") from None


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


def let_go(folder: Path, policy: Literal["keep", "evict"]) -> None:
    """A series is preprocessed, or was rejected: its raw files go, or stay until another series needs their room."""
    if policy == "evict":
        evict(folder)
    elif folder.is_dir():
        (folder / PREPROCESSED).touch()


def evict(folder: Path) -> None:
    """Free the space of one series."""
    shutil.rmtree(folder, ignore_errors=True)
