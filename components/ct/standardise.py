"""From a scanner's grid to the line's standard grid: orientation, spacing, crop to the body, HU range.

Separable resampling: where voxels grow, the average over the new voxel's extent; where they shrink, linear (or cubic
within the plane). The half-voxel shift of the grids goes into the affine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse

from components.ct.grid import GridConfig
from components.ct.store import AIR_HU, FloatArray, Int16Array, Volume

# Body search happens on a grid of about this voxel size: enough for a bounding box, and fast.
SEARCH_MM = 4.0
# A piece of at least this share of the largest is the patient's: the other leg, an arm beside the trunk. What the
# opening leaves of tables and holders was at most .003 on real scans.
PIECE_SHARE = 0.01
SHEAR_VOX = 0.05  # drift from the first slice to the last that rounding of positions may cause

FloatPlane = npt.NDArray[np.float32]


def standardise(volume: Volume, config: GridConfig) -> Volume:
    """Bring a volume onto the line's standard grid and crop it to the body.

    Args:
        volume: any orientation and spacing, slices first; sheared by a tilted gantry or not.
        config: the line's grid.

    Returns:
        int16 HU with ``config.orientation`` and exactly ``config.spacing_mm``.
    """
    resampled = resample_only(volume, config)
    return crop_to_body(resampled, find_body(resampled, config.foreground_hu), config.foreground_margin_mm)


def resample_only(volume: Volume, config: GridConfig) -> Volume:
    """As :func:`standardise`, without the crop: for volumes that are a crop already, such as nodules."""
    volume = straighten(volume)
    wanted = nib.orientations.axcodes2ornt(tuple(config.orientation))
    change = nib.orientations.ornt_transform(nib.orientations.io_orientation(volume.affine), wanted)
    # change[i] = (output axis of input axis i, flip); resampling happens on the input's axes, which are contiguous.
    spacing = [config.spacing_mm[int(change[axis, 0])] for axis in range(3)]
    resampled = _resample(volume, (spacing[0], spacing[1], spacing[2]), config.enlarging)
    low, high = config.clip_hu
    # What was resampled is ours to change; a volume that came through as it was is the caller's.
    hu = np.clip(resampled.hu, low, high, out=None if resampled is volume else resampled.hu)
    oriented = nib.orientations.apply_orientation(hu, change)  # a view: the crop to the body copies it once
    return Volume(hu=oriented, affine=resampled.affine @ nib.orientations.inv_ornt_aff(change, hu.shape))


def tilt_degrees(affine: FloatArray) -> float:
    """How far slices lean from standing upright on the direction in which they follow each other: a tilted gantry.

    Args:
        affine: (slice, row, column) to mm.
    """
    normal = np.cross(affine[:3, 1], affine[:3, 2])
    cosine = abs(float(normal @ affine[:3, 0])) / float(np.linalg.norm(normal) * np.linalg.norm(affine[:3, 0]))
    return float(np.degrees(np.arccos(min(1.0, cosine))))


def straighten(volume: Volume) -> Volume:
    """Undo the shear of a tilted gantry: its slices, each shifted against the one before, onto a grid of right angles.

    Args:
        volume: slices first; rows and columns at a right angle.

    Returns:
        The same where the shear is below :data:`SHEAR_VOX` over the whole stack. Otherwise slices moved by linear
        interpolation within their planes, which grow so that nothing is lost; what no slice covers is -1024 HU. Each
        slice keeps its plane, so that slices are not mixed here.
    """
    step, planes = volume.affine[:3, 0], volume.affine[:3, 1:3]
    drift = (step @ planes) / (planes * planes).sum(axis=0)  # of a slice against the one before, in pixels
    count = volume.hu.shape[0]
    if np.abs(drift).max() * (count - 1) < SHEAR_VOX:
        return volume
    total = drift * (count - 1)
    first = np.floor(np.minimum(0.0, total))
    more = (np.ceil(np.maximum(0.0, total)) - first).astype(int)
    hu: Int16Array = np.empty((count, volume.hu.shape[1] + more[0], volume.hu.shape[2] + more[1]), dtype=np.int16)
    for index, plane in enumerate(volume.hu):
        wide = np.pad(plane.astype(np.float32), ((0, more[0]), (0, more[1])), constant_values=AIR_HU)
        shifted = ndimage.shift(wide, drift * index - first, order=1, mode="grid-constant", cval=AIR_HU)
        hu[index] = np.rint(shifted)
    affine = volume.affine.copy()
    affine[:3, 0] = step - planes @ drift
    affine[:3, 3] = volume.affine[:3, 3] + planes @ first
    return Volume(hu=hu, affine=affine)


def _resample(volume: Volume, spacing: tuple[float, float, float], enlarging: str) -> Volume:
    # As Python floats: a step of exactly one must stay exact, or equal grids would be resampled.
    steps = [round(new / old, 9) for new, old in zip(spacing, volume.spacing, strict=True)]
    if steps == [1.0, 1.0, 1.0]:
        return volume
    between = _weights(volume.hu.shape[0], steps[0], "linear")
    rows, columns = (_weights(volume.hu.shape[axis], steps[axis], enlarging) for axis in (1, 2))
    hu: Int16Array = np.empty((between.shape[0], rows.shape[0], columns.shape[0]), dtype=np.int16)

    def in_plane(plane: FloatPlane) -> FloatPlane:
        resampled: FloatPlane = cv2.transpose(columns @ cv2.transpose(rows @ plane))
        return resampled

    @lru_cache(maxsize=2)  # neighbouring output slices lie between the same two
    def resampled(index: int) -> FloatPlane:
        return in_plane(volume.hu[index].astype(np.float32))

    for index, out in enumerate(hu):
        taps = between.indices[between.indptr[index] : between.indptr[index + 1]].tolist()
        shares = between.data[between.indptr[index] : between.indptr[index + 1]].tolist()
        if steps[0] > 1.0:  # fewer slices: mix them first, and resample only the mixture
            plane = in_plane(_mix([volume.hu[tap] for tap in taps], shares))
        else:
            plane = _mix([resampled(tap) for tap in taps], shares)
        out[:] = np.clip(np.rint(plane), -32768, 32767) if enlarging == "cubic" else np.rint(plane)  # it overshoots
    scale, shift = np.diag([*steps, 1.0]), np.eye(4)
    shift[:3, 3] = [step / 2 - 0.5 for step in steps]  # centre of the first output voxel, in input voxels
    return Volume(hu=hu, affine=volume.affine @ shift @ scale)


def _weights(count: int, step: float, enlarging: str) -> sparse.csr_array:
    """Of which of ``count`` input voxels along an axis each output voxel is made, and in what shares.

    Where the step grows, the average over the output voxel's extent, so that nothing is skipped; otherwise linear or
    cubic between the neighbours, the outermost repeated.

    Returns:
        float32, output voxels by input voxels.
    """
    size = max(1, round(count / step))
    low, high = step * np.arange(size)[:, None], step * np.arange(1, size + 1)[:, None]
    reach = {"linear": 1, "cubic": 2}[enlarging]
    if step > 1.0:
        taps = np.floor(low).astype(np.int64) + np.arange(int(np.ceil(step)) + 1)
        shares = np.clip(np.minimum(taps + 1, high) - np.maximum(taps, low), 0.0, None) * (taps < count)
    else:
        centre = (low + high) / 2 - 0.5
        taps = np.floor(centre).astype(np.int64) + np.arange(1 - reach, 1 + reach)
        apart = np.abs(taps - centre)
        shares = np.maximum(0.0, 1.0 - apart) if enlarging == "linear" else _cubic(apart)
    shares[np.abs(shares) < 1e-9] = 0.0
    shares /= shares.sum(axis=1, keepdims=True)
    rows = np.broadcast_to(np.arange(size)[:, None], taps.shape)
    entries = (shares.ravel().astype(np.float32), (rows.ravel(), np.clip(taps, 0, count - 1).ravel()))
    weights = sparse.csr_array(entries, shape=(size, count))
    weights.sum_duplicates()
    weights.eliminate_zeros()
    return weights


def _cubic(apart: FloatArray, a: float = -0.5) -> FloatArray:
    """Cubic convolution at a distance of up to two voxels (Keys 1981). With ``a`` of -0.5 it gives a linear function
    back as it is; OpenCV's -0.75 does not."""
    near = ((a + 2) * apart - (a + 3)) * apart**2 + 1
    far = ((a * apart - 5 * a) * apart + 8 * a) * apart - 4 * a
    return np.where(apart <= 1, near, np.where(apart < 2, far, 0.0))


