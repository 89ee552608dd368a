"""Analytic shapes with soft edges, sampled on a scan's grid.

A shape is a :class:`Field`: the signed distance in mm (negative inside) on a box of the grid. Fields are joined by
minimum and maximum, then painted. Only the box round a shape is computed, which keeps a scan within a second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Box = tuple[slice, slice, slice]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Field:
    """Signed distance to a surface, in mm, on ``box`` of a canvas; negative inside."""

    box: Box
    mm: F32

    def on(self, box: Box) -> F32:
        """The part on a smaller box; only for a field that covers the whole canvas."""
        return self.mm[box]


@dataclass(frozen=True)
class Canvas:
    """What a scan sees, before the scanner's blur and noise.

    Attributes:
        hu: (K, R, C) float32 Hounsfield units; axes to superior, posterior, left of the scanner.
        label: (K, R, C) uint8 label map.
        x, y, z: (K, R, C) float32 anatomy coordinates in mm (to left, posterior, superior), with the patient's warp.
        index: (4, 4) anatomy millimetres to grid index (k, r, c), without the warp.
        warp_mm: the largest shift that the warp makes, the margin of every box.
        edge_mm: width of a soft edge.
    """

    hu: F32
    label: npt.NDArray[np.uint8]
    x: F32
    y: F32
    z: F32
    index: F64
    warp_mm: float
    edge_mm: float

    @property
    def everywhere(self) -> Box:
        k, r, c = self.hu.shape
        return slice(0, k), slice(0, r), slice(0, c)

    def box(self, centre: Triple, reach: Triple) -> Box:
        """The grid box round ``centre`` that reaches ``reach`` mm each way; empty where it lies outside."""
        reach_index = np.abs(self.index[:3, :3]) @ (np.asarray(reach) + self.warp_mm + 2 * self.edge_mm) + 1
        middle = self.index[:3, :3] @ np.asarray(centre) + self.index[:3, 3]
        low = np.clip(np.floor(middle - reach_index), 0, self.hu.shape).astype(int)
        high = np.clip(np.ceil(middle + reach_index) + 1, low, self.hu.shape).astype(int)
        return slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])

    def paint(self, field: Field, hu: float | F32, label: int = 0, strength: float = 1.0) -> None:
        """Blend ``hu`` in where the field is negative; write ``label`` there unless it is 0."""
        alpha = np.clip(0.5 - field.mm / np.float32(self.edge_mm), 0, 1)
        if strength != 1.0:
            alpha *= np.float32(strength)
        region = self.hu[field.box]
        region += alpha * (hu - region)
        if label:
            self.label[field.box][field.mm < 0] = label

    def label_at(self, point: Triple) -> int:
        """The label at an anatomy point (the warp, a few mm, is not undone), or 0 outside of the grid."""
        k, r, c = np.rint(self.index[:3, :3] @ np.asarray(point) + self.index[:3, 3]).astype(int)
        if not all(0 <= i < n for i, n in zip((k, r, c), self.label.shape, strict=True)):
            return 0
        return int(self.label[k, r, c])


def rotation(degrees: Triple) -> F64:
    """Rotation matrix (3, 3): about x, then y, then z."""
    ax, ay, az = np.deg2rad(degrees)
    cx, sx, cy, sy, cz, sz = np.cos(ax), np.sin(ax), np.cos(ay), np.sin(ay), np.cos(az), np.sin(az)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    matrix: F64 = about_z @ about_y @ about_x
    return matrix


def ellipsoid(canvas: Canvas, centre: Triple, radii: Triple, degrees: Triple = (0.0, 0.0, 0.0)) -> Field:
    """Distance to an ellipsoid (first order: implicit function over the length of its gradient)."""
    matrix = rotation(degrees)
    reach = np.sqrt((matrix * np.asarray(radii)) ** 2 @ np.ones(3))
    box = canvas.box(centre, (float(reach[0]), float(reach[1]), float(reach[2])))
    local = [axis[box] - np.float32(c) for axis, c in zip((canvas.x, canvas.y, canvas.z), centre, strict=True)]
    square = np.zeros_like(local[0])
    slope = np.zeros_like(local[0])
    for axis, radius in enumerate(radii):
        if any(degrees):
            q = sum(np.float32(matrix[i, axis]) * local[i] for i in range(3)) / np.float32(radius)
        else:
            q = local[axis] / np.float32(radius)
        q = q * q
        square += q
        slope += q / np.float32(radius**2)
    rho = np.sqrt(square)
    return Field(box, rho * (rho - 1) / np.sqrt(slope + np.float32(1e-9)))


def tube(canvas: Canvas, start: Triple, end: Triple, radius: float) -> Field:
    """Distance to a capsule: all points within ``radius`` mm of the segment from ``start`` to ``end``."""
    a, b = np.asarray(start), np.asarray(end)
    reach = np.abs(b - a) / 2 + radius
    middle = (a + b) / 2
    box = canvas.box(
        (float(middle[0]), float(middle[1]), float(middle[2])), (float(reach[0]), float(reach[1]), float(reach[2]))
    )
    local = [axis[box] - np.float32(c) for axis, c in zip((canvas.x, canvas.y, canvas.z), a, strict=True)]
    step = b - a
    along = sum(np.float32(s) * axis for s, axis in zip(step, local, strict=True)) / np.float32(step @ step + 1e-9)
    along = np.clip(along, 0, 1)
    gaps = [axis - np.float32(s) * along for s, axis in zip(step, local, strict=True)]
    return Field(box, np.sqrt(gaps[0] ** 2 + gaps[1] ** 2 + gaps[2] ** 2) - np.float32(radius))


def waves(canvas: Canvas, box: Box, rng: np.random.Generator, wavelength_mm: float, count: int = 3) -> F32:
    """Smooth texture in anatomy space, about zero mean and unit variance: a few plane waves of random direction."""
    total = np.zeros(canvas.x[box].shape, np.float32)
    for _ in range(count):
        direction = rng.normal(size=3)
        k = direction / np.linalg.norm(direction) * 2 * np.pi / (wavelength_mm * rng.uniform(0.75, 1.35))
        phase = np.float32(k[0]) * canvas.x[box] + np.float32(k[1]) * canvas.y[box] + np.float32(k[2]) * canvas.z[box]
        total += np.sin(phase + np.float32(rng.uniform(0, 2 * np.pi)))
    return total * np.float32(np.sqrt(2 / count))


def lumpy(canvas: Canvas, field: Field, rng: np.random.Generator, amplitude_mm: float, wavelength_mm: float) -> Field:
    """The same shape with bumps and dents."""
    return Field(field.box, field.mm + np.float32(amplitude_mm) * waves(canvas, field.box, rng, wavelength_mm))


def within(field: Field, *others: F32) -> Field:
    """Intersection; each other field is given on the same box (negate one to cut it away)."""
    mm = field.mm
    for other in others:
        mm = np.maximum(mm, other)
    return Field(field.box, mm)


def union_box(first: Box, second: Box) -> Box:
    """The smallest box that holds both."""
    return (
        slice(min(first[0].start, second[0].start), max(first[0].stop, second[0].stop)),
        slice(min(first[1].start, second[1].start), max(first[1].stop, second[1].stop)),
        slice(min(first[2].start, second[2].start), max(first[2].stop, second[2].stop)),
    )


def joined(first: Field, second: Field) -> Field:
    """Union of two shapes on the box that holds both."""
    box = union_box(first.box, second.box)
    mm = np.full(tuple(s.stop - s.start for s in box), np.float32(1e3), np.float32)
    for field in (first, second):
        inner = tuple(slice(s.start - o.start, s.stop - o.start) for s, o in zip(field.box, box, strict=True))
        mm[inner] = np.minimum(mm[inner], field.mm)
    return Field(box, mm)
