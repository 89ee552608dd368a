"""Contours of an RTSTRUCT (PS3.3 C.8.8.6) as masks on a volume's grid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pydicom

from components.ct.labels.placing import FLAT_MM, LabelError, Mask, Placed, clusters, nearest_planes, within
from components.ct.store import FloatArray, voxel_of

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
TYPES = (*CLOSED, "POINT", "OPEN_PLANAR", "OPEN_NONPLANAR")
SAME_MM = 0.01  # corners so near are one corner, where a contour was written twice
REACH_MM = 1e5  # no patient is farther from the origin
CROSSINGS = 1 << 22  # of edges and rows that are looked at in one go


@dataclass
class Roi:
    """A region of interest as the file has it.

    Attributes:
        number: by which the file's lists refer to it.
        name, code: '' where there is none.
        frame: UID of the frame of reference that it is drawn in, '' where it is not stated.
        contours: items of its Contour Sequences.
    """

    number: int
    name: str = ""
    code: str = ""
    frame: str = ""
    contours: list[pydicom.Dataset] = field(default_factory=list)

    @property
    def label(self) -> str:
        return self.name or f"ROI {self.number}"


def rois_of(dataset: pydicom.Dataset) -> list[Roi]:
    """Every ROI of an RTSTRUCT, in the order of the file.

    Raises:
        LabelError: an item without the number that says which ROI it is of, or a number that is given twice.
    """
    whole = _frame_of(dataset)
    rois: dict[int, Roi] = {}
    for item in _items(dataset, "StructureSetROISequence"):
        number = _number(item, "ROINumber", "Structure Set ROI Sequence")
        if number in rois:
            raise LabelError(f"ROINumber {number} is there twice; allowed: once")
        frame = _text(item, "ReferencedFrameOfReferenceUID") or whole
        rois[number] = Roi(number, _text(item, "ROIName"), "", frame)
    for item in _items(dataset, "ROIContourSequence"):
        number = _number(item, "ReferencedROINumber", "ROI Contour Sequence")
        rois.setdefault(number, Roi(number, frame=whole)).contours += _items(item, "ContourSequence")
    for item in _items(dataset, "RTROIObservationsSequence"):
        if item.get("ReferencedROINumber") is not None:  # one of no ROI says nothing of any
            number = _number(item, "ReferencedROINumber", "RT ROI Observations Sequence")
            if number in rois:
                rois[number].code = _code(item)
    return list(rois.values())


def read_contours(rois: list[Roi], affine: FloatArray, shape: tuple[int, ...]) -> Iterator[Placed]:
    """The mask of each ROI.

    A voxel belongs to the ROI where its centre lies within an odd number of the contours of its plane: an inner
    contour is a hole. A contour that was written twice counts once. Where the grid's slices are not the contours'
    planes, each takes the nearest plane, no farther than half the distance from plane to plane of that ROI. Points and
    open contours have no inside: a ROI of those is empty.

    Args:
        rois: of one file.
        affine, shape: the grid; one of its axes is across the contours' planes.

    Raises:
        LabelError: contours that do not lie in planes of the grid, without a type, or whose points are none.
    """
    drawn = [[_points(roi, item) for item in roi.contours if _is_closed(roi, item)] for roi in rois]
    across = _across([voxel_of(affine, points) for contours in drawn for points in contours], affine)
    apart = FLAT_MM / float(np.linalg.norm(affine[:3, across]))
    planes = [_planes(contours, affine, across, apart) for contours in drawn]
    gaps = [_gap([place for place, _ in ours]) for ours in planes]
    # What is drawn in one plane is a slice thick, and nothing else in the file tells how thick that is.
    densest = max(1.0, min((gap for gap in gaps if gap is not None), default=1.0))
    for roi, contours, ours, gap in zip(rois, drawn, planes, gaps, strict=True):
        covered = float(within(np.concatenate(contours), affine, shape).mean()) if contours else 1.0
        mask = _filled(ours, across, densest if gap is None else gap, shape)
        yield Placed(roi.label, roi.code, mask, covered)


def _items(dataset: pydicom.Dataset, keyword: str) -> list[pydicom.Dataset]:
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    if not isinstance(value, pydicom.Sequence):
        raise LabelError(f"{keyword} is no sequence")
    return list(value)


def _number(item: pydicom.Dataset, keyword: str, where: str) -> int:
    value = item.get(keyword)
    if value is None:
        raise LabelError(f"{keyword} is missing from an item of the {where}; it says which ROI the item is of")
    return int(value)


def _text(item: pydicom.Dataset, keyword: str) -> str:
    value = item.get(keyword)
    return "" if value is None else str(value).strip()


def _frame_of(dataset: pydicom.Dataset) -> str:
    """The frame of reference of all, where there is one."""
    listed = {_text(item, "FrameOfReferenceUID") for item in _items(dataset, "ReferencedFrameOfReferenceSequence")}
    if len(listed - {""}) == 1:
        return (listed - {""}).pop()
    return _text(dataset, "FrameOfReferenceUID")


def _code(observation: pydicom.Dataset) -> str:
    coded = _items(observation, "RTROIIdentificationCodeSequence")
    if not coded:
        return _text(observation, "RTROIInterpretedType")
    parts = (_text(coded[0], name) for name in ("CodingSchemeDesignator", "CodeValue", "CodeMeaning"))
    return " ".join(part for part in parts if part)


def _is_closed(roi: Roi, contour: pydicom.Dataset) -> bool:
    kind = _text(contour, "ContourGeometricType")
    if kind not in TYPES:
        raise LabelError(f"ROI {roi.label!r}: a contour of type {kind or '(none)'} is not allowed: {', '.join(TYPES)}")
    return kind in CLOSED


def _points(roi: Roi, contour: pydicom.Dataset) -> FloatArray:
    """Corners of a contour, RAS mm, (n, 3)."""
    value = contour.get("ContourData")
    values: Any = [] if value is None else [value] if isinstance(value, str | int | float) else value
    try:
        numbers = np.asarray([float(v) for v in values], dtype=np.float64)
    except (TypeError, ValueError):
        raise LabelError(f"ROI {roi.label!r}: a contour's data are no numbers") from None
    if not len(numbers) or len(numbers) % 3:
        raise LabelError(f"ROI {roi.label!r}: a contour of {len(numbers)} numbers is not allowed: 3 for each point, at "
                         "least one point")  # fmt: skip
    if not (np.abs(numbers) <= REACH_MM).all():
        raise LabelError(f"ROI {roi.label!r}: a contour {np.abs(numbers).max():g} mm away is not allowed: {REACH_MM:g}")
    points: FloatArray = numbers.reshape(-1, 3) * [-1.0, -1.0, 1.0]
    return points


def _across(contours: list[FloatArray], affine: FloatArray) -> int:
    """The grid's axis that no contour moves along."""
    if not contours:
        return 0
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    spread = np.max([np.ptp(contour, axis=0) * spacing for contour in contours], axis=0)
    across = int(spread.argmin())
    if spread[across] > FLAT_MM:
        raise LabelError(f"contours leave the volume's planes by {spread[across]:.2f} mm; allowed: "
                         f"{FLAT_MM} mm; are they of the same scan?")  # fmt: skip
    return across


