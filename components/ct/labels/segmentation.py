"""DICOM SEG (PS3.3 A.51, C.8.20) as masks on a volume's grid."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pydicom

from components.ct.labels.placing import (
    FLAT_MM,
    LabelError,
    Mask,
    Placed,
    clusters,
    covered_share,
    nearest_voxels,
    stacked,
)
from components.ct.store import FloatArray

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
MAX_VOXELS = 1 << 29  # of a segment on its own grid: 2048 slices of 512 x 512


def read_segments(
    dataset: pydicom.Dataset, only: Collection[str], affine: FloatArray, shape: tuple[int, ...]
) -> Iterator[Placed]:
    """Segment by segment: all at once, those of a whole body would not fit into memory.

    Frames that form a regular grid are taken as that grid, on whatever volume; others, as they are made of CT under a
    tilted gantry or with one longer gap, frame by frame onto the slices of the volume, which must be parallel to them.

    Args:
        dataset: the SEG; it is changed.
        only: labels of the segments that are wanted; none for all.
        affine, shape: the grid.

    Raises:
        LabelError: frames that cannot be put onto the grid, or that would fill the memory.
    """
    import highdicom

    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if not (0 < rows * columns <= MAX_VOXELS) or min(rows, columns) < 1:
        raise LabelError(f"frames of {rows} x {columns} pixels are not allowed: 1 to {MAX_VOXELS} pixels")
    frames, groups = dataset.get("NumberOfFrames"), len(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    if frames is None or int(frames) != groups:
        raise LabelError(f"functional groups of {groups} frames, NumberOfFrames is {frames}")
    seg = highdicom.seg.Segmentation.from_dataset(dataset, copy=False)
    geometry = seg.get_volume_geometry()
    if geometry is not None and np.prod([float(n) for n in geometry.spatial_shape]) > MAX_VOXELS:
        size = " x ".join(str(n) for n in geometry.spatial_shape)
        raise LabelError(f"frames that span {size} voxels are too many: at most {MAX_VOXELS}")
    for number in seg.segment_numbers:
        description = seg.get_segment_description(number)
        name, code = str(description.segment_label), description.segmented_property_type
        if only and name not in only:
            continue
        if geometry is None:
            mask, covered = _frame_by_frame(seg, number, affine, shape)
        else:
            mask, covered = _as_grid(seg, number, affine, shape)
        yield Placed(name, f"{code.scheme_designator} {code.value} {code.meaning}", mask, covered)


def _as_grid(seg: Any, number: int, affine: FloatArray, shape: tuple[int, ...]) -> tuple[Mask, float]:
    volume = seg.get_volume(segment_numbers=[number], allow_missing_positions=True)
    values = volume.array[..., 0]
    mask = values >= (0.5 if values.dtype.kind == "f" else 1)  # of fractional ones: more in than out
    own = LPS_TO_RAS @ volume.affine
    return np.asarray(nearest_voxels(mask, own, affine, shape), dtype=np.bool_), covered_share(mask, own, affine, shape)


def _frame_by_frame(seg: Any, number: int, affine: FloatArray, shape: tuple[int, ...]) -> tuple[Mask, float]:
    shared = seg.SharedFunctionalGroupsSequence[0] if seg.get("SharedFunctionalGroupsSequence") else pydicom.Dataset()
    groups = seg.PerFrameFunctionalGroupsSequence
    placed = [_affine_of(group, shared) for group in groups]
    normal = placed[0][:3, 0]
    heights = np.array([float(own[:3, 3] @ normal) for own in placed])
    planes = np.array([heights[part].mean() for part in clusters(heights, FLAT_MM)])
    # The smallest, as frames without a voxel may be left out.
    gap = float(np.diff(planes).min()) if len(planes) > 1 else float(np.linalg.norm(affine[:3, :3], axis=0).max())
    kind = str(seg.SegmentationType)
    masks = [
        (own, _mask_of(seg, index, number, kind))
        for index, (group, own) in enumerate(zip(groups, placed, strict=True))
        if kind == "LABELMAP" or _segment_of(group, shared) == number
    ]
    return stacked([(own, mask) for own, mask in masks if mask.any()], gap, affine, shape)


def _group(group: pydicom.Dataset, shared: pydicom.Dataset, keyword: str) -> pydicom.Dataset:
    """Of one frame, or of all."""
    items = group.get(keyword) or shared.get(keyword)
    if not items:
        raise LabelError(f"{keyword} is missing")
    found: pydicom.Dataset = items[0]
    return found


def _affine_of(group: pydicom.Dataset, shared: pydicom.Dataset) -> FloatArray:
    """Of a frame: (1, row, column) to RAS mm; its first column is the planes' unit normal."""
    position = _group(group, shared, "PlanePositionSequence").ImagePositionPatient
    orientation = np.asarray(_group(group, shared, "PlaneOrientationSequence").ImageOrientationPatient, np.float64)
    between_rows, between_columns = _group(group, shared, "PixelMeasuresSequence").PixelSpacing
    lps = np.eye(4)
    lps[:3, 0] = np.cross(orientation[:3], orientation[3:])
    lps[:3, 1] = orientation[3:] * float(between_rows)
    lps[:3, 2] = orientation[:3] * float(between_columns)
    lps[:3, 3] = position
    own: FloatArray = LPS_TO_RAS @ lps
    if not np.isfinite(own).all() or not abs(np.linalg.det(own)) > 1e-9:
        raise LabelError("a frame's position, orientation and pixel spacing give it no place")
    return own


def _segment_of(group: pydicom.Dataset, shared: pydicom.Dataset) -> int:
    return int(_group(group, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber)


def _mask_of(seg: Any, index: int, number: int, kind: str) -> Mask:
    frame = np.asarray(seg.get_stored_frame(index, as_index=True))
    fractional = kind == "FRACTIONAL"
    mask: Mask = frame >= 0.5 * int(seg.MaximumFractionalValue) if fractional else frame == _stored(kind, number)
    return mask


def _stored(kind: str, number: int) -> int:
    """The value of a segment's pixels in its frames."""
    return number if kind == "LABELMAP" else 1
