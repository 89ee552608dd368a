"""The findings of a head: bleedings, tumour, oedema. (Hydrocephalus and dementia shape the brain itself: head.py.)

Sizes and attenuations run from obvious to faint, so that a reader is sometimes wrong.
"""

from __future__ import annotations

import numpy as np

from components.sources.phantom.patient_head import LABELS, Head
from components.sources.phantom.shapes import F32, Field, ellipsoid, lumpy, waves

BLEED_HU = (55.0, 85.0)


def _bleed(rng: np.random.Generator) -> float:
    return float(rng.uniform(*BLEED_HU))


def brain_findings(head: Head, rng: np.random.Generator) -> None:
    """Oedema, tumour and bleeding in the brain's substance, in this order: each later one keeps its place."""
    if head.has("oedema"):
        _oedema(head, rng)
    if head.has("tumour"):
        _tumour(head, rng)
    if head.has("iph"):
        _iph(head, rng)


def _oedema(head: Head, rng: np.random.Generator) -> None:
    centre = head.in_brain(0.45, 0.8)
    a, b, c = (float(v * head.size) for v in rng.uniform(16, 32, 3))
    area = ellipsoid(head.canvas, centre, (a, b, c), (0.0, 0.0, float(rng.uniform(-60, 60))))
    area = head.only(lumpy(head.canvas, area, rng, 4.0, 20), "brain")
    dark = float(head.white - rng.uniform(8, 18))
    mm = np.asarray(area.mm / np.float32(3), np.float32)  # a soft border
    head.canvas.paint(Field(area.box, mm), dark, LABELS["finding_oedema"], strength=0.85)


def _tumour(head: Head, rng: np.random.Generator) -> None:
    canvas = head.canvas
    centre = head.in_brain(0.35, 0.85)
    radius = float(rng.uniform(10, 24) * head.size)
    stretch = [float(radius * v) for v in rng.uniform(0.8, 1.25, 3)]
    ball = ellipsoid(canvas, centre, (stretch[0], stretch[1], stretch[2]))
    ball = lumpy(canvas, ball, rng, 0.14 * radius, 1.8 * radius)
    around = head.only(Field(ball.box, ball.mm), "brain", "finding_oedema")
    halo = Field(around.box, np.asarray((around.mm - np.float32(rng.uniform(0, 7))) / 2.5, np.float32))
    canvas.paint(halo, head.white - 7, strength=0.7)
    mass = float(head.grey + rng.choice([-8.0, 8.0, 14.0, 20.0]))
    texture = np.float32(rng.uniform(1, 4)) * waves(canvas, ball.box, rng, 8)
    canvas.paint(around, mass + texture, LABELS["finding_tumour"])
    if rng.random() < 0.4:
        canvas.paint(Field(around.box, around.mm + np.float32(radius * 0.4)), head.fluid + 12)
    if rng.random() < 0.3:
        flecks = np.where(waves(canvas, ball.box, rng, 7) > 1.2, around.mm + 2, np.float32(9))
        canvas.paint(Field(around.box, np.asarray(flecks, np.float32)), 160.0)


def _iph(head: Head, rng: np.random.Generator) -> None:
    canvas = head.canvas
    deep = rng.random() < 0.5
    centre = head.in_brain(0.3, 0.45) if deep else head.in_brain(0.5, 0.8)
    radius = float(rng.uniform(8, 22) * head.size)
    a, b, c = (float(radius * v) for v in rng.uniform(0.75, 1.3, 3))
    clot = ellipsoid(canvas, centre, (a, b, c), (0.0, 0.0, float(rng.uniform(-60, 60))))
    clot = lumpy(canvas, clot, rng, 0.12 * radius, 1.8 * radius)
    clot = head.only(clot, "brain", "finding_oedema", "finding_tumour")
    rim = Field(clot.box, np.asarray((clot.mm - np.float32(rng.uniform(1, 6))) / 2, np.float32))
    canvas.paint(rim, head.white - 8, strength=0.7)
    canvas.paint(clot, _bleed(rng) + np.float32(2) * waves(canvas, clot.box, rng, 10), LABELS["finding_iph"])


