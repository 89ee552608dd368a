"""The trunk: chest and abdomen of one patient, painted on a scan's grid.

Coordinates: mm, x to left, y to posterior, z to superior; x = y = 0 in the middle of the trunk, z = 0 at the top of the
right diaphragm. Sizes are plausible, not measured; attenuations overlap between organs on purpose, and an optional
contrast phase shifts them, so that brightness alone does not name an organ.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from components.sources.phantom import shapes
from components.sources.phantom.lesions import Site, paint_lesions
from components.sources.phantom.seeds import generator
from components.sources.phantom.shapes import F32, Box, Canvas, Field, Triple, ellipsoid, lumpy, tube, waves, within
from components.sources.phantom.subject import Subject, subject_of

LABELS: dict[str, int] = {
    "lung_right": 1,
    "lung_left": 2,
    "heart": 3,
    "liver": 4,
    "spleen": 5,
    "kidney_right": 6,
    "kidney_left": 7,
    "spine": 8,
    "aorta": 9,
    "ribs": 10,
    "body": 11,
}
NATIVE = "none"  # the phase of a scan without contrast
ORGANS = tuple(name for name in LABELS if name not in ("ribs", "body"))


@dataclass
class Torso:
    """The patient while being painted: size, tissue attenuation and the fields that later shapes are cut with."""

    canvas: Canvas
    rng: np.random.Generator
    size: float
    half_width: float
    half_depth: float
    enhancement: dict[str, float]
    cavity: Field
    filler_hu: float
    phase: str

    def at(self, u: float, v: float, z: float, wobble: float = 6.0) -> Triple:
        """A point in fractions of the cavity's half width and depth, z in mm of a normal patient, moved at random."""
        dx, dy, dz = self.rng.normal(0, wobble, 3) * self.size
        return float(u * self.half_width + dx), float(v * self.half_depth + dy), float(z * self.size + dz)

    def radii(self, *mm: float) -> Triple:
        a, b, c = (float(r * self.size * self.rng.uniform(0.82, 1.2)) for r in mm)
        return a, b, c

    def tilt(self, spread: float = 9.0) -> Triple:
        a, b, c = (float(v) for v in self.rng.normal(0, spread, 3))
        return a, b, c


def paint_body(canvas: Canvas, anatomy_seed: int, habitus: float) -> tuple[list[Site], Subject]:
    """Paint one patient; returns the places where a lesion could be, with or without one, and who it is."""
    rng = generator("body", anatomy_seed)
    torso = _wall(canvas, rng, habitus)
    _bowel(torso)
    _lungs(torso)
    domes = _diaphragm(torso)
    organs = {"liver": _liver(torso, domes)}
    _stomach(torso)
    organs["spleen"] = _spleen(torso, domes)
    _mediastinum(torso)
    organs |= _kidneys(torso)
    _spine(torso)
    _vessels(torso)
    _ribs(torso)
    _lung_vessels(torso)
    sites = paint_lesions(canvas, organs, generator("lesions", anatomy_seed), habitus, LABELS)
    return sites, subject_of(anatomy_seed, None, torso.phase != NATIVE)


def _wall(canvas: Canvas, rng: np.random.Generator, habitus: float) -> Torso:
    """Skin, fat and muscle; the cavity within. The cross-section is a rounded rectangle that tapers along z."""
    half_width = 163 * habitus * rng.uniform(0.95, 1.04)
    half_depth = half_width * rng.uniform(0.62, 0.75)
    fat = rng.uniform(5, 13) + max(0.0, habitus - 0.9) * rng.uniform(10, 70)
    muscle = rng.uniform(13, 19)
    taper = 1 - np.float32(rng.uniform(0.01, 0.035)) * (canvas.z / 100 - np.float32(rng.uniform(-0.5, 0.5))) ** 2
    u = np.minimum((canvas.x / (np.float32(half_width) * taper)) ** 2, 2.5)
    v = np.minimum((canvas.y / (np.float32(half_depth) * taper)) ** 2, 2.5)
    depth = (1 - np.sqrt(u + v - np.float32(0.45) * u * v)) * np.float32(half_depth)  # mm below the skin
    depth += np.float32(1.5) * waves(canvas, canvas.everywhere, rng, 140, 2)
    steps = np.arange(-8, 90, 0.25)
    # Lean patients have little fat between the organs.
    muscle_hu, inner_hu = rng.uniform(45, 62), rng.uniform(-105, 5)
    profile = np.interp(
        steps,
        [-1, 0.5, 2, 3, fat, fat + 1.5, fat + muscle, fat + muscle + 1.5],
        [-1000, 30, 15, -105, -102, muscle_hu, muscle_hu, inner_hu],
    ).astype(np.float32)
    index = np.clip((depth + 8) * 4, 0, len(steps) - 1).astype(np.int16)
    inside = depth > 0
    canvas.hu[...] = np.where(inside, profile[index], canvas.hu)
    canvas.label[inside] = LABELS["body"]
    cavity = Field(canvas.everywhere, np.float32(fat + muscle) - depth)
    phase = str(rng.choice([NATIVE, NATIVE, "arterial", "portal", "portal"]))
    enhancement = _enhancement(rng, phase)
    inner = fat + muscle
    return Torso(
        canvas, rng, habitus, half_width - inner, half_depth - inner, enhancement, cavity, float(inner_hu), phase
    )


