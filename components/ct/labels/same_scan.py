"""Whether labels are of the scan that they are laid over: coordinates in millimetres fit any scan of anybody."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pydicom

from components.ct.keys import frame_key, patient_key, series_key
from components.ct.labels.placing import LabelError
from components.ct.origin import Origin

SEG = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # Segmentation, Label Map Segmentation
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"


def check_same_scan(scan: Origin, labels: pydicom.Dataset, frames: Collection[str]) -> None:
    """Compare what both sides state. Within one frame of reference labels may be drawn on another series.

    Args:
        scan: which the labels are laid over.
        labels: SEG or RTSTRUCT.
        frames: UIDs of the frames of reference that the segments lie in; '' where it is not stated.

    Raises:
        LabelError: they are of another frame of reference or patient, or, where no frame is known, of another series.
    """
    other = "other labels, the CTFOUNDRY_PSEUDONYM_KEY that the volume was made with, or --force where you know better"
    stated = {frame_key(frame) for frame in frames}
    if scan.frame and stated - {"", scan.frame}:
        raise LabelError(f"they are drawn in another frame of reference than the volume's; allowed: {other}")
    patient = str(labels.get("PatientID") or "").strip()
    if scan.patient and patient and patient_key(patient) != scan.patient:
        raise LabelError(f"they are of another patient than the volume; allowed: {other}")
    if scan.series and not (scan.frame and stated == {scan.frame}):
        uids = set(referenced_series(labels))
        if uids and scan.series not in {key for uid in uids for key in _keys(labels, uid)}:
            raise LabelError(f"they are drawn on another series, and no frame of reference tells that it fits; "
                             f"allowed: {other}")  # fmt: skip


def referenced_series(labels: pydicom.Dataset) -> Iterator[str]:
    """UIDs of the series that labels were drawn on (PS3.3 C.12.1.1.4 and C.8.8.5)."""
    series = [*(labels.get("ReferencedSeriesSequence") or [])]
    for frame in labels.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            series += study.get("RTReferencedSeriesSequence") or []
    for item in series:
        if uid := str(item.get("SeriesInstanceUID") or ""):
            yield uid


def _keys(labels: pydicom.Dataset, uid: str) -> Iterator[str]:
    """What the sources call a series: by its UID alone, with that of its study, or of its patient and study."""
    patient, study = (str(labels.get(name) or "") for name in ("PatientID", "StudyInstanceUID"))
    yield series_key(uid)
    yield series_key(f"{study}|{uid}")
    yield series_key(f"{patient}|{study}|{uid}|")
