"""Heads: what turns an encoder's vector into an answer, as files of a release (safetensors and JSON, never pickle)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from components.errors import UserError
from components.files import read_json, replacing, sha256_file, write_json
from components.models.embed import WEIGHTS, described
from components.settings import StageConfig, parse

Array = npt.NDArray[np.float64]
HEADS, HEAD_WEIGHTS, HEAD_DESCRIPTION = "heads", "head.safetensors", "head.json"
SEGMENT = "segment"  # the kind whose heads give a label map, see components.models.segment_head
Share = Annotated[float, Field(gt=0, le=1)]
Description = TypeVar("Description", bound=StageConfig)


class OperatingPoint(StageConfig):
    """A threshold of the positive class's probability: at least it is positive.

    Attributes:
        wanted_specificity: at which it was chosen, on training cases.
        threshold: of the calibrated probability.
        sensitivity, specificity: on test cases: ``value``, and 95 % limits over patients, ``low`` and ``high``.
    """

    wanted_specificity: Share
    threshold: float
    sensitivity: dict[str, float]
    specificity: dict[str, float]


class HeadDescription(StageConfig):
    """``head.json``: what a head answers, how well, and for what it must not be taken.

    Attributes:
        format: version of this layout.
        kind: of the task.
        task, part: of the line: ``findings`` and ``findings/ich``; the same where a task has one part.
        classes: in the order of the probabilities.
        positive: of two classes the one that is looked for; None where there are more.
        sees: ``point``, the crop round a point in mm, or ``scan``, the whole of it.
        dim: length of the encoder's vector.
        encoder: hex SHA-256 of the weights that it was fitted on.
        temperature: see :func:`calibrated`.
        priors: share of each class among the training cases.
        operating_point: None where none was asked for, or the classes are not two.
        figures: on test cases: figure to ``value``, ``low``, ``high`` and what stands beside it (untrained encoders).
        patients: of ``train`` and of ``test``.
        counts: ``train`` and ``test`` to class to numbers of ``patients``, who may have several, and ``cases``.
        limits: one sentence each.
    """

    format: Literal[1]
    kind: Literal["classify"]
    task: str
    part: str
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    positive: str | None
    sees: Literal["point", "scan"]
    dim: PositiveInt
    encoder: str
    temperature: PositiveFloat
    priors: tuple[Share, ...]
    operating_point: OperatingPoint | None
    figures: dict[str, dict[str, float]]
    patients: dict[str, int]
    counts: dict[str, dict[str, dict[str, int]]]
    limits: tuple[str, ...]

    @model_validator(mode="after")
    def _agrees(self) -> HeadDescription:
        if len(self.priors) != len(self.classes):
            raise ValueError(f"{len(self.priors)} priors are not allowed: one for each of {len(self.classes)} classes")
        if self.positive is not None and self.positive not in self.classes:
            raise ValueError(f"positive {self.positive!r} is not allowed: one of {', '.join(self.classes)}")
        if self.operating_point is not None and self.positive is None:
            raise ValueError("operating_point is not allowed without a positive class")
        return self


@dataclass(frozen=True)
class Linear:
    """A linear classifier of standardised features.

    Attributes:
        mean, scale: (dim,), of the features.
        weight: (classes, dim).
        bias: (classes,).
    """

    mean: Array
    scale: Array
    weight: Array
    bias: Array

    def logits(self, features: npt.NDArray[np.floating]) -> Array:
        """(N, classes) of features (N, dim); their softmax are probabilities of equally frequent classes."""
        found: Array = ((np.asarray(features, dtype=np.float64) - self.mean) / self.scale) @ self.weight.T + self.bias
        return found

    def probabilities(self, features: npt.NDArray[np.floating]) -> Array:
        """(N, classes) of features (N, dim), as if all classes were equally frequent."""
        return _softmax(self.logits(features))


def calibrated(logits: Array, temperature: float, priors: npt.ArrayLike) -> Array:
    """Probabilities (N, classes): softmax of logits / temperature + log priors.

    Heads are fitted as if all classes were equally frequent. The temperature says how much such logits are worth, the
    priors how frequent the classes are; where the logits are worth nothing, the priors are the answer.
    """
    return _softmax(logits / temperature + np.log(np.asarray(priors, dtype=np.float64)))


@dataclass(frozen=True)
class Head:
    """A linear head and its description."""

    description: HeadDescription
    linear: Linear

    def probabilities(self, features: npt.NDArray[np.floating]) -> Array:
        """Calibrated probabilities (N, classes) of the encoder's vectors (N, dim)."""
        return calibrated(self.linear.logits(features), self.description.temperature, self.description.priors)

    def write(self, folder: Path) -> None:
        """Write both files; equal heads give equal bytes."""
        tensors = {name: getattr(self.linear, name) for name in Linear.__annotations__}
        write_head_files(folder, tensors, self.description)

    @classmethod
    def read(cls, folder: Path) -> Head:
        """Raises UserError where a file is missing, or the weights are not those that the description tells of."""
        description, tensors = read_head_files(folder, HeadDescription)
        classes, dim = len(description.classes), description.dim
        wanted = {"mean": (dim,), "scale": (dim,), "weight": (classes, dim), "bias": (classes,)}
        check_shapes(folder, tensors, wanted)
        return cls(description, Linear(**{name: tensor.astype(np.float64) for name, tensor in tensors.items()}))


