"""Labels of another frame of reference, patient or series are not laid over a scan, unless the user insists."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from label_files import Scan, contour, rectangle, saved, scanned, segmentation, structures
from pydicom.uid import generate_uid

from components.ct.headers import read_instance, series_identity
from components.ct.keys import frame_key, patient_key, series_key
from components.ct.labels.onto_grid import read_labels
from components.ct.origin import Origin, origin_of
from components.ct.store import write_volume
from components.errors import UserError
from components.looking.volume import open_volume

FRAME, PATIENT, SERIES = "another frame of reference", "another patient", "another series"


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    return scanned(tmp_path_factory.mktemp("ct"))


def drawn(scan: Scan, path: Path, kind: str, **changes: str) -> Path:
    """An RTSTRUCT or SEG on ``scan``, of which header values are then changed."""
    if kind == "SEG":
        mask = np.zeros((*scan.volume.hu.shape, 1), np.uint8)
        mask[5:9, 20:60, 20:60] = 1
        dataset = segmentation(scan.items, mask)
        frame = changes.pop("FrameOfReferenceUID", None)
        if frame is not None:
            dataset.FrameOfReferenceUID = frame
        if series := changes.pop("series", None):
            dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = series
    else:
        rois = {"a": [contour(rectangle(i, (20.5, 60.5), (20.5, 60.5))) for i in scan.items[5:9]]}
        frame = changes.pop("FrameOfReferenceUID", None)
        dataset = structures(scan.items[0], rois, frame)
        if frame == "":
            del dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID
            dataset.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = ""
        if series := changes.pop("series", None):
            study = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
            study.RTReferencedSeriesSequence[0].SeriesInstanceUID = series
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return saved(dataset, path)


def refused(scan: Scan, origin: Origin | None, path: Path) -> str:
    try:
        labels = read_labels(path, scan.volume.affine, scan.volume.hu.shape, origin)
    except UserError as error:
        return str(error)
    assert labels.segments[0].voxels == 6400
    return ""


@pytest.mark.parametrize("kind", ["RTSTRUCT", "SEG"])
def test_what_both_sides_state_is_compared(scan: Scan, kind: str, tmp_path: Path) -> None:
    origin = open_volume(scan.folder).origin
    path, other = tmp_path / "labels.dcm", generate_uid(entropy_srcs=["another"])
    assert refused(scan, origin, drawn(scan, path, kind)) == ""
    assert FRAME in refused(scan, origin, drawn(scan, path, kind, FrameOfReferenceUID=other))
    assert "--force" in refused(scan, origin, path)
    assert refused(scan, None, path) == "", "forced"
    assert PATIENT in refused(scan, origin, drawn(scan, path, kind, PatientID="SOMEBODY-ELSE"))
    assert refused(scan, origin, drawn(scan, path, kind, PatientID="")) == "", "not stated is no other"
    assert refused(scan, origin, drawn(scan, path, kind, series=other)) == "", "another phase in the same frame"
    frameless = Origin("", origin.patient, origin.series)
    assert refused(scan, frameless, drawn(scan, path, kind)) == ""
    assert SERIES in refused(scan, frameless, drawn(scan, path, kind, series=other))
    assert SERIES in refused(scan, origin, drawn(scan, path, kind, series=other, FrameOfReferenceUID=""))
    assert refused(scan, Origin(), drawn(scan, path, kind, series=other, PatientID="X")) == "", "nothing known: a NIfTI"


@pytest.mark.parametrize("identity", ["{series}", "{study}|{series}", "{patient}|{study}|{series}|"])
def test_a_series_is_known_by_whatever_its_source_calls_it(scan: Scan, identity: str, tmp_path: Path) -> None:
    ct = scan.items[0]
    uids = {"series": ct.SeriesInstanceUID, "study": ct.StudyInstanceUID, "patient": ct.PatientID}
    path = drawn(scan, tmp_path / "labels.dcm", "RTSTRUCT", FrameOfReferenceUID="")
    assert refused(scan, Origin(series=series_key(identity.format(**uids))), path) == ""
    assert SERIES in refused(scan, Origin(series=series_key("1.2.3")), path)
    with (file := next(scan.folder.glob("*.dcm"))).open("rb") as stream:
        assert series_identity(read_instance(stream, "", file.stat().st_size)) == "{patient}|{study}|{series}|".format(
            **uids
        )


def test_only_the_frames_of_the_wanted_rois_count(scan: Scan, tmp_path: Path) -> None:
    """A structure set may hold ROIs that were drawn on a fused MR."""
    rois = {name: [contour(rectangle(i, (20.5, 60.5), (20.5, 60.5))) for i in scan.items[5:9]] for name in ("ct", "mr")}
    dataset = structures(scan.items[0], rois)
    dataset.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "1.2.3.4.5"
    path, origin = saved(dataset, tmp_path / "RS.dcm"), open_volume(scan.folder).origin
    assert FRAME in refused(scan, origin, path)
    labels = read_labels(path, scan.volume.affine, scan.volume.hu.shape, origin, ["ct"])
    assert [s.name for s in labels.segments] == ["ct"]


def test_a_stored_volume_tells_its_frame_under_a_pseudonym(scan: Scan, tmp_path: Path) -> None:
    ct = scan.items[0]
    origin = origin_of(sorted(scan.folder.iterdir()))
    assert origin == Origin(frame_key(ct.FrameOfReferenceUID), patient_key(ct.PatientID))
    assert frame_key("") == ""
    provenance = {"series": series_key(ct.SeriesInstanceUID), "frame": origin.frame, "patient": origin.patient}
    write_volume(tmp_path / "s.b2nd", scan.volume, provenance)
    stored = open_volume(tmp_path / "s.b2nd").origin
    assert stored == Origin(**provenance)
    assert FRAME in refused(scan, stored, drawn(scan, tmp_path / "a.dcm", "RTSTRUCT", FrameOfReferenceUID="1.2.3"))
    assert ct.FrameOfReferenceUID.encode() not in (tmp_path / "s.b2nd").read_bytes()


def test_a_frame_for_every_image_is_none(scan: Scan, tmp_path: Path) -> None:
    """As LIDC-IDRI's de-identification gives; and what is no image is passed over."""
    (tmp_path / "00.dcm").write_bytes(b"no DICOM")
    for number, item in enumerate(scan.items[:3], start=1):
        item = deepcopy(item)
        item.FrameOfReferenceUID = f"1.2.{number}"
        item.save_as(tmp_path / f"{number:02d}.dcm", implicit_vr=False, little_endian=True, enforce_file_format=False)
    assert origin_of(sorted(tmp_path.iterdir())) == Origin("", patient_key(scan.items[0].PatientID))
    assert origin_of([Path("volume.nii.gz")]) == Origin()