def _enhancement(rng: np.random.Generator, phase: str) -> dict[str, float]:
    """HU of each tissue in this patient; iodine adds to each by contrast phase."""
    plain = {
        "blood": (42.0, 5.0),
        "heart": (44.0, 5.0),
        "liver": (54.0, 11.0),
        "spleen": (48.0, 6.0),
        "kidney": (35.0, 6.0),
        "bowel": (35.0, 12.0),
    }
    phases: dict[str, dict[str, float]] = {
        NATIVE: dict.fromkeys(plain, 0.0),
        "arterial": {"blood": 190, "heart": 85, "liver": 16, "spleen": 75, "kidney": 95, "bowel": 30},
        "portal": {"blood": 95, "heart": 75, "liver": 52, "spleen": 68, "kidney": 120, "bowel": 40},
    }
    added = phases[phase]
    amount = rng.uniform(0.5, 1.15)
    return {name: rng.normal(*plain[name]) + amount * added[name] * rng.uniform(0.8, 1.2) for name in plain}


def _paint_organ(torso: Torso, field: Field, tissue: str, label: str, grain: float, wavelength: float) -> None:
    texture = np.float32(grain) * waves(torso.canvas, field.box, torso.rng, wavelength)
    torso.canvas.paint(field, np.float32(torso.enhancement[tissue]) + texture, LABELS[label])


def _bowel(torso: Torso) -> None:
    """Loops in the abdomen, some with gas or contrast: soft tissue of every brightness outside of the organs."""
    rng = torso.rng
    for _ in range(14):
        centre = torso.at(rng.uniform(-0.7, 0.7), rng.uniform(-0.7, 0.25), rng.uniform(-175, -85))
        radii = torso.radii(rng.uniform(14, 30), rng.uniform(12, 22), rng.uniform(12, 26))
        loop = ellipsoid(torso.canvas, centre, radii, torso.tilt(30))
        loop = lumpy(torso.canvas, within(loop, torso.cavity.on(loop.box) + 3), rng, 2.0, 25)
        torso.canvas.paint(loop, float(torso.enhancement["bowel"] + rng.normal(0, 15)), LABELS["body"])
        content = float(rng.choice([-800, 15, 30, 220], p=[0.3, 0.3, 0.25, 0.15]))
        inner = Field(loop.box, loop.mm + np.float32(rng.uniform(3.5, 6)))
        torso.canvas.paint(inner, content)


def _lungs(torso: Torso) -> None:
    canvas, rng = torso.canvas, torso.rng
    base = rng.uniform(-880, -790)
    for side, name in ((-1, "lung_right"), (1, "lung_left")):
        centre = torso.at(side * 0.54, 0.0, 62)
        radii = (torso.half_width * 0.47, torso.half_depth * 0.98, float(118 * torso.size * rng.uniform(0.94, 1.06)))
        lung = ellipsoid(canvas, centre, radii, (0.0, side * -5.0, 0.0))
        lung = lumpy(canvas, within(lung, torso.cavity.on(lung.box) + 2), rng, 1.5, 60)
        # Blood settles: the posterior lung is denser (a prone scan is too short for it to move).
        slope = np.float32(rng.uniform(0.1, 0.6)) * canvas.y[lung.box]
        grain = np.float32(rng.uniform(10, 30)) * waves(canvas, lung.box, rng, 22, 4)
        canvas.paint(lung, np.float32(base) + slope + grain, LABELS[name])


