"""What the heads of a release answer for one scan: calibrated probabilities, and decisions with their known errors."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.ct.store import Volume, crops_at
from components.errors import UserError
from components.models.embed import BODY_FRACTION
from components.models.heads import Head, HeadDescription
from components.models.intensity import BODY_HU
from serving.asking import HOW, POINT, require_answer
from serving.embedding import DEFAULT_LIMITS, Scan, ServedBundle, read_scan, volume_vector
from serving.limits import Limits
from serving.reading import header_values
from serving.sniff import InputError

DIGITS = 6  # as thresholds are given


def classify_file(
    path: Path,
    bundle: ServedBundle,
    point: tuple[float, float, float] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> dict[str, Any]:
    """The answers of every head that can answer.

    Args:
        path: as :func:`serving.embedding.embed_file`.
        bundle: the release.
        point: RAS mm of the scan, for heads that see a point.
        limits: of archive and volume.

    Returns:
        JSON-like: ``answers`` by part, see :func:`answer_of`; ``not_answered``, part to why; ``model`` and ``found`` as
        of an embedding.

    Raises:
        InputError, UserError: as :func:`serving.embedding.embed_file`; or no head can answer, or the point is not in
            the scan.
    """
    require_answer(_sees(bundle), point)
    return classify_scan(read_scan(path, bundle, limits), bundle, point)


def report_file(
    path: Path,
    bundle: ServedBundle,
    point: tuple[float, float, float] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> tuple[dict[str, Any], bytes]:
    """As :func:`classify_file`, and the same answers as a DICOM SR in the scan's study.

    Raises:
        InputError, UserError: as there; or the scan was sent as NIfTI, or as :func:`serving.dicom_sr.dicom_sr`.
    """
    from serving.dicom_sr import dicom_sr  # highdicom takes half a second

    require_answer(_sees(bundle), point)
    scan = read_scan(path, bundle, limits, with_images=True)
    if not scan.images:
        raise InputError("a DICOM SR refers to DICOM images, and the scan was sent as NIfTI; ask for JSON")
    content = classify_scan(scan, bundle, point)
    with header_values():
        return content, dicom_sr(scan.images, content["answers"], bundle.model, point)


def classify_scan(
    scan: Scan,
    bundle: ServedBundle,
    point: tuple[float, float, float] | None = None,
    vector: npt.NDArray[np.float32] | None = None,
) -> dict[str, Any]:
    """As :func:`classify_file`, of a scan that has been read.

    Args:
        scan: as :func:`serving.embedding.read_scan` gives it.
        bundle: the release, with a head that can answer.
        point: RAS mm of the scan.
        vector: of the whole scan, (dim,), where it is known already.
    """
    sees = _sees(bundle)
    vectors: dict[str, npt.NDArray[np.float32]] = {}
    if "scan" in sees.values():
        vectors["scan"] = volume_vector(scan, bundle) if vector is None else vector
    if point is not None and "point" in sees.values():
        vectors["point"] = _point_vector(scan, bundle, point)
    return {
        "answers": {
            part: answer_of(head, vectors[sees[part]]) for part, head in bundle.heads.items() if sees[part] in vectors
        },
        "not_answered": {part: f"sees a point: send {HOW}" for part, what in sees.items() if what not in vectors},
        "model": bundle.model,
        "found": scan.to_json(),
    }


def _sees(bundle: ServedBundle) -> dict[str, str]:
    return {part: head.description.sees for part, head in bundle.heads.items()}


def answer_of(head: Head, vector: npt.NDArray[np.float32]) -> dict[str, Any]:
    """One head's answer: ``probabilities`` by class; ``answer``, of two classes by the threshold, else the likeliest;
    ``operating_point`` with its sensitivity and specificity, or None; ``auc``; ``limits``, in words."""
    told = head.description
    probabilities = np.round(head.probabilities(vector[None])[0], DIGITS)
    return {
        "probabilities": {name: float(p) for name, p in zip(told.classes, probabilities, strict=True)},
        "answer": _decided(told, probabilities),
        "operating_point": None if told.operating_point is None else told.operating_point.model_dump(mode="json"),
        "auc": {name: told.figures["linear_auc"][name] for name in ("value", "low", "high")},
        "limits": list(told.limits),
    }


def _decided(told: HeadDescription, probabilities: npt.NDArray[np.float64]) -> str:
    if told.operating_point is None or told.positive is None:
        return told.classes[int(probabilities.argmax())]
    positive = told.classes.index(told.positive)
    return told.classes[positive if probabilities[positive] >= told.operating_point.threshold else 1 - positive]


def _point_vector(scan: Scan, bundle: ServedBundle, point: tuple[float, float, float]) -> npt.NDArray[np.float32]:
    require_seen(scan, bundle, point)
    vector: npt.NDArray[np.float32] = bundle.embedder.embed_points(scan.volume, [point])[0]
    if not np.isfinite(vector).all():
        raise UserError("the model gives no finite vector for this point; is it a CT in HU?")
    return vector


def require_seen(scan: Scan, bundle: ServedBundle, point: tuple[float, float, float]) -> None:
    """Raises InputError where a point (RAS mm) is not in the scan, or too little of the patient is round it for what
    sees crops, by the share at which places of a whole scan are left out too."""
    require_inside(scan.sent, point)
    crop = crops_at(scan.volume, [point], bundle.embedder.config.input.size_vox)
    if (share := float((crop > BODY_HU).mean())) < BODY_FRACTION:
        told = f"{POINT} {', '.join(f'{mm:g}' for mm in point)}"
        raise InputError(
            f"{told}: {share:.0%} of what is seen there is body, the rest is air; at least {BODY_FRACTION:.0%}"
        )


def require_inside(volume: Volume, point: tuple[float, float, float]) -> None:
    """Raises InputError, with the scan's extent, where a point (RAS mm) is not in it."""
    index = np.linalg.solve(volume.affine, [*point, 1.0])[:3]
    if not ((index >= -0.5) & (index <= np.asarray(volume.hu.shape) - 0.5)).all():
        sides = [(-0.5, n - 0.5) for n in volume.hu.shape]
        corners = np.array([volume.affine @ [*corner, 1.0] for corner in itertools.product(*sides)])[:, :3]
        low, high = corners.min(axis=0), corners.max(axis=0)
        extent = ", ".join(f"{a:.0f} to {b:.0f}" for a, b in zip(low, high, strict=True))
        raise InputError(f"{POINT} {', '.join(f'{mm:g}' for mm in point)} is not in the scan, which spans {extent} mm")
