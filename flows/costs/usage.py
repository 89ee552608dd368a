"""What a stage used, and the record that is kept of it: one file per stage and run, beside the outputs."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

from components import arithmetic
from components.files import STATE, read_json, replacing

COSTS = STATE / "costs"
UNDER_WAY, MADE, FAILED, KILLED = "under way", "made", "failed", "killed"
CUT_SHORT = "cut short"  # a record that is still under way, of a run that is no more


@dataclass(frozen=True)
class Usage:
    """What the processes of a stage used on this machine.

    Attributes:
        wall_s: seconds from beginning to end.
        cpu_s: processor seconds, in and out of the kernel.
        memory_gib_s: the integral of memory in use over time; pages that several processes share count once.
        peak_gib: the most memory in use at one time.
        gpu_s: seconds for which its processes held a GPU, added up over GPUs; None where there is none to ask.
        read_bytes, written_bytes: from and to disks.
        moved_bytes: that came in from another machine; None of stages that transfer nothing.
        cpu_j: joules of the processor's own meter, by share of its busy time; None where there is none to read.
        gpu_j: joules of the GPUs' own meters while it held them; None where there is none to ask.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    memory_gib_s: float = 0.0
    peak_gib: float = 0.0
    gpu_s: float | None = None
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    moved_bytes: int | None = None
    cpu_j: float | None = None
    gpu_j: float | None = None

    def __add__(self, other: Usage) -> Usage:
        """One after the other: the peak is the higher one, and what neither knows stays unknown."""
        sums: dict[str, Any] = {name: _sum(getattr(self, name), getattr(other, name)) for name in asdict(self)}
        return Usage(**{**sums, "peak_gib": max(self.peak_gib, other.peak_gib)})


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None and other is None else (one or 0) + (other or 0)


@dataclass(frozen=True)
class Record:
    """One run of one stage.

    Attributes:
        stage: its address, such as ``acquire@head-0``.
        began, heard: when it began and when it was last heard of, UTC, ISO 8601.
        outcome: made, failed, killed; under way until then.
        usage: up to ``heard``.
        counted_by: what counted the processor seconds: ``cgroup``, or ``samples`` of its processes.
        lock: hash of the stage's entry of ``dvc.lock`` after it, by which it is found; empty where it made nothing.
        machine: processor, threads and memory.
        maker: process that keeps the record, with when it began.
    """

    stage: str
    began: str
    heard: str
    outcome: str
    usage: Usage
    counted_by: str
    lock: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    maker: tuple[int, float] = (0, 0.0)

    @property
    def told(self) -> str:
        """The outcome; of a run that was killed together with whoever kept its record, too."""
        return CUT_SHORT if self.outcome == UNDER_WAY and not _lives(self.maker) else self.outcome


def _lives(maker: tuple[int, float]) -> bool:
    try:
        return bool(abs(psutil.Process(maker[0]).create_time() - maker[1]) < 1.0)
    except (psutil.Error, ValueError):
        return False


def begun(stage: str, counted_by: str) -> tuple[Path, Record]:
    """A new record and its place."""
    now = datetime.now(UTC)
    machine = {"processor": arithmetic.kind(), "threads": psutil.cpu_count() or 1,
               "memory_gib": round(psutil.virtual_memory().total / 2**30, 2)}  # fmt: skip
    own = psutil.Process()
    record = Record(stage, now.isoformat(), now.isoformat(), UNDER_WAY, Usage(), counted_by, "", machine,
                    (own.pid, own.create_time()))  # fmt: skip
    return COSTS / stage / f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}.json", record


def keep(path: Path, record: Record, **changed: Any) -> Record:
    """Write the record as it is now; a reader finds a whole one, before or after."""
    record = replace(record, heard=datetime.now(UTC).isoformat(), **changed)
    with replacing(path, durable=False) as temporary:
        temporary.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    return record


def records_of(stage: str) -> list[Record]:
    """Every record of a stage, the latest last; damaged ones are passed over."""
    found = []
    for path in (COSTS / stage).glob("*.json"):
        try:
            content = read_json(path)
            usage = Usage(**content.pop("usage"))
            found.append(Record(**{**content, "usage": usage, "maker": tuple(content["maker"])}))
        except (ValueError, TypeError, KeyError):
            continue
    return sorted(found, key=lambda record: record.began)


def lock_entries(names: Iterable[str], path: Path = Path("dvc.lock")) -> dict[str, dict[str, Any]]:
    """The entries of these stages, as far as the file has them. Others are not parsed: a large lock takes minutes."""
    wanted = set(names)
    return {name: yaml.safe_load(text)[name] for name, text in _blocks(path) if name in wanted}


def _blocks(path: Path) -> Iterator[tuple[str, str]]:
    """Stage and the text of its entry; DVC indents a stage's name by two, what is in it by more."""
    name, lines = "", list[str]()
    within = False
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        if not line.startswith("  "):
            within = line.rstrip() == "stages:"
        elif within and line[2] != " ":
            yield from [(name, "\n".join(lines))] if name else []
            name, lines = line.strip().removesuffix(":").strip("'\""), []
        if within and line.startswith("  "):
            lines.append(line)
    yield from [(name, "\n".join(lines))] if name else []


def entry_hash(entry: Mapping[str, Any]) -> str:
    """What a stage was made from and what it made: SHA-256, of its entry of ``dvc.lock``."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def stored_bytes(entry: Mapping[str, Any]) -> int:
    """Bytes of a stage's outputs."""
    return sum(int(out.get("size") or 0) for out in entry.get("outs", []))
