"""Lesions of the trunk, and healthy control places drawn from the very same distribution.

Every organ gets a fixed number of places; a coin decides which of them hold a lesion. A probe that compares lesions
with controls can therefore not win by telling where in the organ it looks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from components.sources.phantom.shapes import Canvas, Field, Triple, ellipsoid, lumpy, waves

Draws = npt.NDArray[np.float64]  # the site's random numbers, uniform in [0, 1)

FIRST_LABEL = 20  # each lesion has a label of its own, from here on


@dataclass(frozen=True)
class Site:
    """A place in an organ.

    Attributes:
        structure: 'lesion_liver', 'lesion_lung' or 'lesion_kidney'.
        point: anatomy mm.
        label: the lesion's value in the label map, 0 where the place is healthy.
        organ: value of the organ there.
    """

    structure: str
    point: Triple
    label: int
    organ: int


def paint_lesions(
    canvas: Canvas,
    organs: dict[str, tuple[Triple, Triple]],
    rng: np.random.Generator,
    size: float,
    labels: dict[str, int],
) -> list[Site]:
    """Paint the lesions. ``organs`` has centre and radii of liver and kidneys; others are ignored.

    A place that is not within its organ on this scan (cut away, or outside of the field of view) is dropped before the
    coin's outcome is looked at.
    """
    sites: list[Site] = []
    for organ, count in (("liver", 3), ("kidney_right", 1), ("kidney_left", 1), ("lung_right", 2), ("lung_left", 2)):
        kind = "lesion_" + organ.split("_")[0]
        for _ in range(count):
            draws = rng.uniform(0, 1, 12)
            point = _place(organ, organs, rng, size)
            seed = int(rng.integers(2**32))
            if canvas.label_at(point) != labels[organ]:
                continue
            label = 0
            if draws[0] < 0.5:
                label = FIRST_LABEL + len(sites)
                lesion_rng, (smallest, more) = np.random.default_rng(seed), _RADIUS_MM[kind]
                radius = float(smallest + more * draws[1]) * size
                ball = _shape(canvas, point, radius, lesion_rng, labels[organ])
                _PAINT[kind](canvas, ball, radius, draws, lesion_rng, label)
            sites.append(Site(kind, point, label, labels[organ]))
    return sites


def _place(organ: str, organs: dict[str, tuple[Triple, Triple]], rng: np.random.Generator, size: float) -> Triple:
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    depth = rng.uniform(0.15, 0.8) ** (1 / 2)
    if organ.startswith("lung"):
        side = -1 if organ.endswith("right") else 1
        centre, radii = (side * 75 * size, 0.0, 75 * size), (34 * size, 55 * size, 62 * size)
    else:
        centre, radii = organs[organ]
    x, y, z = (float(c + r * depth * d) for c, r, d in zip(centre, radii, direction, strict=True))
    return x, y, z


def _shape(canvas: Canvas, point: Triple, radius: float, rng: np.random.Generator, organ: int) -> Field:
    """A lumpy ball, kept within the organ."""
    stretch = rng.uniform(0.8, 1.25, 3) * radius
    ball = ellipsoid(canvas, point, (float(stretch[0]), float(stretch[1]), float(stretch[2])))
    ball = lumpy(canvas, ball, rng, 0.12 * radius, 2.2 * radius)
    return Field(ball.box, np.where(canvas.label[ball.box] == organ, ball.mm, np.float32(9)))


def _liver(canvas: Canvas, ball: Field, radius: float, u: Draws, rng: np.random.Generator, label: int) -> None:
    """Hypodense metastasis or cyst, sometimes bright with a dark centre."""
    here = np.median(canvas.hu[ball.box][ball.mm < 0]) if np.any(ball.mm < 0) else np.float32(50)
    change = -(14 + 36 * u[2]) if u[3] < 0.75 else 14 + 26 * u[2]
    canvas.paint(ball, np.float32(here + change) + np.float32(4) * waves(canvas, ball.box, rng, 8), label)
    if u[4] < 0.4:
        canvas.paint(Field(ball.box, ball.mm + np.float32(0.5 * radius)), float(here + change - 16))


def _kidney(canvas: Canvas, ball: Field, radius: float, u: Draws, rng: np.random.Generator, label: int) -> None:
    """Cyst of water, or a solid tumour of about the kidney's own brightness."""
    if u[2] < 0.6:
        canvas.paint(ball, float(4 + 14 * u[3]), label)
    else:
        canvas.paint(ball, float(35 + 60 * u[3]) + np.float32(14) * waves(canvas, ball.box, rng, 7), label)


def _lung(canvas: Canvas, ball: Field, radius: float, u: Draws, rng: np.random.Generator, label: int) -> None:
    """Nodule: solid, part solid or ground glass."""
    if u[2] < 0.55:
        canvas.paint(ball, float(-40 + 80 * u[3]), label)
    else:
        canvas.paint(ball, float(-760 + 260 * u[3]) + np.float32(40) * waves(canvas, ball.box, rng, 9), label)
        if u[4] < 0.4:
            canvas.paint(Field(ball.box, ball.mm + np.float32(0.5 * radius)), 0.0)


_PAINT = {"lesion_liver": _liver, "lesion_kidney": _kidney, "lesion_lung": _lung}
_RADIUS_MM = {"lesion_liver": (5, 11), "lesion_kidney": (5, 9), "lesion_lung": (3, 7)}  # smallest, and the spread
