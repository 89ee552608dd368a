"""The head: skull, brain and ventricles of one patient, with the findings of the FM-CT list.

Coordinates: mm, x to left, y to posterior, z to superior; the origin lies in the middle of the brain. Age shrinks
brains and widens ventricles in everybody, so that hydrocephalus and dementia have to be told from normal ageing.
"""

from __future__ import annotations

import numpy as np

from components.sources.phantom.findings import brain_findings, fluid_findings, shell_findings
from components.sources.phantom.patient_head import LABELS, Head
from components.sources.phantom.seeds import generator
from components.sources.phantom.shapes import F32, Canvas, Field, ellipsoid, lumpy, tube, waves
from components.sources.phantom.subject import Subject, subject_of


def paint_head(canvas: Canvas, anatomy_seed: int, habitus: float, findings: tuple[str, ...]) -> Subject:
    """Paint one patient with the findings given ('ich' is not among them: it follows from the others); returns who it
    is."""
    rng = generator("head", anatomy_seed)
    head = _skull(canvas, rng, 0.5 + habitus / 2, findings)
    found = generator("findings", anatomy_seed)
    _brain(head)
    _deep_grey(head)
    brain_findings(head, found)
    _ventricles(head)
    _posterior_fossa(head)
    fluid_findings(head, found)
    _falx(head)
    shell_findings(head, found)
    return subject_of(anatomy_seed, head.age, enhanced=False)


def _skull(canvas: Canvas, rng: np.random.Generator, size: float, findings: tuple[str, ...]) -> Head:
    a, b, c = (float(r * size * rng.uniform(0.95, 1.05)) for r in (66.0, 83.0, 74.0))
    thickness = float(rng.uniform(5, 9))
    scalp = float(rng.uniform(4, 8))
    outer = ellipsoid(canvas, (0.0, 0.0, 0.0), (a + thickness + scalp, b + thickness + scalp, c + thickness + scalp))
    neck = tube(canvas, (0.0, 12.0 * size, -200.0), (0.0, 12.0 * size, -40.0), 58 * size)
    canvas.paint(Field(neck.box, neck.mm), 45.0, LABELS["soft_tissue"])
    face = ellipsoid(canvas, (0.0, -38 * size, -70 * size), (58 * size, 58 * size, 65 * size))
    canvas.paint(face, 30.0, LABELS["soft_tissue"])
    canvas.paint(outer, float(rng.uniform(-20, 40)), LABELS["soft_tissue"])
    everywhere = canvas.everywhere
    full = Field(everywhere, np.full(canvas.hu.shape, np.float32(60)))
    full.mm[outer.box] = outer.mm
    shell = full.mm + np.float32(scalp)
    # The base rises from the posterior fossa (behind) to the anterior fossa (in front).
    floor = -48 * size + np.float32(24 * size) * np.clip(0.3 - canvas.y / np.float32(60 * size), 0, 1)
    inner = np.maximum(shell + np.float32(thickness), floor - canvas.z)
    inner += np.float32(0.8) * waves(canvas, everywhere, rng, 60, 2)
    base = np.maximum(shell, np.abs(floor - canvas.z + 3) - 3)
    bone = np.where(canvas.z > floor - 3, np.maximum(shell, -inner), base)
    density = np.float32(rng.uniform(850, 1250)) + np.float32(90) * waves(canvas, everywhere, rng, 35)
    marrow = np.clip(1 - np.abs(shell + thickness / 2) / np.float32(thickness / 3), 0, 1)
    marrow = marrow * np.float32(rng.uniform(250, 650))
    below = canvas.z < floor
    _face(canvas, rng, size, b)
    canvas.paint(Field(everywhere, bone), np.where(below, density * np.float32(0.5), density - marrow), LABELS["skull"])
    fluid = float(rng.normal(7, 2.5))
    canvas.paint(Field(everywhere, inner), fluid, LABELS["csf"])
    age = float(rng.uniform(0, 1))
    grey = float(rng.normal(37.5, 1.2) - 1.5 * age)
    white = grey - float(rng.uniform(5, 9))
    return Head(canvas, rng, size, (a, b, c), Field(everywhere, inner), age, grey, white, fluid, findings)


