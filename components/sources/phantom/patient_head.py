"""A patient's head while it is painted: what its parts and its findings share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.sources.phantom.shapes import Canvas, Field, Triple

LABELS: dict[str, int] = {
    "skull": 1,
    "brain": 2,
    "csf": 3,
    "ventricles": 4,
    "soft_tissue": 5,
    "finding_iph": 11,
    "finding_ivh": 12,
    "finding_sdh": 13,
    "finding_edh": 14,
    "finding_sah": 15,
    "finding_tumour": 16,
    "finding_oedema": 17,
}


@dataclass
class Head:
    """The patient while being painted.

    Attributes:
        radii: inner table of the skull, mm.
        inner: distance to the inner table, negative inside of the cranial cavity.
        age: 0 young to 1 old.
        grey, white, fluid: HU.
    """

    canvas: Canvas
    rng: np.random.Generator
    size: float
    radii: Triple
    inner: Field
    age: float
    grey: float
    white: float
    fluid: float
    findings: tuple[str, ...]

    def has(self, finding: str) -> bool:
        return finding in self.findings

    def only(self, field: Field, *labels: str) -> Field:
        """The part of a shape that lies on the labels given."""
        here = np.isin(self.canvas.label[field.box], [LABELS[name] for name in labels])
        return Field(field.box, np.where(here, field.mm, np.float32(9)))

    def in_brain(self, low: float, high: float, floor: float = -0.15) -> Triple:
        """A random place in the hemispheres, ``low`` to ``high`` of the way from the centre to the inner table."""
        while True:
            direction = self.rng.normal(size=3)
            direction /= np.linalg.norm(direction)
            if direction[2] > floor and abs(direction[0]) > 0.2:
                break
        depth = self.rng.uniform(low, high)
        x, y, z = (float(r * depth * d) for r, d in zip(self.radii, direction, strict=True))
        return x, y, z