def _diaphragm(torso: Torso) -> dict[str, Field]:
    """The domes push the lungs up: abdomen below them."""
    canvas, domes = torso.canvas, {}
    for side, name, top in ((-1, "right", 0.0), (1, "left", -12.0)):
        x, y, z = torso.at(side * 0.5, 0.0, top, wobble=2.5)
        width, depth = np.float32(torso.half_width * 0.62), np.float32(torso.half_depth * 1.2)
        box = canvas.box((x, y, z - 70 * torso.size), (float(width), float(depth), 75 * torso.size))
        # Flat on top and steep at the sides: the lung reaches far down between diaphragm and ribs.
        bend = ((canvas.x[box] - np.float32(x)) / width) ** 2 + ((canvas.y[box] - np.float32(y)) / depth) ** 2
        rise = canvas.z[box] - np.float32(z) + np.float32(75 * torso.size) * np.minimum(bend, 1.2) ** 2
        dome = Field(box, np.asarray(np.maximum(rise * np.float32(0.7), torso.cavity.on(box)), np.float32))
        lung = (canvas.label[box] == LABELS["lung_right"]) | (canvas.label[box] == LABELS["lung_left"])
        canvas.paint(Field(box, np.where(lung, dome.mm, np.float32(9))), torso.filler_hu, LABELS["body"])
        domes[name] = dome
    return domes


def _liver(torso: Torso, domes: dict[str, Field]) -> tuple[Triple, Triple]:
    canvas = torso.canvas
    centre, radii = torso.at(-0.44, 0.0, -72), torso.radii(70, 70, 78)
    right = ellipsoid(canvas, centre, radii, torso.tilt(6))
    yaw = float(torso.rng.normal(0, 8))
    left = ellipsoid(canvas, torso.at(-0.02, -0.42, -48), torso.radii(62, 32, 34), (0.0, 0.0, yaw))
    liver = shapes.joined(right, left)
    up = canvas.z[liver.box] - np.float32(-5 * torso.size)
    dome = domes["right"]
    under = np.full(liver.mm.shape, np.float32(-50), np.float32)
    _copy(dome, liver.box, under)
    # Left of the right dome only the height limits the liver.
    under = np.where(canvas.x[liver.box] < 0, under, up + 12)
    liver = lumpy(canvas, within(liver, torso.cavity.on(liver.box) + 3, under + 3), torso.rng, 2.0, 55)
    _paint_organ(torso, liver, "liver", "liver", torso.rng.uniform(2, 6), 18)
    for _ in range(7):  # hepatic and portal veins
        start = torso.at(-0.2, 0.05, -60, wobble=12)
        end = torso.at(-0.5, 0.0, -55, wobble=26)
        vein = tube(canvas, start, end, float(torso.rng.uniform(1.8, 4.0)))
        veiled = np.where(canvas.label[vein.box] == LABELS["liver"], vein.mm, np.float32(9))
        mixed = 0.5 * torso.enhancement["liver"] + 0.5 * torso.enhancement["blood"] - 6
        canvas.paint(Field(vein.box, veiled), float(mixed))
    bladder = ellipsoid(canvas, torso.at(-0.3, -0.35, -108), torso.radii(14, 14, 24), torso.tilt(20))
    canvas.paint(bladder, float(torso.rng.normal(8, 6)), LABELS["body"])
    return centre, radii


def _copy(field: Field, box: Box, target: F32) -> None:
    """Write the part of ``field`` that lies on ``box`` into ``target``, an array over that box."""
    cut = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(field.box, box, strict=True)]
    if all(s.stop > s.start for s in cut):
        source = tuple(slice(s.start - a.start, s.stop - a.start) for s, a in zip(cut, field.box, strict=True))
        goal = tuple(slice(s.start - b.start, s.stop - b.start) for s, b in zip(cut, box, strict=True))
        target[goal] = field.mm[source]