def write_head_files(folder: Path, tensors: Mapping[str, npt.NDArray[np.floating]], description: StageConfig) -> None:
    """Write a head of any kind; equal heads give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / HEAD_WEIGHTS) as temporary:
        safetensors.numpy.save_file({name: np.ascontiguousarray(of) for name, of in tensors.items()}, temporary)
    write_json(folder / HEAD_DESCRIPTION, description.model_dump(mode="json"))


def read_head_files(folder: Path, kind: type[Description]) -> tuple[Description, dict[str, npt.NDArray[np.floating]]]:
    """A head's description, of class ``kind``, and its tensors.

    Raises:
        UserError: a file is missing or not readable.
    """
    for name in (HEAD_WEIGHTS, HEAD_DESCRIPTION):
        if not (folder / name).is_file():
            raise UserError(f"head {folder}: {name} is missing; make the release again or copy it whole")
    description = parse(kind, read_json(folder / HEAD_DESCRIPTION), "", str(folder / HEAD_DESCRIPTION))
    try:
        return description, safetensors.numpy.load_file(folder / HEAD_WEIGHTS)
    except safetensors.SafetensorError as error:
        raise UserError(f"head {folder}: {HEAD_WEIGHTS} is not readable as safetensors: {error}") from None


def check_shapes(
    folder: Path, tensors: Mapping[str, npt.NDArray[np.floating]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises UserError where the tensors are others than the description tells of."""
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != wanted:
        raise UserError(
            f"head {folder}: {HEAD_WEIGHTS} holds {found}, but {HEAD_DESCRIPTION} tells of {wanted}; make the "
            "release again"
        )


def load_heads(bundle: Path) -> dict[str, Head]:
    """The heads of a release folder that classify, by part (``findings/ich``), sorted; empty where it has none.

    Raises:
        UserError: a head that is not whole, or was not fitted on the release's encoder.
    """
    heads = {part: Head.read(folder) for part, folder in head_folders(bundle, "classify").items()}
    sees = described(bundle).input.sees if heads else None
    for part, head in heads.items():
        check_fitted(bundle, part, head.description.part, head.description.encoder)
        if head.description.sees == "point" and sees == "scan":
            raise UserError(f"head {part}: sees points, but the encoder sees whole scans; make the release again")
    return heads


def head_folders(bundle: Path, kind: str) -> dict[str, Path]:
    """Part to the folder of each head of a release whose task is of ``kind``, sorted.

    Raises:
        UserError: a head without its description.
    """
    found = {}
    for folder in sorted({path.parent for path in (bundle / HEADS).rglob("head.*")}):
        if not (folder / HEAD_DESCRIPTION).is_file():
            raise UserError(f"head {folder}: {HEAD_DESCRIPTION} is missing; make the release again or copy it whole")
        if (read_json(folder / HEAD_DESCRIPTION).get("kind") == SEGMENT) == (kind == SEGMENT):
            found[folder.relative_to(bundle / HEADS).as_posix()] = folder
    return found


def check_fitted(bundle: Path, part: str, told: str, encoder: str) -> None:
    """Raises UserError where the head in the folder of ``part`` tells of another part or encoder than the release's."""
    if encoder != (ours := sha256_file(bundle / WEIGHTS)):
        raise UserError(
            f"head {part}: was fitted on encoder {encoder[:12]}, but the release holds {ours[:12]}; make the "
            "release again"
        )
    if told != part:
        raise UserError(f"head {part}: its description is of {told}; make the release again")


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Array = powers / powers.sum(axis=1, keepdims=True)
    return shares
