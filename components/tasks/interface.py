"""What a kind of task is: its block of parameters, the cases it asks for, and how it judges an encoder by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from components.settings import StageConfig
from components.tasks.measure import Measure as Measure  # kinds name it with the rest
from components.tasks.table import Built, Inputs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from components.models.embed import Embedder
    from components.models.heads import Head
    from components.models.segment_head import SegmentHead
    from components.tasks.config import EvaluateConfig
    from components.tasks.features import Features, Peer, Volumes
    from components.tasks.scores import Score


@dataclass(frozen=True)
class Question:
    """What a kind judges an encoder by.

    Attributes:
        line, name: of the task.
        task: its block, of the kind's class.
        rows: the task's table, as its cases were built.
        config: of evaluation: seed, bootstrap, probes.
        features: of every place in ``rows``, by method; empty for a kind whose cases have no place.
        encoders: method to encoder: ``encoder`` and one ``random_<seed>`` for each untrained one; for kinds that need
            more than the features of places. Each is made when it is asked for.
        volumes: opens what ``rows`` names.
        peers: method (``peer_<name>``) to another's encoder, for the same kinds; of the others it is in ``features``.
            Each is made when it is asked for.
    """

    line: str
    name: str
    task: Any
    rows: pd.DataFrame
    config: EvaluateConfig
    features: Features
    encoders: Mapping[str, Callable[[], Embedder]]
    volumes: Volumes
    peers: Mapping[str, Callable[[], Peer]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a kind found.

    Attributes:
        scores: every figure of every method, on the task and on what it is made of (``<task>/<part>``).
        cases: a row per case, method and score, with ``scores.CASE_COLUMNS``: figures can be computed from it again.
        pictures: file name without ending to picture and caption.
        remarks: part to remark.
        heads: part to what is released of it; the encoder's digest is filled in where it is written.
        tables: file name without ending to a table beside the figures.
        found: key to what else stands in the task's metrics.
    """

    scores: list[Score]
    cases: pd.DataFrame
    pictures: dict[str, tuple[Figure, str]] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    heads: Mapping[str, Head | SegmentHead] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scanned:
    """What a line's own scans can answer: they are the phantom's, whatever the source.

    Attributes:
        trunk: whether they have organs and lesions, and not findings.
        sees: what the encoder sees.
        retests: whether patients were scanned twice.
        nodules: whether nodules of LIDC-IDRI are pinned.
        tasks: the line's tasks by name, for a kind that asks about another task.
    """

    trunk: bool
    sees: str
    retests: bool
    nodules: bool
    tasks: Mapping[str, Any] = field(default_factory=dict)


def alone(name: str, _: Any, __: Scanned) -> list[str]:
    """The parts of a task that is one."""
    return [name]


def of_organs(name: str, _: Any, scanned: Scanned) -> list[str]:
    """The parts of a task that asks for the organs of a trunk."""
    return [name] if scanned.trunk else []


def _never(_: Any) -> bool:
    return False


def _alright(_: Any, __: Mapping[str, Any]) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Kind:
    """A kind of task.

    Attributes:
        config: the class of its block; its ``kind`` is the name.
        figures: what it may measure; the first that a task has is the one by which a release must not be worse.
        cases: from the task's name, its block and the line's data to its table.
        judge: from the cases and the encoders to figures.
        placed: whether its cases are places or whole scans whose features are to be extracted beforehand.
        points: whether a task's cases are points, which want an encoder that sees crops.
        columns: of a kind whose ``set`` is a labelled set: setting to the column of its table that a task names.
        trained: whether anything is learned from its set, so that it cannot be an external one.
        masked: whether its set must have masks.
        built_in: sets that such a task may name besides, and what it may name of each.
        measured: from a block to those of the figures that it asks for; None for all.
        trains: whether a task trains on what the encoder sees of its cases: one crop, or one scan.
        parts: from a task's name, its block and what the line's scans can answer to the names that the metrics have it
            under; none where it cannot be answered.
        beside: of a kind that names another task: from a block and the line's tasks to setting and what is wrong in it.
    """

    config: type[StageConfig]
    figures: Mapping[str, Measure]
    cases: Callable[[str, Any, Inputs], Built]
    judge: Callable[[Question], Outcome]
    placed: bool = True
    points: Callable[[Any], bool] = _never
    columns: Callable[[Any], dict[str, str]] | None = None
    trained: bool = True
    masked: bool = False
    built_in: Mapping[str, Sequence[str]] = field(default_factory=dict)
    measured: Callable[[Any], Mapping[str, Measure]] | None = None
    trains: Callable[[Any], bool] = _never
    parts: Callable[[str, Any, Scanned], list[str]] = alone
    beside: Callable[[Any, Mapping[str, Any]], dict[str, str]] = _alright