def _stomach(torso: Torso) -> None:
    rng, canvas = torso.rng, torso.canvas
    centre = torso.at(0.38, -0.3, -52, wobble=7)
    stomach = ellipsoid(canvas, centre, torso.radii(36, 30, 40), torso.tilt(20))
    stomach = lumpy(canvas, within(stomach, torso.cavity.on(stomach.box) + 4), rng, 2.5, 40)
    canvas.paint(stomach, float(torso.enhancement["bowel"] + 8), LABELS["body"])
    content = float(rng.choice([12, 40, 180], p=[0.45, 0.4, 0.15]))
    fill = Field(stomach.box, stomach.mm + 4)
    canvas.paint(fill, content + np.float32(8) * waves(canvas, fill.box, rng, 15))
    level = np.float32(centre[1] - rng.uniform(0, 16))
    canvas.paint(within(fill, canvas.y[fill.box] - level), -900.0)


def _spleen(torso: Torso, domes: dict[str, Field]) -> tuple[Triple, Triple]:
    canvas = torso.canvas
    centre, radii = torso.at(0.68, 0.38, -48), torso.radii(27, 40, 44)
    spleen = ellipsoid(canvas, centre, radii, (float(torso.rng.normal(-15, 8)), 0.0, float(torso.rng.normal(25, 8))))
    under = np.full(spleen.mm.shape, np.float32(-50), np.float32)
    _copy(domes["left"], spleen.box, under)
    spleen = lumpy(canvas, within(spleen, torso.cavity.on(spleen.box) + 3, under + 3), torso.rng, 1.5, 30)
    _paint_organ(torso, spleen, "spleen", "spleen", torso.rng.uniform(2, 6), 14)
    return centre, radii


def _mediastinum(torso: Torso) -> None:
    """Fat and soft tissue between the lungs, the heart with its chambers, the great vessels above it."""
    canvas, rng = torso.canvas, torso.rng
    radii = (torso.half_width * 0.2, torso.half_depth * 0.95, 150 * torso.size)
    middle = ellipsoid(canvas, torso.at(0.0, 0.05, 80), radii)
    middle = within(middle, torso.cavity.on(middle.box), -canvas.z[middle.box] + np.float32(-5))
    canvas.paint(middle, -70 + np.float32(35) * waves(canvas, middle.box, rng, 20), LABELS["body"])
    centre = torso.at(0.16, -0.22, 42, wobble=5)
    turn = (float(rng.normal(0, 6)), 25.0, float(rng.normal(25, 6)))
    heart = ellipsoid(canvas, centre, torso.radii(56, 44, 50), turn)
    heart = lumpy(canvas, within(heart, torso.cavity.on(heart.box) + 4), rng, 2.0, 45)
    canvas.paint(Field(heart.box, heart.mm - 4), torso.filler_hu, LABELS["body"])
    _paint_organ(torso, heart, "heart", "heart", torso.rng.uniform(1, 4), 25)
    for u, v, z in ((0.12, -0.1, 10.0), (-0.14, -0.12, 8.0), (0.0, 0.14, 18.0), (-0.1, -0.05, 24.0)):
        place = (centre[0] + u * torso.half_width, centre[1] + v * torso.half_depth, centre[2] + z * rng.uniform(-1, 1))
        chamber = ellipsoid(canvas, place, torso.radii(19, 16, 22), torso.tilt(20))
        inner = np.where(canvas.label[chamber.box] == LABELS["heart"], chamber.mm, np.float32(9))
        canvas.paint(Field(chamber.box, inner), torso.enhancement["blood"])
    for u, radius in ((0.02, 15.0), (0.14, 12.0), (-0.15, 9.0)):
        vessel = tube(canvas, torso.at(u, -0.2, 85, 3), torso.at(u * 0.9, -0.1, 150, 3), radius * torso.size)
        canvas.paint(vessel, torso.enhancement["blood"], LABELS["body"])
    trachea = tube(canvas, torso.at(0.0, 0.12, 112, 2), torso.at(0.0, 0.05, 230, 2), 8.5 * torso.size)
    canvas.paint(trachea, -990.0, LABELS["body"])