def _mix(planes: Sequence[npt.NDArray[Any]], weights: Sequence[float]) -> FloatPlane:
    """The weighted sum as float32, in OpenCV: no copy of a plane is made for its weight."""
    if len(planes) == 1:
        return planes[0].astype(np.float32)
    mixed = cv2.addWeighted(planes[0], weights[0], planes[1], weights[1], 0, dtype=cv2.CV_32F)
    for plane, weight in zip(planes[2:], weights[2:], strict=True):
        cv2.addWeighted(mixed, 1.0, plane, weight, 0, dst=mixed, dtype=cv2.CV_32F)
    return np.asarray(mixed, dtype=np.float32)


@dataclass(frozen=True)
class Body:
    """The patient in a volume.

    Attributes:
        low, high: first and one-past-last voxel per axis.
        fraction: share of the volume's voxels that is body.
        pieces: that do not hang together, such as two legs.
        cut_fraction: share of what is denser than the threshold that lies outside: tables, and what was lost.
        area_cm2: of a transverse section, the lungs included; the median over the sections.
    """

    low: tuple[int, int, int]
    high: tuple[int, int, int]
    fraction: float
    pieces: int
    cut_fraction: float
    area_cm2: float


def find_body(volume: Volume, threshold_hu: int) -> Body | None:
    """The connected regions above ``threshold_hu``, after an opening that removes the table's thin boards: the largest,
    and all of at least :data:`PIECE_SHARE` of it.

    Returns None where no voxel is left: a scan of air, or of a table alone.
    """
    stride = [max(1, round(SEARCH_MM / mm)) for mm in volume.spacing]
    coarse = volume.hu[:: stride[0], :: stride[1], :: stride[2]] > threshold_hu
    labels, count = ndimage.label(_opened(coarse))
    if count == 0:
        return None
    sizes = np.bincount(labels.ravel())[1:]
    kept = sizes >= PIECE_SHARE * sizes.max()
    boxes = [box for box, keep in zip(ndimage.find_objects(labels), kept, strict=True) if keep]
    # The opening rounded the skin off: one coarse voxel more on each side keeps it in the box.
    first = [max(0, min(box[axis].start for box in boxes) - 1) for axis in range(3)]
    last = [min(n, max(box[axis].stop for box in boxes) + 1) for axis, n in enumerate(coarse.shape)]
    inside = coarse[first[0] : last[0], first[1] : last[1], first[2] : last[2]]
    return Body(
        low=(first[0] * stride[0], first[1] * stride[1], first[2] * stride[2]),
        high=tuple(min(n, stop * s) for n, stop, s in zip(volume.hu.shape, last, stride, strict=True)),  # type: ignore[arg-type]
        fraction=float(sizes[kept].sum() / labels.size),
        pieces=int(kept.sum()),
        cut_fraction=1.0 - float(np.count_nonzero(inside) / np.count_nonzero(coarse)),
        area_cm2=_area_cm2(np.append(False, kept)[labels], volume.affine * [*stride, 1]),
    )


