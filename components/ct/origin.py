"""Of which scan something is, under pseudonyms: what is laid over a volume must be of the same one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom

from components.ct.dataset import open_dataset
from components.ct.keys import frame_key, patient_key
from components.ct.values import values_of

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
    """Of a series' raw files, by the headers of its first two images; nothing of a NIfTI. Some de-identification (that
    of LIDC-IDRI) gives every image a frame of its own: then none is known."""
    found: list[Origin] = []
    for path in paths:
        if path.name.endswith((".nii", ".nii.gz")):
            continue
        try:
            with path.open("rb") as stream:
                values = values_of(open_dataset(stream, path.stat().st_size, TAGS).dataset, TAGS)
        except Exception:  # what is no readable image tells nothing
            continue
        if "Rows" in values:
            found.append(Origin.of(values))
        if len(found) == 2:
            break
    return shared_origin(found)


def shared_origin(images: Sequence[Origin]) -> Origin:
    """What holds of all ``images``."""
    values = {name: {getattr(image, name) for image in images} for name in ("frame", "patient", "series")}
    return Origin(**{name: found.pop() if len(found) == 1 else "" for name, found in values.items()})