def _face(canvas: Canvas, rng: np.random.Generator, size: float, b: float) -> None:
    """Soft tissue of the face, orbits, air in sinuses and ears, dense petrous bone."""
    for side in (-1, 1):
        tip = (side * 16 * size, 4 * size, -40 * size)
        petrous = tube(canvas, tip, (side * 58 * size, 24 * size, -42 * size), 9 * size)
        canvas.paint(petrous, 700.0, LABELS["skull"])
        cells = ellipsoid(canvas, (side * 56 * size, 26 * size, -50 * size), (7 * size, 10 * size, 12 * size))
        canvas.paint(cells, float(rng.uniform(-800, 0)), LABELS["skull"])
        front = (side * 44 * size, -70 * size, -58 * size)
        cheek = tube(canvas, front, (side * 62 * size, -10 * size, -55 * size), 4 * size)
        canvas.paint(cheek, 600.0, LABELS["skull"])
        eye = ellipsoid(canvas, (side * 31 * size, -(b - 8 * size), -44 * size), (13 * size, 13 * size, 13 * size))
        canvas.paint(Field(eye.box, eye.mm - 5), -90.0, LABELS["soft_tissue"])
        canvas.paint(eye, 12.0, LABELS["soft_tissue"])
        sinus = ellipsoid(canvas, (side * 24 * size, -58 * size, -66 * size), (14 * size, 16 * size, 15 * size))
        canvas.paint(sinus, float(rng.choice([-990.0, -990.0, 20.0])))
    canvas.paint(ellipsoid(canvas, (0.0, -62 * size, -62 * size), (10 * size, 26 * size, 22 * size)), -850.0)


def _folds(head: Head) -> F32:
    """Where sulci run: a smooth random pattern, 0 on gyri to 1 in the depth of a sulcus."""
    pattern = waves(head.canvas, head.canvas.everywhere, head.rng, 22 * head.size, 4)
    return np.asarray(np.clip(0.55 - np.abs(pattern), 0, 0.55) / np.float32(0.55), np.float32)


def _brain(head: Head) -> None:
    canvas, rng = head.canvas, head.rng
    atrophy = 0.55 * head.age + 0.15 * rng.random()
    if head.has("dementia"):
        atrophy += rng.uniform(0.3, 0.75)
    if head.has("hydrocephalus"):
        atrophy *= rng.uniform(0.3, 0.8)  # the sulci are pressed shut
    gap = 1.0 + 2.8 * atrophy
    depth = 5 + 9 * atrophy
    folds = _folds(head)
    outer = head.inner.mm + np.float32(gap)
    surface = outer + np.float32(depth) * folds * (0.25 + np.float32(0.75 * min(1.0, atrophy + 0.25)))
    fissure = np.float32(0.8 + 1.6 * atrophy) - np.abs(canvas.x)
    upper = canvas.z > np.float32(8 * head.size)
    surface = np.where(upper, np.maximum(surface, fissure), surface)
    for side in (-1, 1):  # Sylvian fissures
        sylvian = ellipsoid(
            canvas, (side * 46 * head.size, -8 * head.size, -4 * head.size),
            ((9 + 6 * atrophy) * head.size, 22 * head.size, (2.5 + 4 * atrophy) * head.size), (12.0, 0.0, 0.0),
        )  # fmt: skip
        surface[sylvian.box] = np.maximum(surface[sylvian.box], -sylvian.mm)
    texture = np.float32(0.8) * waves(canvas, canvas.everywhere, rng, 9, 4)
    canvas.paint(Field(canvas.everywhere, surface), np.float32(head.grey) + texture, LABELS["brain"])
    core = outer + np.float32(5.5) + np.float32(depth * 0.9) * folds
    core = np.maximum(core, fissure + 4)
    # Old white matter is darker next to the ventricles.
    old = np.float32(-4 * head.age * rng.random()) * np.exp(-((canvas.x**2 + canvas.y**2 / 3) / np.float32(900)))
    canvas.paint(Field(canvas.everywhere, core), np.float32(head.white) + texture + old)


def _deep_grey(head: Head) -> None:
    canvas, size = head.canvas, head.size
    for side in (-1, 1):
        for centre, radii in (((10, 6, 2), (8, 13, 9)), ((24, -8, 3), (5, 15, 9)), ((12, -20, 10), (5, 9, 8))):
            x, y, z = (float(v * size) for v in centre)
            nucleus = ellipsoid(canvas, (side * x, y, z), (radii[0] * size, radii[1] * size, radii[2] * size))
            canvas.paint(head.only(nucleus, "brain"), head.grey - 0.5)
    if head.rng.random() < 0.35 + 0.3 * head.age:  # harmless calcification: pineal gland and choroid plexus
        canvas.paint(ellipsoid(canvas, (0.0, 24 * size, 2.0), (2.5, 2.5, 2.5)), float(head.rng.uniform(90, 300)))