def fluid_findings(head: Head, rng: np.random.Generator) -> None:
    """Blood in the ventricles, which settles at the back, and in the sulci and cisterns."""
    canvas = head.canvas
    if head.has("ivh"):
        where = canvas.label == LABELS["ventricles"]
        side = float(rng.choice([-1, 0, 1]))
        if side:
            where &= canvas.x * np.float32(side) > -3
        y = canvas.y[where]
        level = np.quantile(y, rng.uniform(0.5, 0.95)) if y.size else 0.0
        settled = np.where(where, (np.float32(level) - canvas.y) * np.float32(0.7), np.float32(9))
        strength = float(rng.uniform(0.8, 1))
        canvas.paint(Field(canvas.everywhere, settled), _bleed(rng), LABELS["finding_ivh"], strength)
    if head.has("sah"):
        where = canvas.label == LABELS["csf"]
        centre = head.in_brain(0.55, 0.9) if rng.random() < 0.6 else (0.0, -4 * head.size, -24 * head.size)
        reach = float(rng.uniform(36, 60) * head.size)
        patch = ellipsoid(canvas, centre, (reach, reach, reach * 0.8))
        thin = np.where(where[patch.box], patch.mm, np.float32(9))
        strength = float(rng.uniform(0.6, 1.0))
        canvas.paint(Field(patch.box, thin), _bleed(rng), LABELS["finding_sah"], strength=strength)


def shell_findings(head: Head, rng: np.random.Generator) -> None:
    """Bleedings under the skull: a wide crescent (subdural) or a short thick lens (epidural)."""
    if head.has("sdh"):
        by_age = (_bleed(rng), float(rng.uniform(36, 46)), float(rng.uniform(18, 28)))  # acute, subacute, chronic
        hu = by_age[int(rng.choice(3, p=[0.7, 0.15, 0.15]))]
        facing = _facing(head, rng, lowest=-0.1)
        crescent = np.minimum(1, 3.5 * np.clip((facing - np.float32(rng.uniform(0.3, 0.8))), 0, 1))
        _shell(head, crescent * np.float32(rng.uniform(4, 13)), hu, "finding_sdh")
    if head.has("edh"):
        facing = _facing(head, rng, lowest=-0.05)
        edge = rng.uniform(0.75, 0.9)
        lens = np.clip((facing - np.float32(edge)) / np.float32(1 - edge), 0, 1)
        _shell(head, lens * np.float32(rng.uniform(10, 26)), _bleed(rng), "finding_edh")


def _facing(head: Head, rng: np.random.Generator, lowest: float) -> F32:
    """Cosine between each voxel's direction from the centre and a random direction to the side."""
    canvas = head.canvas
    side = float(rng.choice([-1, 1]))
    aim = np.array([side * rng.uniform(0.6, 1), rng.uniform(-0.8, 0.8), rng.uniform(lowest, 0.8)])
    aim /= np.linalg.norm(aim)
    length = np.sqrt(canvas.x**2 + canvas.y**2 + canvas.z**2) + np.float32(1e-3)
    along = np.float32(aim[0]) * canvas.x + np.float32(aim[1]) * canvas.y + np.float32(aim[2]) * canvas.z
    return np.asarray(along / length, np.float32)


def _shell(head: Head, thickness: F32, hu: float, name: str) -> None:
    """Fill from the inner table inwards, as thick as given."""
    mm = np.maximum(head.inner.mm + np.float32(0.3), -head.inner.mm - thickness)
    mm = np.where(thickness > 0.4, mm, np.float32(9))
    texture = np.float32(1.5) * waves(head.canvas, head.canvas.everywhere, head.rng, 14)
    head.canvas.paint(Field(head.canvas.everywhere, np.asarray(mm, np.float32)), hu + texture, LABELS[name])
