"""Of which scan something is, under pseudonyms: what is laid over a volume must be of the same one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom

from components.cohort.keys import frame_key, patient_key

TAGS = ("PatientID", "FrameOfReferenceUID", "Rows")


@dataclass(frozen=True)
class Origin:
    """Pseudonyms, each '' where it is not known.

    Attributes:
        frame: of the frame of reference: coordinates of one have nothing to do with those of another (PS3.3 C.7.4.1).
        patient: of the patient.
        series: of the series, as the cohort has it.
    """

    frame: str = ""
    patient: str = ""
    series: str = ""

    @classmethod
    def of(cls, values: Mapping[str, Any] | pydicom.Dataset, series: str = "") -> Origin:
        """Of a DICOM header: keyword to value."""
        frame, patient = (str(values.get(name) or "").strip() for name in ("FrameOfReferenceUID", "PatientID"))
        return cls(frame_key(frame), patient_key(patient) if patient else "", series)


def origin_of(paths: Iterable[Path]) -> Origin:
    """Of a series' raw files, which are of one frame and patient: that of its first image; nothing of a NIfTI."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's quote values
        for path in paths:
            if path.name.endswith((".nii", ".nii.gz")):
                continue
            try:
                header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS), force=True)
                if header.get("Rows") is not None:
                    return Origin.of(header)
            except Exception:  # what is no readable image tells nothing
                continue
    return Origin()