def _kidneys(torso: Torso) -> dict[str, tuple[Triple, Triple]]:
    canvas, rng, places = torso.canvas, torso.rng, {}
    for side, name, z in ((-1, "kidney_right", -118.0), (1, "kidney_left", -106.0)):
        centre, radii = torso.at(side * 0.42, 0.48, z, wobble=5), torso.radii(25, 22, 48)
        turn = (float(rng.normal(-8, 4)), side * float(rng.normal(-8, 4)), side * float(rng.normal(20, 10)))
        kidney = ellipsoid(canvas, centre, radii, turn)
        canvas.paint(Field(kidney.box, kidney.mm - 7), torso.filler_hu - 5, LABELS["body"])
        kidney = lumpy(canvas, kidney, rng, 1.0, 18)
        _paint_organ(torso, kidney, "kidney", name, 3, 14)
        inside = canvas.label[kidney.box] == LABELS[name]
        medulla = Field(kidney.box, np.where(inside, kidney.mm + 7, np.float32(9)))
        pattern = np.float32(6) * waves(canvas, kidney.box, rng, 12)
        canvas.paint(medulla, np.float32(torso.enhancement["kidney"] * rng.uniform(0.75, 0.95)) + pattern)
        hilum = (centre[0] - side * radii[0] * 0.75, centre[1], centre[2])
        canvas.paint(ellipsoid(canvas, hilum, torso.radii(12, 9, 17)), -80.0, LABELS["body"])
        places[name] = (centre, radii)
    return places


def _spine(torso: Torso) -> None:
    """Vertebral bodies and discs along a curved line, with canal, arches and spinous processes."""
    canvas, rng = torso.canvas, torso.rng
    start = torso.half_depth * 0.62
    curve = rng.uniform(-0.0009, 0.0009)
    lateral = rng.normal(0, 2)
    column = canvas.box((0.0, start + 25, 0.0), (62.0, 62.0, 400.0))
    x, y, z = canvas.x[column] - np.float32(lateral), canvas.y[column], canvas.z[column]
    y = y - np.float32(start) - np.float32(curve) * (z + 40) ** 2
    size = torso.size
    body = (np.sqrt((x / np.float32(21 * size)) ** 2 + (y / np.float32(17 * size)) ** 2) - 1) * np.float32(18 * size)
    period = rng.uniform(26, 32) * size
    step = np.abs(np.mod(z + np.float32(rng.uniform(0, period)), np.float32(period)) - np.float32(period / 2))
    bone = rng.uniform(110, 240)
    trabecular = np.float32(bone) + np.float32(25) * waves(canvas, column, rng, 9)
    cortex = np.clip(1 - np.abs(body + 2) / np.float32(2), 0, 1) * np.float32(rng.uniform(150, 350))
    disc = step < np.float32(rng.uniform(3, 4.5) * size)
    canvas.paint(Field(column, body), np.where(disc, np.float32(85), trabecular + cortex), LABELS["spine"])
    back = np.sqrt((x / 2) ** 2 + ((y - np.float32(52 * size)) / 6) ** 2)
    spinous = np.where(step > 7, (back - np.float32(3 * size)) * 2, np.float32(9))
    arch = np.abs(np.sqrt(x**2 + (y - np.float32(27 * size)) ** 2) - np.float32(13 * size)) - np.float32(3.2)
    wings = np.sqrt((x / 6) ** 2 + ((y - np.float32(24 * size)) / 1.2) ** 2) * 1.5 - np.float32(9 * size)
    wings = np.where((np.abs(x) > 13 * size) & (step > 6), wings, np.float32(9))
    posterior = np.minimum(np.minimum(spinous, wings), arch)
    canvas.paint(Field(column, posterior), float(bone + 130), LABELS["spine"])
    canal = np.sqrt(x**2 + (y - np.float32(27 * size)) ** 2) - np.float32(9.5 * size)
    canvas.paint(Field(column, canal), 25.0, LABELS["body"])


