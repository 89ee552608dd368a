"""What the service answers, as data classes: by the names of its schemas, which say what each field means.

``serving/schemas.py`` is the source; the tests hold these to ``/docs.json``, so that the two cannot drift apart.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ModelName:
    """The model of an answer; ``digest`` is the release's."""

    name: str
    digest: str


@dataclass(frozen=True)
class Grid:
    """The array of a volume."""

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str


@dataclass(frozen=True)
class Found:
    """What was found in the file."""

    kind: str
    series: str
    instances: int
    ignored: dict[str, int]
    as_sent: Grid
    standardised: Grid
    body_fraction: float
    warnings: tuple[str, ...]
    profile: dict[str, str]


@dataclass(frozen=True)
class Embedding:
    """The vector of one scan."""

    embedding: tuple[float, ...]
    dim: int
    model: ModelName
    found: Found


@dataclass(frozen=True)
class OperatingPoint:
    """The threshold of the positive class's probability, and what it did on test patients."""

    wanted_specificity: float
    threshold: float
    sensitivity: Interval
    specificity: Interval


@dataclass(frozen=True)
class Answer:
    """What one head answers."""

    probabilities: dict[str, float]
    answer: str
    operating_point: OperatingPoint | None
    auc: Interval
    limits: tuple[str, ...]


@dataclass(frozen=True)
class Stored:
    """Where a result is stored in the PACS: UIDs."""

    study: str
    series: str
    instance: str


@dataclass(frozen=True)
class Classification:
    """What every head answers; ``not_answered`` says why one did not."""

    answers: dict[str, Answer]
    not_answered: dict[str, str]
    model: ModelName
    found: Found
    stored: Stored | None = None


@dataclass(frozen=True)
class Structure:
    """What was found of one structure."""

    name: str
    volume_ml: float
    dice: float | None


@dataclass(frozen=True)
class Segmentation:
    """The structures of one scan, by their values in a label map."""

    part: str
    structures: dict[str, Structure]
    limits: tuple[str, ...]
    model: ModelName
    found: Found
    stored: Stored | None = None


@dataclass(frozen=True)
class Extreme:
    """The highest block of a map, or the lowest; ``point_mm`` is its middle in RAS mm."""

    value: float
    point_mm: tuple[float, ...]


@dataclass(frozen=True)
class Saliency:
    """What an answer rests on."""

    of_class: str
    part: str
    way: str
    blocks: tuple[int, ...]
    log_odds: float
    probability: float
    highest: Extreme
    lowest: Extreme
    limits: tuple[str, ...]
    model: ModelName
    found: Found
    stored: Stored | None = None


@dataclass(frozen=True)
class Place:
    """A place of the other scan, in RAS mm."""

    point_mm: tuple[float, ...]
    similarity: float


@dataclass(frozen=True)
class Location:
    """Where a point of one scan is in another, best first."""

    places: tuple[Place, ...]
    stride_mm: tuple[float, ...]
    limits: tuple[str, ...]
    model: ModelName
    found: Found
    found_other: Found


@dataclass(frozen=True)
class Case:
    """A case of the index; ``case`` and ``patient`` are pseudonyms."""

    case: str
    patient: str
    collection: str
    labels: dict[str, tuple[str, ...]]
    similarity: float


@dataclass(frozen=True)
class Index:
    """The index that is served."""

    digest: str
    cases: int
    patients: int


@dataclass(frozen=True)
class Retrieval:
    """The cases most like one scan, best first; ``left_out`` counts those of the same patient."""

    nearest: tuple[Case, ...]
    left_out: int
    index: Index
    limits: tuple[str, ...]
    model: ModelName
    found: Found


@dataclass(frozen=True)
class Pacs:
    """What the service does with its PACS: whether scans may be named by their UIDs, and results stored."""

    reads: bool
    stores: bool


@dataclass(frozen=True)
class Model:
    """What is served: heads, and what each sees; ``inputs`` are hashes of what it was made from."""

    name: str
    digest: str
    line: str
    heads: dict[str, str]
    classes: dict[str, tuple[str, ...]]
    segments: dict[str, tuple[str, ...]]
    sees: str
    index: Index | None
    pacs: Pacs
    inputs: dict[str, str]
    device: str = "cpu"  # services of earlier versions do not say: they knew no other


def read(kind: type[T], content: Any) -> T:
    """JSON content as ``kind``. Fields that a newer service tells beside are left out.

    Raises:
        ValueError: it lacks a field, or one is of another type.
    """
    found: T = _read(kind, content, kind.__name__)
    return found


def _read(hint: Any, content: Any, at: str) -> Any:
    if is_dataclass(hint):
        if not isinstance(content, dict):
            raise _wrong(at, content, "an object")
        hints = get_type_hints(hint)
        needed = [field.name for field in fields(hint) if field.default is MISSING]
        if lacking := [name for name in needed if name not in content]:
            raise ValueError(f"{at}: lacks {', '.join(lacking)}")
        values = {name: _read(of, content[name], f"{at}.{name}") for name, of in hints.items() if name in content}
        return hint(**values)  # type: ignore[operator]
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return None if content is None else _read(parts[0], content, at)
    if origin is tuple:
        if not isinstance(content, list):
            raise _wrong(at, content, "a list")
        return tuple(_read(parts[0], each, f"{at}[{number}]") for number, each in enumerate(content))
    if origin is dict:
        if not isinstance(content, dict):
            raise _wrong(at, content, "an object")
        return {key: _read(parts[1], each, f"{at}.{key}") for key, each in content.items()}
    allowed = (int, float) if hint is float else (hint,)
    if not isinstance(content, allowed) or (isinstance(content, bool) and hint is not bool):
        raise _wrong(at, content, hint.__name__)
    return hint(content)


def _wrong(at: str, content: Any, allowed: str) -> ValueError:
    return ValueError(f"{at}: {str(content)[:60]!r} is not allowed: {allowed}")
