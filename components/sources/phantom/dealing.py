"""Who is scanned, how, and what goes wrong: every draw of the phantom that is not anatomy or noise.

Patients' splits, findings and faults are dealt out evenly rather than drawn one by one, so that a small run has
positives and negatives of every kind in every split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.errors import UserError
from components.sources.config import PhantomConfig
from components.sources.phantom.equipment import HOME, SITES, VENDORS, kernels
from components.sources.phantom.faults import faults_of
from components.sources.phantom.plan import FINDINGS, ICH_KINDS, OTHER_FINDINGS, ScanPlan
from components.sources.phantom.seeds import generator, hash_int, uid

# What seeds and keys of an anatomy's patients are drawn from: with another name they would be other patients.
_DRAWN_FROM = {"trunk": ("wholebody", "wb"), "head": ("head", "hd")}


@dataclass(frozen=True)
class _Patient:
    number: int
    group: str  # pre, eva or bad
    split: str
    findings: tuple[str, ...]
    scans: int
    fault: str


def plan_scans(config: PhantomConfig) -> list[ScanPlan]:
    """All scans, in a fixed order.

    Raises:
        UserError: more retest patients than there are test patients.
    """
    plans: list[ScanPlan] = []
    for patient in _patients(config):
        first: ScanPlan | None = None
        for scan in range(1, patient.scans + 1):
            plan = _scan(config, patient, scan, first)
            first = first or plan
            plans.append(plan)
    return plans


def faulty(clean: int, share: float) -> int:
    """How many series with faults beside ``clean`` ones make at least this share of all."""
    return math.ceil(share * clean / (1 - share) - 1e-9)


def _patients(config: PhantomConfig) -> list[_Patient]:
    test = config.evaluation_patients // 2
    train = config.evaluation_patients - test
    if config.retest_patients > test:
        raise UserError(f"retest_patients {config.retest_patients} is not allowed: at most {test}, the test patients")
    clean = config.pretrain_patients + config.evaluation_patients + config.retest_patients
    bad = faulty(clean, config.fault_share)
    faults = [fault.name for fault in faults_of(config.anatomy)]
    numbers = iter(range(1, clean + bad + 1))
    patients: list[_Patient] = []
    for split, count in (("pretrain", config.pretrain_patients), ("train", train), ("test", test), ("bad", bad)):
        findings = _deal_findings(config, split, count)
        for i in range(count):
            scans = 2 if split == "test" and i < config.retest_patients else 1
            fault = faults[i % len(faults)] if split == "bad" else ""
            group = {"pretrain": "pre", "bad": "bad"}.get(split, "eva")
            where = "pretrain" if split == "bad" else split
            patients.append(_Patient(next(numbers), group, where, findings[i], scans, fault))
    return patients


def _deal_findings(config: PhantomConfig, split: str, count: int) -> list[tuple[str, ...]]:
    """Findings of each of ``count`` patients: half bleed, each kind of bleeding in half of those; others in a third."""
    if config.anatomy != "head":
        return [()] * count
    rng = generator("findings", config.anatomy, *_of_site(config), split)
    found: list[set[str]] = [set() for _ in range(count)]
    bleeding = rng.permutation(count)[: math.ceil(count * 0.5)]
    for kind in ICH_KINDS:
        for i in rng.permutation(bleeding)[: round(len(bleeding) * 0.5)]:
            found[i].add(kind)
    for i in bleeding:
        if not found[i]:
            found[i].add(str(rng.choice(ICH_KINDS)))
    for kind in OTHER_FINDINGS:
        for i in rng.permutation(count)[: math.ceil(count / 3)]:
            found[i].add(kind)
    return [tuple(kind for kind in FINDINGS if kind in kinds) for kinds in found]


def _of_site(config: PhantomConfig) -> tuple[object, ...]:
    """What a site's draws are named by; of the first one as if there were no other."""
    return (config.seed,) if config.site == HOME else (config.site, config.seed)


