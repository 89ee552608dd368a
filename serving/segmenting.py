"""What the decoders of a release find in one scan: a label map on the grid of the scan as it was sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from components.ct.store import FloatArray, Volume
from components.errors import UserError
from components.models.embed import fixed_threads
from components.models.segment_head import SegmentHead
from serving.embedding import DEFAULT_LIMITS, ServedBundle, read_scan
from serving.limits import Limits

Labels = npt.NDArray[np.uint8]
DIGITS = 3


def segment_file(
    path: Path, bundle: ServedBundle, part: str | None = None, limits: Limits = DEFAULT_LIMITS
) -> tuple[Labels, FloatArray, dict[str, Any]]:
    """Segment one CT scan.

    Args:
        path: as :func:`serving.embedding.embed_file`.
        bundle: the release.
        part: which of its heads; None where it has one.
        limits: of archive and volume.

    Returns:
        uint8 labels of the scan's shape and its affine, RAS mm; and JSON-like: ``structures``, value to ``name``,
        ``volume_ml`` and ``dice`` on test scans; ``limits``, in words; ``part``, ``model`` and ``found``.

    Raises:
        InputError, UserError: as :func:`serving.embedding.embed_file`; or there is no such head.
    """
    part, head = _chosen(bundle, part)
    segmenter = head.on(bundle.embedder, Path(part))
    scan = read_scan(path, bundle, limits)
    with fixed_threads():
        found = segmenter.segment(scan.volume.hu)
    labels = onto(found, scan.volume.affine, scan.sent)
    told = head.description
    millilitres = abs(float(np.linalg.det(scan.sent.affine[:3, :3]))) / 1000
    counts = np.bincount(labels.ravel(), minlength=len(told.structures) + 1)
    structures = {
        str(value): {
            "name": name,
            "volume_ml": round(float(counts[value]) * millilitres, DIGITS),
            "dice": told.dice.get(name),
        }
        for value, name in enumerate(told.structures, start=1)
    }
    content = {"part": part, "structures": structures, "limits": list(told.limits)}
    return labels, scan.sent.affine, content | {"model": bundle.model, "found": scan.to_json()}


def onto(labels: Labels, affine: FloatArray, sent: Volume) -> Labels:
    """Labels on another grid, by the nearest voxel; 0 where there is none."""
    step = np.linalg.inv(affine) @ sent.affine
    moved: Labels = ndimage.affine_transform(
        labels, step[:3, :3], step[:3, 3], sent.hu.shape, order=0, mode="constant", cval=0
    )
    return moved


def _chosen(bundle: ServedBundle, part: str | None) -> tuple[str, SegmentHead]:
    heads = bundle.segmenters
    if not heads:
        raise UserError("this release has no head that segments: give a task of kind segment `serve: true`")
    if part is None and len(heads) == 1:
        return next(iter(heads.items()))
    if part not in heads:
        raise UserError(f"head {part!r} is not allowed: one of {', '.join(heads)}")
    return part, heads[part]
