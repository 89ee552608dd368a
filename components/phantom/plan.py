"""Who is scanned, how, and what goes wrong: every draw of the phantom that is not anatomy or noise.

Patients' splits, findings and faults are dealt out evenly rather than drawn one by one, so that a small run has
positives and negatives of every kind in every split.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.params import UserError
from components.phantom.config import PhantomConfig
from components.phantom.equipment import VENDORS, kernels
from components.phantom.seeds import generator, hash_int, uid

ICH_KINDS = ("iph", "ivh", "sdh", "edh", "sah")
OTHER_FINDINGS = ("tumour", "hydrocephalus", "oedema", "dementia")
FINDINGS = ("ich", *ICH_KINDS, *OTHER_FINDINGS)
_SHORT = {"wholebody": "wb", "head": "hd"}


@dataclass(frozen=True)
class ScanPlan:
    """One scan, complete: equal plans give byte-identical series.

    Attributes:
        line: 'wholebody' or 'head'.
        series_uid, study_uid, frame_uid: DICOM UIDs.
        patient_id: such as 'PHANTOM-WB-0007'.
        scan: 1, or 2 for the second scan of a retest pair.
        name: short display name, such as 'wb-pre-0007-a'.
        role, split: 'pretrain'/'pretrain', or 'evaluation' with 'train' or 'test'.
        retest_of: series UID of the first scan of the same patient, or ''.
        fault: a name from ``components.phantom.faults``, or ''.
        anatomy_seed: seeds the patient; scan_seed: seeds the noise and the fault.
        habitus: body size factor; findings: subset of the head findings without the derived 'ich'.
        vendor: key of ``equipment.VENDORS``; model, kernel, kvp, mas: as in the headers.
        matrix: rows and columns; pixel_mm, thickness_mm, increment_mm: sampling; slices: count.
        start_mm: anatomy z of the lowest slice's centre.
        noise_hu: noise of a soft kernel; hu_offset: miscalibration that is within tolerance.
        position: PatientPosition (HFS, HFP, FFS, FFP); oblique_deg: tilt of the image planes, below 1.
        descending: instance numbers and file names run from the top down.
        gantry_tilt_deg: sheared acquisition, 0 unless faulty.
        shift_mm, turn_deg: where and how the patient lies.
        frame_mm: the frame of reference's origin.
    """

    line: str
    series_uid: str
    study_uid: str
    frame_uid: str
    patient_id: str
    scan: int
    name: str
    role: str
    split: str
    retest_of: str
    fault: str
    anatomy_seed: int
    scan_seed: int
    habitus: float
    findings: tuple[str, ...]
    vendor: str
    model: str
    kernel: str
    kvp: int
    mas: int
    matrix: int
    pixel_mm: float
    thickness_mm: float
    increment_mm: float
    slices: int
    start_mm: float
    noise_hu: float
    hu_offset: float
    position: str
    oblique_deg: float
    descending: bool
    gantry_tilt_deg: float
    shift_mm: tuple[float, float, float]
    turn_deg: tuple[float, float, float]
    frame_mm: tuple[float, float, float]

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ScanPlan:
        """The plan that :meth:`to_json` wrote. Raises ValueError where a field is missing or unknown."""
        content: dict[str, Any] = json.loads(text)
        known = {field.name for field in dataclasses.fields(cls)}
        if set(content) != known:
            raise ValueError(f"scan plan: fields {sorted(set(content) ^ known)} are missing or unknown")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return cls(**fields)


@dataclass(frozen=True)
class _Patient:
    number: int
    group: str  # pre, eva or bad
    split: str
    findings: tuple[str, ...]
    scans: int
    fault: str


def plan_scans(line: str, config: PhantomConfig) -> list[ScanPlan]:
    """All scans of one line, in a fixed order.

    Raises:
        UserError: more retest patients than there are test patients.
    """
    plans: list[ScanPlan] = []
    for patient in _patients(line, config):
        first: ScanPlan | None = None
        for scan in range(1, patient.scans + 1):
            plan = _scan(line, config.seed, patient, scan, first)
            first = first or plan
            plans.append(plan)
    return plans


def _patients(line: str, config: PhantomConfig) -> list[_Patient]:
    from components.phantom.faults import faults_of

    test = config.evaluation_patients // 2
    train = config.evaluation_patients - test
    if config.retest_patients > test:
        raise UserError(f"retest_patients {config.retest_patients} is not allowed: at most {test}, the test patients")
    clean = config.pretrain_patients + config.evaluation_patients + config.retest_patients
    bad = math.ceil(config.fault_share * clean / (1 - config.fault_share) - 1e-9)
    faults = [fault.name for fault in faults_of(line)]
    numbers = iter(range(1, clean + bad + 1))
    patients: list[_Patient] = []
    for split, count in (("pretrain", config.pretrain_patients), ("train", train), ("test", test), ("bad", bad)):
        findings = _deal_findings(line, config.seed, split, count)
        for i in range(count):
            scans = 2 if split == "test" and i < config.retest_patients else 1
            fault = faults[i % len(faults)] if split == "bad" else ""
            group = {"pretrain": "pre", "bad": "bad"}.get(split, "eva")
            where = "pretrain" if split == "bad" else split
            patients.append(_Patient(next(numbers), group, where, findings[i], scans, fault))
    return patients


def _deal_findings(line: str, seed: int, split: str, count: int) -> list[tuple[str, ...]]:
    """Findings of each of ``count`` patients: half bleed, each kind of bleeding in half of those; others in a third."""
    if line != "head":
        return [()] * count
    rng = generator("findings", line, seed, split)
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


def _scan(line: str, seed: int, patient: _Patient, scan: int, first: ScanPlan | None) -> ScanPlan:
    names = ("phantom", line, seed, patient.number)
    person = generator(*names, "person")
    habitus = float(np.round(person.uniform(0.86, 1.14), 4))
    rng = generator(*names, "scan", scan)
    vendor = str(rng.choice(sorted(VENDORS)))
    short = _SHORT[line]
    sampling: dict[str, Any] = _body_sampling(rng, habitus) if line == "wholebody" else _head_sampling(rng, habitus)
    return ScanPlan(
        line=line,
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
        kernel=str(rng.choice(list(kernels(vendor, line)))),
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