def _vessels(torso: Torso) -> None:
    """Descending aorta left in front of the spine, inferior vena cava on the right."""
    canvas, rng, size = torso.canvas, torso.rng, torso.size
    front = torso.half_depth * 0.62 - 20 * size
    radius = rng.uniform(8.5, 13.5) * size
    calcified = rng.random() < 0.4
    points = [(rng.normal(14 - 8 * t, 2) * size, front - radius * 0.8 + rng.normal(0, 2), z) for t, z in
              ((0, 165.0), (0.1, 80.0), (0.4, 0.0), (0.8, -80.0), (1.0, -190.0))]  # fmt: skip
    for a, b in pairwise(points):
        canvas.paint(tube(canvas, a, b, radius + 1.5), 40.0, LABELS["aorta"])
    for a, b in pairwise(points):
        canvas.paint(tube(canvas, a, b, radius), torso.enhancement["blood"], LABELS["aorta"])
    if calcified:
        for _ in range(6):
            z, angle = rng.uniform(-150, 150), rng.uniform(0, 2 * np.pi)
            x = np.interp(-z, [-p[2] for p in points], [p[0] for p in points])
            y = np.interp(-z, [-p[2] for p in points], [p[1] for p in points])
            place = (float(x + radius * np.cos(angle)), float(y + radius * np.sin(angle)), float(z))
            canvas.paint(ellipsoid(canvas, place, (2.5, 2.5, 5.0)), 450.0)
    cava = tube(canvas, torso.at(-0.16, 0.3, -190, 2), torso.at(-0.18, 0.2, 10, 2), float(rng.uniform(8, 12) * size))
    canvas.paint(cava, float(torso.enhancement["blood"] * rng.uniform(0.7, 1.0)), LABELS["body"])


def _ribs(torso: Torso) -> None:
    """Ribs: a shell just outside of the cavity, cut into slanting stripes; the breastbone in front."""
    canvas, rng, size = torso.canvas, torso.rng, torso.size
    shell = torso.cavity.mm - np.float32(4.5 * size)
    period = np.float32(rng.uniform(25, 31) * size)
    chest = (np.abs(shell) < 6) & (canvas.z > np.float32(-75 * size)) & (canvas.label == LABELS["body"])
    k, r, c = np.nonzero(chest)
    x, y, z, away = canvas.x[k, r, c], canvas.y[k, r, c], canvas.z[k, r, c], shell[k, r, c]
    slope = np.float32(rng.uniform(0.3, 0.6))
    stripe = np.abs(np.mod(z + slope * y + np.float32(rng.uniform(0, 30)), period) - period / 2)
    mm = np.sqrt((away / np.float32(0.7)) ** 2 + stripe**2) - np.float32(rng.uniform(5.2, 6.8) * size)
    mm = np.where((y < -0.8 * torso.half_depth) & (np.abs(x) < 40 * size), np.float32(9), mm)
    alpha = np.clip(0.5 - mm / np.float32(canvas.edge_mm), 0, 1)
    marrow = np.where(mm < -3, np.float32(rng.uniform(100, 260)), np.float32(rng.uniform(400, 650)))
    canvas.hu[k, r, c] += alpha * (marrow - canvas.hu[k, r, c])
    hit = mm < 0
    canvas.label[k[hit], r[hit], c[hit]] = LABELS["ribs"]
    front = ellipsoid(canvas, (0.0, -torso.half_depth - 4 * size, 95 * size), (17 * size, 6 * size, 85 * size))
    canvas.paint(front, float(rng.uniform(120, 260)), LABELS["ribs"])


def _lung_vessels(torso: Torso) -> None:
    """Branches from each hilum outwards, thinner as they go."""
    canvas, rng = torso.canvas, torso.rng
    for side, name in ((-1, "lung_right"), (1, "lung_left")):
        for _ in range(13):
            start = np.asarray(torso.at(side * 0.22, 0.05, 55, wobble=5))
            radius = rng.uniform(2.2, 4.2) * torso.size
            heading = np.array([side * rng.uniform(0.3, 1), rng.normal(0, 0.7), rng.normal(0, 0.9)])
            for _ in range(3):
                heading = heading + rng.normal(0, 0.3, 3)
                end = start + heading / np.linalg.norm(heading) * rng.uniform(18, 36) * torso.size
                vessel = tube(canvas, _triple(start), _triple(end), radius)
                inner = np.where(canvas.label[vessel.box] == LABELS[name], vessel.mm, np.float32(9))
                canvas.paint(Field(vessel.box, inner), 20.0)
                start, radius = end, radius * 0.66


def _triple(point: np.ndarray) -> Triple:  # type: ignore[type-arg]
    return float(point[0]), float(point[1]), float(point[2])
