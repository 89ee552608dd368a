"""What is shown of a case: the scan, masks, and what the release's head says of it, held against the evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.ct.store import FloatArray, StoredVolume, Volume
from components.errors import UserError
from components.models.embed import fixed_threads
from components.tasks.features import Volumes
from components.tasks.scores import DIGITS
from components.tasks.segment_scans import Scan, open_scan
from flows.cases.chosen import SEGMENT, Chosen
from serving.classifying import answer_of
from serving.embedding import ServedBundle

Labels = npt.NDArray[np.uint8]
# Another kind of processor or a GPU rounds otherwise, which may move single voxels at an edge.
TOLERANCE = 0.001


@dataclass(frozen=True)
class Shown:
    """A case to draw.

    Attributes:
        volume: on the line's grid.
        point_mm: RAS, where the crosshair stands first.
        masks: ``reference`` and ``prediction``, uint8 on the volume's grid; of kind ``segment``.
        told: what the page says of it, JSON-like: ``segmented`` as ``/segment`` gives it, with ``reference_ml`` and the
            case's own ``dice``; or ``classified``, as ``/classify`` gives it.
    """

    volume: Volume
    point_mm: tuple[float, float, float] | None
    masks: dict[str, Labels]
    told: dict[str, Any]


def shown(one: Chosen, bundle: ServedBundle, volumes: Volumes) -> Shown:
    """Open a case and ask the release's head.

    Raises:
        UserError: the volume or its labels are gone; or the head does not say what the evaluation's tables have.
    """
    return _segmented(one, bundle, volumes) if one.kind == SEGMENT else _classified(one, bundle, volumes)


def _segmented(one: Chosen, bundle: ServedBundle, volumes: Volumes) -> Shown:
    head, structures = bundle.segmenters.get(one.part), sorted(one.scores)
    scan = open_scan(one.case, one.patient, one.volume, volumes.open(one.volume), structures)
    masks = {"reference": scan.classes}
    limits = ["The release has no head of this task, so no prediction is shown: `serve` is false."]
    if head is not None:
        with fixed_threads():
            masks["prediction"] = head.on(bundle.embedder, Path(one.part)).segment(scan.volume.hu)
        limits = list(head.description.limits)
        for value, name in enumerate(structures, start=1):
            _require_same(one, f"Dice of {name}", _dice(scan.classes, masks["prediction"], value), one.scores[name])
    content = {"part": one.part, "structures": _structures(one, structures, scan, masks), "limits": limits}
    return Shown(scan.volume, _worst_place(one, structures, scan), masks, {"segmented": content})


def _structures(one: Chosen, structures: list[str], scan: Scan, masks: dict[str, Labels]) -> dict[str, dict[str, Any]]:
    """Value to name, ml of both masks, and the Dice of the evaluation's table; None where there is none."""
    ml = float(np.prod(scan.volume.spacing)) / 1000
    counts = {
        layer: np.bincount(mask.ravel(), minlength=len(structures) + 1) * ml for layer, mask in masks.items()
    }  # fmt: skip
    return {
        str(value): {
            "name": name,
            "reference_ml": round(float(counts["reference"][value]), 3),
            "volume_ml": round(float(counts["prediction"][value]), 3) if "prediction" in counts else 0.0,
            "dice": None if np.isnan(one.scores[name]) else one.scores[name],
        }
        for value, name in enumerate(structures, start=1)
    }


def _dice(truth: Labels, predicted: Labels, value: int) -> float:
    ours, theirs = predicted == value, truth == value
    both = np.count_nonzero(ours) + np.count_nonzero(theirs)
    return round(2 * np.count_nonzero(ours & theirs) / both, DIGITS) if both else float("nan")


def _require_same(one: Chosen, what: str, said: float, known: float) -> None:
    if not np.isclose(said, known, rtol=0, atol=TOLERANCE, equal_nan=True):
        raise UserError(
            f"task {one.part}, case {one.case}: {what} is {said:.6f} by the release's head and {known:.6f} in the "
            "evaluation's table; make the release again, so that both are of one run"
        )


def _worst_place(one: Chosen, structures: list[str], scan: Scan) -> tuple[float, float, float] | None:
    """In the middle of the structure that is found worst; RAS mm, a voxel of its reference mask. None without one."""
    there = [name for name in structures if (scan.classes == structures.index(name) + 1).any()]
    if not there:
        return None
    worst = min(there, key=lambda name: (one.scores[name], name))
    voxels = np.argwhere(scan.classes == structures.index(worst) + 1)
    return _mm(scan.volume.affine, voxels[np.abs(voxels - voxels.mean(axis=0)).sum(axis=1).argmin()])


def _mm(affine: FloatArray, voxel: npt.NDArray[np.integer]) -> tuple[float, float, float]:
    right, front, up = (float(mm) for mm in affine[:3, :3] @ voxel + affine[:3, 3])
    return right, front, up


def _classified(one: Chosen, bundle: ServedBundle, volumes: Volumes) -> Shown:
    opened = volumes.open(one.volume)
    volume = opened.read() if isinstance(opened, StoredVolume) else opened
    head = bundle.heads.get(one.part)
    if head is None:
        answer = _as_evaluated(one, bundle)
    else:
        embedder = bundle.embedder
        vector = (
            embedder.embed_volume(volume) if one.point_mm is None else embedder.embed_points(volume, [one.point_mm])[0]
        )
        answer = answer_of(head, vector)
        for name, known in one.scores.items():
            _require_same(one, f"the probability of {name}", answer["probabilities"][name], known)
    return Shown(volume, one.point_mm, {}, {"classified": {"answers": {one.part: answer}, "not_answered": {}}})


def _as_evaluated(one: Chosen, bundle: ServedBundle) -> dict[str, Any]:
    """An answer as of a head, of a task that has none."""
    shares = dict(one.scores)
    if len(shares) == 1:
        other = one.label if one.label not in shares else "any other class"
        shares[other] = round(1 - sum(shares.values()), DIGITS)
    return {
        "probabilities": shares,
        "answer": max(shares, key=lambda name: shares[name]),
        "operating_point": None,
        "auc": {name: bundle.figures[one.part]["linear_auc"][name] for name in ("value", "low", "high")},
        "limits": ["The release has no head of this task; the probabilities are those of its evaluation."],
    }
