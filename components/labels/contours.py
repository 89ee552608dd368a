"""Contours of an RTSTRUCT (PS3.3 C.8.8.6) as masks on a volume's grid."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom

from components.params import UserError
from components.preprocess.store import FloatArray, voxel_of

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
FLAT_MM = 0.1  # a contour's points may lie this far from its plane
SAME_PLANE_MM = 0.05

Mask = npt.NDArray[np.bool_]


def read_contours(
    dataset: pydicom.Dataset, name: str, affine: FloatArray, shape: tuple[int, ...]
) -> list[tuple[str, str, Mask, float]]:
    """Name, code, mask and covered share of each ROI.

    A voxel belongs to the ROI where its centre lies within an odd number of the contours of its plane: an inner
    contour is a hole. Where the grid's slices are not the contours' planes, each takes the nearest plane, no farther
    than half the distance from plane to plane. Points and open contours have no inside: a ROI of those is empty.

    Args:
        dataset: the RTSTRUCT.
        name: of the file, for messages.
        affine, shape: the grid; one of its axes is across the contours' planes.

    Raises:
        UserError: contours that do not lie in planes of the grid.
    """
    names = {int(roi.ROINumber): str(roi.get("ROIName", "")) for roi in dataset.get("StructureSetROISequence", [])}
    codes = {int(o.ReferencedROINumber): _code(o) for o in dataset.get("RTROIObservationsSequence", [])}
    voxels: dict[int, list[FloatArray]] = {number: [] for number in names}
    for roi in dataset.get("ROIContourSequence", []):
        for contour in roi.get("ContourSequence", []):
            if contour.get("ContourGeometricType") in CLOSED:
                points = np.asarray(contour.ContourData, dtype=np.float64).reshape(-1, 3) * [-1.0, -1.0, 1.0]
                voxels.setdefault(int(roi.ReferencedROINumber), []).append(voxel_of(affine, points))
    across = _across([c for contours in voxels.values() for c in contours], affine, name)
    gap = _gap([c for contours in voxels.values() for c in contours], across, affine)
    return [
        (names.get(number) or f"ROI {number}", codes.get(number, ""), *_filled(contours, across, gap, shape))
        for number, contours in voxels.items()
    ]


def _code(observation: pydicom.Dataset) -> str:
    coded = observation.get("RTROIIdentificationCodeSequence")
    if not coded:
        return str(observation.get("RTROIInterpretedType", ""))
    return f"{coded[0].CodingSchemeDesignator} {coded[0].CodeValue} {coded[0].CodeMeaning}"


def _across(contours: list[FloatArray], affine: FloatArray, name: str) -> int:
    """The grid's axis that no contour moves along."""
    if not contours:
        return 0
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    spread = np.max([np.ptp(contour, axis=0) * spacing for contour in contours], axis=0)
    across = int(spread.argmin())
    if spread[across] > FLAT_MM:
        raise UserError(f"labels {name}: contours leave the volume's planes by {spread[across]:.2f} mm; allowed: "
                        f"{FLAT_MM} mm; are they of the same scan?")  # fmt: skip
    return across


def _gap(contours: list[FloatArray], across: int, affine: FloatArray) -> float:
    """Usual distance between neighbouring planes that have contours, in voxels; one voxel where there is one plane."""
    planes = np.sort([float(contour[:, across].mean()) for contour in contours])
    apart = np.diff(planes)
    apart = apart[apart * float(np.linalg.norm(affine[:3, across])) > SAME_PLANE_MM]
    return float(np.median(apart)) if len(apart) else 1.0


def _filled(contours: list[FloatArray], across: int, gap: float, shape: tuple[int, ...]) -> tuple[Mask, float]:
    mask: Mask = np.zeros(shape, dtype=np.bool_)
    if not contours:
        return mask, 1.0
    points = np.concatenate(contours)
    covered = float(((points >= -0.5) & (points <= np.asarray(shape) - 0.5)).all(axis=1).mean())
    planes: dict[float, list[FloatArray]] = defaultdict(list)
    for contour in contours:
        planes[round(float(contour[:, across].mean()), 3)].append(np.delete(contour, across, axis=1))
    places = np.array(sorted(planes))
    plane_masks: dict[float, Any] = {}
    sliced = np.moveaxis(mask, across, 0)
    for index in range(shape[across]):
        place = float(places[np.abs(places - index).argmin()])
        if abs(place - index) <= gap / 2 + 1e-6:
            if place not in plane_masks:
                plane_masks[place] = _even_odd(planes[place], sliced.shape[1:])
            sliced[index] = plane_masks[place]
    return mask, covered


def _even_odd(polygons: list[FloatArray], shape: tuple[int, ...]) -> Mask:
    """Pixels whose centre lies within an odd number of ``polygons``, given by their corners in pixels: along each row,
    every edge that crosses it turns inside into outside from there on."""
    turns = np.zeros((shape[0], shape[1] + 1), dtype=np.int32)
    for polygon in polygons:
        start, end = polygon, np.roll(polygon, -1, axis=0)
        low, high = np.clip([np.floor(polygon[:, 0].min()), np.ceil(polygon[:, 0].max()) + 1], 0, shape[0]).astype(int)
        rows = np.arange(low, high)[:, None]
        crossed, edge = np.nonzero((start[:, 0] <= rows) != (end[:, 0] <= rows))
        share = (rows[crossed, 0] - start[edge, 0]) / (end[edge, 0] - start[edge, 0])
        place = start[edge, 1] + share * (end[edge, 1] - start[edge, 1])
        np.add.at(turns, (rows[crossed, 0], np.clip(np.ceil(place), 0, shape[1]).astype(int)), 1)
    inside: Mask = np.cumsum(turns, axis=1)[:, :-1] % 2 == 1
    return inside