def _area_cm2(body: npt.NDArray[np.bool_], affine: FloatArray) -> float:
    """The median area of transverse sections that hold body, what it encloses included."""
    along = int(np.argmax(nib.orientations.io_orientation(affine)[:, 0]))
    mm = np.delete(np.linalg.norm(affine[:3, :3], axis=0), along)
    areas = []
    for section in np.moveaxis(body, along, 0):
        if not section.any():
            continue
        framed = np.pad(section.astype(np.uint8), 1)  # so that one fill reaches all that lies outside
        cv2.floodFill(framed, None, (0, 0), 2)
        areas.append(np.count_nonzero(framed != 2) * float(mm[0] * mm[1]) / 100)
    return float(np.median(areas))


def _opened(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Morphological opening by a ball of two voxels' radius within the plane and one across: the table's boards are
    thinner, limbs and head are thicker. In OpenCV plane by plane: the ball is a disc, and a cross above and below."""
    disc, cross = (np.array(_in_plane(reach), dtype=np.uint8) for reach in (5, 1))
    planes = np.zeros((mask.shape[0] + 2, *mask.shape[1:]), dtype=np.uint8)
    planes[1:-1] = mask
    outside: dict[str, Any] = {"borderType": cv2.BORDER_CONSTANT, "borderValue": 0}
    wide = [cv2.erode(plane, disc, **outside) for plane in planes]
    narrow = [cv2.erode(plane, cross, **outside) for plane in planes]
    eroded = np.zeros_like(planes)
    for k in range(1, len(planes) - 1):
        eroded[k] = np.minimum.reduce([wide[k], narrow[k - 1], narrow[k + 1]])
    wide = [cv2.dilate(plane, disc, **outside) for plane in eroded]
    narrow = [cv2.dilate(plane, cross, **outside) for plane in eroded]
    return np.stack([np.maximum.reduce([wide[k], narrow[k - 1], narrow[k + 1]]) for k in range(1, len(planes) - 1)])


def _in_plane(reach: int) -> npt.NDArray[np.bool_]:
    """Voxels of a 5 x 5 plane whose squared distance from the middle is at most ``reach``."""
    rows, columns = np.indices((5, 5)) - 2
    inside: npt.NDArray[np.bool_] = rows**2 + columns**2 <= reach
    return inside


def crop_to_body(volume: Volume, body: Body | None, margin_mm: float) -> Volume:
    """Cut the volume to the body and a margin; whole where there is no body (judged later, never hidden). A copy in
    one piece, whatever the order that orientation left the voxels in."""
    if body is None:
        return Volume(hu=np.ascontiguousarray(volume.hu), affine=volume.affine)
    margin = [round(margin_mm / mm) for mm in volume.spacing]
    low = [max(0, start - m) for start, m in zip(body.low, margin, strict=True)]
    high = [min(n, stop + m) for stop, m, n in zip(body.high, margin, volume.hu.shape, strict=True)]
    hu = np.ascontiguousarray(volume.hu[low[0] : high[0], low[1] : high[1], low[2] : high[2]])
    return Volume(hu=hu, affine=_shifted(volume.affine, low))


def _shifted(affine: FloatArray, start: list[int]) -> FloatArray:
    shifted = affine.copy()
    shifted[:3, 3] = affine[:3, :3] @ np.asarray(start, dtype=np.float64) + affine[:3, 3]
    return shifted
