"""One scan as it is planned; :mod:`components.sources.phantom.dealing` deals them out."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

ICH_KINDS = ("iph", "ivh", "sdh", "edh", "sah")
OTHER_FINDINGS = ("tumour", "hydrocephalus", "oedema", "dementia")
FINDINGS = ("ich", *ICH_KINDS, *OTHER_FINDINGS)


@dataclass(frozen=True)
class ScanPlan:
    """One scan, complete: equal plans give byte-identical series.

    Attributes:
        anatomy: 'trunk' or 'head'.
        series_uid, study_uid, frame_uid: DICOM UIDs.
        patient_id: such as 'PHANTOM-WB-0007'.
        scan: 1, or 2 for the second scan of a retest pair.
        name: short display name, such as 'wb-pre-0007-a'.
        role, split: 'pretrain'/'pretrain', or 'evaluation' with 'train' or 'test'.
        retest_of: series UID of the first scan of the same patient, or ''.
        fault: a name from ``components.sources.phantom.faults``, or ''.
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

    anatomy: str
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