def _planes(
    contours: list[FloatArray], affine: FloatArray, across: int, apart: float
) -> list[tuple[float, list[FloatArray]]]:
    """Contours plane by plane, each once: where the plane lies in slices, ascending, and corners in pixels."""
    voxels = [voxel_of(affine, contour) for contour in _once(contours)]
    places = np.array([float(contour[:, across].mean()) for contour in voxels])
    return [
        (float(places[part].mean()), [np.delete(voxels[n], across, axis=1) for n in part])
        for part in clusters(places, apart)
    ]


def _once(contours: list[FloatArray]) -> list[FloatArray]:
    """Without those that are another one written again, as exports that were merged hold them."""
    alike: dict[bytes, list[FloatArray]] = defaultdict(list)
    for contour in contours:
        alike[_rounded([contour.min(axis=0), contour.max(axis=0)]).tobytes()].append(contour)
    return [
        contour
        for group in alike.values()
        for contour in (group if len(group) == 1 else {_edges(contour): contour for contour in group}.values())
    ]


def _rounded(points: Any) -> FloatArray:
    rounded: FloatArray = np.rint(np.asarray(points) / SAME_MM) + 0.0  # no -0
    return rounded


def _edges(contour: FloatArray) -> bytes:
    """The same for the same contour, wherever it begins, whichever way it goes round, closed by its first point or not:
    its edges, sorted. What lies within is decided by its edges alone."""
    corners = _rounded(contour)
    edges = np.hstack([corners, np.roll(corners, -1, axis=0)])
    edges = edges[(edges[:, :3] != edges[:, 3:]).any(axis=1)]
    more = np.sign(edges[:, :3] - edges[:, 3:]) @ [4, 2, 1] > 0
    edges[more] = np.roll(edges[more], 3, axis=1)
    ordered: FloatArray = edges[np.lexsort(edges.T)]
    return ordered.tobytes()


def _gap(places: list[float]) -> float | None:
    """Usual distance between neighbouring planes in slices; None of fewer than two."""
    return float(np.median(np.diff(places))) if len(places) > 1 else None


def _filled(planes: list[tuple[float, list[FloatArray]]], across: int, gap: float, shape: tuple[int, ...]) -> Mask:
    mask: Mask = np.zeros(shape, dtype=np.bool_)
    if not planes:
        return mask
    sliced = np.moveaxis(mask, across, 0)
    taken = nearest_planes(np.array([place for place, _ in planes]), gap, shape[across])
    for plane in np.unique(taken[taken >= 0]):
        sliced[taken == plane] = even_odd(planes[plane][1], sliced.shape[1:])
    return mask


def even_odd(polygons: list[FloatArray], shape: tuple[int, ...]) -> Mask:
    """Pixels whose centre lies within an odd number of ``polygons``, given by their corners in pixels: along each row,
    every edge that crosses it turns inside into outside from there on."""
    # OpenCV and Pillow also fill pixels that the outline touches: 7 % of a large organ's pixels differ. Matplotlib's
    # contains_points drops centres that lie on an edge (1 %), and takes 133 ms for 7 ms, of 600 corners.
    turns = np.zeros(shape[0] * (shape[1] + 1), dtype=np.int64)
    start = np.concatenate(polygons)
    end = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    low, high = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
    first, last = (np.clip(np.ceil(row), 0, shape[0]).astype(np.int64) for row in (low, high))
    counts = last - first  # rows that each edge crosses: from its lower end on, up to its upper one, without it
    for part in np.split(np.arange(len(counts)), np.flatnonzero(np.diff(np.cumsum(counts) // CROSSINGS)) + 1):
        edge = np.repeat(part, counts[part])
        begun = np.repeat(np.cumsum(counts[part]) - counts[part], counts[part])
        rows = first[edge] + np.arange(len(edge)) - begun
        share = (rows - start[edge, 0]) / (end[edge, 0] - start[edge, 0])
        place = start[edge, 1] + share * (end[edge, 1] - start[edge, 1])
        column = np.clip(np.ceil(place), 0, shape[1]).astype(np.int64)
        turns += np.bincount(rows * (shape[1] + 1) + column, minlength=turns.size)
    inside: Mask = np.cumsum(turns.reshape(shape[0], -1), axis=1)[:, :-1] % 2 == 1
    return inside