def _scan(config: PhantomConfig, patient: _Patient, scan: int, first: ScanPlan | None) -> ScanPlan:
    drawn_from, short = _DRAWN_FROM[config.anatomy]
    names = ("phantom", drawn_from, *_of_site(config), patient.number)
    site = SITES[config.site]
    if config.site != HOME:
        short = f"{short}-{config.site}{config.seed}"  # two sets of a site are other people
    person = generator(*names, "person")
    habitus = float(np.round(person.uniform(0.86, 1.14), 4))
    rng = generator(*names, "scan", scan)
    vendor = str(rng.choice(site.vendors))
    sampling: dict[str, Any] = _SAMPLING[config.anatomy](rng, habitus)
    sampling["noise_hu"] = round(sampling["noise_hu"] * site.noise, 2)
    return ScanPlan(
        anatomy=config.anatomy,
        series_uid=uid(*names, "series", scan),
        study_uid=uid(*names, "study", scan),
        frame_uid=uid(*names, "frame", scan),
        patient_id=f"PHANTOM-{short.upper()}-{patient.number:04d}",
        scan=scan,
        name=f"{short}-{patient.group}-{patient.number:04d}-{'ab'[scan - 1]}",
        role="pretrain" if patient.split == "pretrain" else "evaluation",
        split=patient.split,
        retest_of=first.series_uid if first else "",
        fault=patient.fault,
        anatomy_seed=hash_int(*names, "anatomy"),
        scan_seed=hash_int(*names, "noise", scan),
        habitus=habitus,
        findings=patient.findings,
        vendor=vendor,
        model=str(rng.choice(VENDORS[vendor].models)),
        kernel=str(rng.choice(list(kernels(vendor, config.anatomy)))),
        kvp=int(rng.choice([100, 120, 120, 120, 140])),
        mas=int(rng.integers(60, 300)),
        descending=bool(rng.random() < 0.5),
        gantry_tilt_deg=0.0,
        **sampling,
    )


def _rounded(rng: np.random.Generator, *ranges: tuple[float, float]) -> tuple[float, ...]:
    return tuple(float(np.round(rng.uniform(low, high), 3)) for low, high in ranges)


def _body_sampling(rng: np.random.Generator, habitus: float) -> dict[str, Any]:
    """Sampling of a trunk scan: thin slices come with a small matrix, so that every scan costs about the same."""
    thickness = float(rng.choice([2.5, 3.0, 4.0, 5.0, 5.0]))
    increment = thickness if rng.random() < 0.75 else round(thickness * 0.8, 2)
    matrix = int(rng.choice([152, 168] if increment < 3 else [160, 176, 192]))
    length = rng.uniform(235, 300)
    return {
        "matrix": matrix,
        "pixel_mm": round(float(410 * habitus * rng.uniform(0.97, 1.12) / matrix), 6),
        "thickness_mm": thickness,
        "increment_mm": increment,
        "slices": max(24, int(length / increment)),
        "start_mm": round(float(habitus * rng.uniform(-172, -132)), 2),
        "noise_hu": round(float(rng.uniform(7, 22)), 2),
        "hu_offset": round(float(rng.normal(0, 3)), 2),
        "position": str(rng.choice(["HFS"] * 7 + ["FFS", "FFS", "HFP"])),
        "oblique_deg": float(np.round(rng.uniform(0.1, 0.7), 3)) if rng.random() < 0.15 else 0.0,
        "shift_mm": _rounded(rng, (-14, 14), (-12, 12), (0, 0)),
        "turn_deg": _rounded(rng, (-2, 2), (-2, 2), (-5, 5)),
        "frame_mm": _rounded(rng, (-20, 20), (-150, 20), (-1200, 400)),
    }


def _head_sampling(rng: np.random.Generator, habitus: float) -> dict[str, Any]:
    """Sampling of a head scan; the patient's head turns and nods more freely than a trunk."""
    thickness = float(rng.choice([2.5, 3.0, 4.0, 5.0, 5.0]))
    matrix = int(rng.choice([152, 160, 176] if thickness > 3 else [144, 152]))
    size = 0.5 + habitus / 2
    start = size * rng.uniform(-72, -58)
    return {
        "matrix": matrix,
        "pixel_mm": round(float(232 * size * rng.uniform(0.98, 1.1) / matrix), 6),
        "thickness_mm": thickness,
        "increment_mm": thickness,
        "slices": math.ceil((size * 90 + 8 - start) / thickness),
        "start_mm": round(float(start), 2),
        "noise_hu": round(float(rng.uniform(2.0, 4.4)), 2),
        "hu_offset": round(float(rng.normal(0, 1.5)), 2),
        "position": str(rng.choice(["HFS"] * 9 + ["FFS"])),
        "oblique_deg": float(np.round(rng.uniform(0.1, 0.7), 3)) if rng.random() < 0.15 else 0.0,
        "shift_mm": _rounded(rng, (-8, 8), (-8, 8), (0, 0)),
        "turn_deg": _rounded(rng, (-7, 7), (-4, 4), (-7, 7)),
        "frame_mm": _rounded(rng, (-20, 20), (-150, 20), (-1200, 400)),
    }


_SAMPLING = {"trunk": _body_sampling, "head": _head_sampling}