def _ventricles(head: Head) -> None:
    canvas, rng, size = head.canvas, head.rng, head.size
    width = 0.72 + 0.5 * head.age + rng.normal(0, 0.12)
    if head.has("dementia"):
        width += rng.uniform(0.1, 0.45)
    if head.has("hydrocephalus"):
        width = max(width, 1.0) * rng.uniform(1.35, 2.1)
    width = float(np.clip(width, 0.55, 2.4))
    long = width**0.4
    horns = (
        ((9, -26, 12), (5.0, 15, 8), (0, 0, 14)),
        ((11, 0, 21), (6.0, 26, 6), (-6, 0, -6)),
        ((21, 27, 8), (6.5, 14, 9), (0, 0, -20)),
        ((30, 6, -17), (3.0, 14, 3.5), (0, 0, -8)),
    )
    for side in (-1, 1):
        uneven = float(rng.uniform(0.85, 1.18))
        for centre, radii, degrees in horns:
            x, y, z = (float(v * size + rng.normal(0, 1)) for v in centre)
            a, b, c = radii[0] * width * uneven * size, radii[1] * long * size, radii[2] * width**0.7 * size
            turn = (float(degrees[0]), 0.0, float(side * degrees[2]))
            horn = ellipsoid(canvas, (side * (x + 4 * (width - 1)), y, z), (float(a), float(b), float(c)), turn)
            canvas.paint(head.only(horn, "brain", "ventricles"), head.fluid, LABELS["ventricles"])
    third = ellipsoid(canvas, (0.0, 2 * size, 0.0), (2.0 * width**1.3 * size, 14 * size, 10 * size))
    canvas.paint(head.only(third, "brain", "csf"), head.fluid, LABELS["ventricles"])
    fourth = ellipsoid(canvas, (0.0, 34 * size, -34 * size), (6 * width**0.5 * size, 4 * width**0.7 * size, 8 * size))
    canvas.paint(head.only(fourth, "brain", "csf"), head.fluid, LABELS["ventricles"])
    for side in (-1, 1):
        if rng.random() < 0.4 + 0.3 * head.age:
            plexus = ellipsoid(canvas, (side * 21 * size, 27 * size, 8 * size), (2.5, 4.0, 3.0))
            canvas.paint(head.only(plexus, "ventricles"), float(rng.uniform(40, 140)))


def _posterior_fossa(head: Head) -> None:
    """Cisterns round the brain stem, and the fine folds of the cerebellum."""
    canvas, rng, size = head.canvas, head.rng, head.size
    wide = 1 + 0.5 * head.age
    cisterns = (
        ((0, -6, -27), (14, 9, 5)),
        ((0, 22, -14), (16, 4, 6)),
        ((-17, 8, -22), (4, 12, 5)),
        ((17, 8, -22), (4, 12, 5)),
    )
    for centre, radii in cisterns:
        x, y, z = (float(v * size) for v in centre)
        a, b, c = (float(r * size * wide * rng.uniform(0.8, 1.2)) for r in radii)
        canvas.paint(head.only(ellipsoid(canvas, (x, y, z), (a, b, c)), "brain"), head.fluid + 3, LABELS["csf"])
    cerebellum = ellipsoid(canvas, (0.0, 48 * size, -34 * size), (46 * size, 26 * size, 18 * size))
    folia = np.float32(2) * np.sin(canvas.z[cerebellum.box] * np.float32(2 * np.pi / 5))
    canvas.paint(head.only(cerebellum, "brain", "csf"), np.float32(head.grey - 2) + folia, LABELS["brain"])
    fourth = ellipsoid(canvas, (0.0, 34 * size, -34 * size), (6 * size, 4 * size, 8 * size))
    canvas.paint(head.only(fourth, "brain"), head.fluid, LABELS["ventricles"])


def _falx(head: Head) -> None:
    canvas, size = head.canvas, head.size
    sheet = np.abs(canvas.x) - np.float32(0.7)
    rim = np.maximum(-head.inner.mm - np.float32(30 * size), head.inner.mm + 0.5)
    mm = np.maximum(np.maximum(sheet, rim), np.float32(10 * size) - canvas.z)
    dense = float(head.rng.uniform(48, 75))
    canvas.paint(Field(canvas.everywhere, mm), dense, strength=0.8)
    sinus = tube(canvas, (0.0, head.radii[1] - 5, 10.0), (0.0, head.radii[1] * 0.75, head.radii[2] * 0.6), 3.0)
    sinus = head.only(lumpy(canvas, sinus, head.rng, 0.5, 12), "brain", "csf")
    canvas.paint(sinus, float(head.rng.uniform(48, 62)))
