"""What a DICOM header says: read one instance, group instances into series, measure a series.

Measurements are judged elsewhere (``components/quality``); nothing here rejects.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import IO, Any

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement

from components.ct import consistency, frames, stacks, subject
from components.ct.dataset import DIRECTORY_STORAGE, INFLATED_BYTES, InflateError, InflateLimitError, open_dataset
from components.ct.elements import DEFLATED, HEAD_BYTES, LONG, PIXEL_TAGS, SEQUENCES, SHORT, native_pixels, read_regular
from components.ct.instance import Instance
from components.ct.privacy import IDENTIFYING, ITEMS, Findings, joined
from components.ct.values import values_of

CT_IMAGE_STORAGE = frames.CT_IMAGE_STORAGE
CT_CLASSES = (CT_IMAGE_STORAGE, *frames.CLASSES)
TAGS: tuple[str, ...] = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID",
    "Modality", "ImageType", "Manufacturer", "ManufacturerModelName", "ConvolutionKernel", "KVP", "BodyPartExamined",
    "SliceThickness", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "Rows", "Columns",
    "BitsAllocated", "PatientPosition", "GantryDetectorTilt", "LossyImageCompression", "BurnedInAnnotation",
    "PatientIdentityRemoved", "AcquisitionNumber", "SeriesDescription", "NumberOfFrames", "RescaleIntercept",
    *subject.TAGS,
    *consistency.TAGS,
    *(tag for tag in stacks.TIMES if tag != "AcquisitionNumber"),
)  # fmt: skip
LISTED_TAGS: tuple[str, ...] = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID",
    "Modality", "Rows", "AccessionNumber",
)  # fmt: skip
DELIMITER = b"\xfe\xff\xdd\xe0"  # ends encapsulated pixel data


def read_instance(
    stream: IO[bytes], location: str, size: int, listing: bool = False, inflated_bytes: int = INFLATED_BYTES
) -> Instance:
    """Read one file's header, without its pixels, and check that its pixel data are complete. Whatever is wrong with
    the file, it costs itself: it is ``unreadable``.

    Args:
        stream: seekable, at its start.
        location: for the table.
        size: the file's bytes.
        listing: read only :data:`LISTED_TAGS`, and nothing about persons.
        inflated_bytes: most that a deflated file may inflate to.

    Raises:
        OSError: the disk or the network failed, which says nothing of the file.
    """
    try:
        return _read(stream, location, size, listing, inflated_bytes)
    except Exception as error:
        return _unreadable(error, location, size)


def read_with_pydicom(
    stream: IO[bytes], location: str, size: int, listing: bool = False, inflated_bytes: int = INFLATED_BYTES
) -> Instance:
    """As :func:`read_instance`, for every kind of DICOM file, more slowly: the reference for it."""
    try:
        return _read_with_pydicom(stream, location, size, listing, inflated_bytes)
    except Exception as error:
        return _unreadable(error, location, size)


def _unreadable(error: Exception, location: str, size: int) -> Instance:
    if isinstance(error, OSError) and error.errno is not None:  # pydicom's own have no number
        raise error
    # Messages of libraries quote values; ours do not.
    detail = str(error) if isinstance(error, InflateError) else type(error).__name__
    too_large = isinstance(error, InflateLimitError)
    return Instance(location, size, "unreadable", detail=detail, too_large=too_large)


def _read(stream: IO[bytes], location: str, size: int, listing: bool, inflated_bytes: int) -> Instance:
    head = stream.read(HEAD_BYTES[0])
    bare = head[128:132] != b"DICM"
    if bare and not _begins_bare(head):
        return Instance(location, size, "not_dicom")
    tags, findings = LISTED_TAGS if listing else TAGS, None if listing else Findings()
    header = None if bare else read_regular(stream, head, tags, findings)
    if header is None or "Rows" not in header.values or (not listing and frames.is_multi_frame(header.values)):
        return _read_with_pydicom(stream, location, size, listing, inflated_bytes)
    truncated = _truncated(stream, size, header.pixels_at, header.pixels)
    return _with_findings(Instance(location, size, "image", truncated, header.values, header.syntax), findings)


def _begins_bare(head: bytes) -> bool:
    """Whether a file without a preamble begins as a data set, or its meta information, does: in group 8, or 2."""
    little = head[:2] in (b"\x08\x00", b"\x02\x00") and head[3:4] == b"\x00"
    return little or (head[:3] == b"\x00\x08\x00" and head[4:6] in SHORT | LONG)  # big endian is always explicit


def _read_with_pydicom(stream: IO[bytes], location: str, size: int, listing: bool, inflated_bytes: int) -> Instance:
    tags, findings = LISTED_TAGS if listing else TAGS, None if listing else Findings()
    opened = open_dataset(stream, size, tags if listing else None, inflated_bytes)
    if findings is not None:
        _look(opened.dataset, findings)  # before values are asked for, which decodes them
    values = values_of(opened.dataset, tags)
    framed = not listing and frames.is_multi_frame(values)
    each = tuple(frames.frame_values(opened.dataset, frozenset(TAGS))) if framed else ()
    read = Instance(location, size, "image", False, values, opened.syntax, frames=each,
                    unpacked=opened.size if opened.syntax == DEFLATED else 0)  # fmt: skip
    if opened.media_class == DIRECTORY_STORAGE:
        return Instance(location, size, "dicomdir", transfer_syntax=opened.syntax)
    if "Rows" not in values:
        read = replace(read, status="object" if frames.is_object(values) else "unreadable", frames=())
    else:
        read = replace(read, truncated=_truncated(stream, opened.size, opened.pixels_at, opened.pixels))
    return _with_findings(read, findings)


def is_ct(values: Mapping[str, Any]) -> bool:
    """Whether an image is CT. Exports that strip the class UID keep the modality; where both are there, both must say
    so."""
    return values.get("SOPClassUID", CT_IMAGE_STORAGE) in CT_CLASSES and values.get("Modality") == "CT"


def _look(dataset: pydicom.Dataset, findings: Findings) -> None:
    """Gather what a data set says about persons, sequences included."""
    creators: dict[tuple[int, int], str] = {}
    for tag in sorted(dataset.keys()):
        element = dataset.get_item(tag)
        raw = isinstance(element, RawDataElement)  # others are sequences, or empty
        if tag & 0x10000:
            findings.add_private(creators, tag, ITEMS if element.VR == "SQ" and not raw else element.value or b"")
        elif element.VR == "SQ" or (raw and element.VR in (None, "UN") and tag in SEQUENCES):
            items = dataset[tag].value
            del element  # its bytes, which hold those of all sequences within
            if items and tag in IDENTIFYING:
                findings.identifying.append((IDENTIFYING[tag], ITEMS))
            for item in items:
                _look(item, findings)
        elif raw and tag in IDENTIFYING and element.value:
            findings.identifying.append((IDENTIFYING[tag], element.value))


def _with_findings(instance: Instance, findings: Findings | None) -> Instance:
    if findings is None or not (findings.identifying or findings.private):
        return instance
    patient, removed = instance.tags.get("PatientID", ""), instance.tags.get("PatientIdentityRemoved") == "YES"
    return replace(
        instance,
        identifiers=findings.identifiers(patient, removed),
        private_unknown=frozenset(findings.private),
    )


def _truncated(stream: IO[bytes], size: int, start: int, element: bytes) -> bool:
    """Whether the file ends before its pixel data do. ``element``: its first bytes, at ``start``."""
    if len(element) < 8 or element[:4] not in PIXEL_TAGS:
        return len(element) < 8 and start >= size
    native = native_pixels(element, start)
    if native is None:
        stream.seek(max(0, size - 4096))
        return DELIMITER not in stream.read()
    return sum(native) > size


def series_identity(instance: Instance) -> str:
    """What tells one series from another: patient, study and series UID; where the series UID is empty, the folder
    and frame of reference stand in for it, so that neither everything nor nothing falls together."""
    tags = instance.tags
    uid = tags.get("SeriesInstanceUID", "")
    folder = instance.location.rpartition("/")[0]
    stand_in = "" if uid else f"{folder}|{tags.get('FrameOfReferenceUID', '')}|{tags.get('Modality', '')}"
    return "|".join([tags.get("PatientID", ""), tags.get("StudyInstanceUID", ""), uid, stand_in])


def group_series(instances: Iterable[Instance]) -> dict[str, list[Instance]]:
    """DICOM images and objects by series identity, sorted by location within each. Other files are left out here
    (the cohort's file table accounts for them)."""
    groups: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        if instance.status in ("image", "object"):
            groups[series_identity(instance)].append(instance)
    return {key: sorted(groups[key], key=lambda i: i.location) for key in sorted(groups)}


def planes(instances: Iterable[Instance]) -> list[Instance]:
    """The images among ``instances``, each frame of a multi-frame image as one of its own. A file whose functional
    groups are not as many as its frames stays as it is."""
    images = []
    for image in instances:
        if image.status != "image":
            continue
        if not image.frames or image.tags.get("NumberOfFrames") != len(image.frames):
            images.append(image)
            continue
        uid = image.tags.get("SOPInstanceUID")
        for number, frame in enumerate(image.frames, start=1):
            own = {"NumberOfFrames": 1, **({"SOPInstanceUID": f"{uid}.{number}"} if uid else {})}
            images.append(replace(image, tags={**image.tags, **frame, **own}, frames=()))
    return images


def measure_series(instances: Sequence[Instance], only_largest_stack: bool = False) -> dict[str, Any]:
    """Measurements of one series' headers, one value per column of the receipt. A frame of a multi-frame image counts
    as an instance.

    Lengths are in mm, angles in degrees; what cannot be measured is None. ``gap_ratio`` is the largest gap between
    neighbouring slices over the median gap; ``off_grid_mm`` the largest distance of a slice from its place in a stack
    of even steps from the first to the last, which is where the volume's affine puts it (of slices at
    one position, the first counts); ``tilt_degrees`` the angle
    between the slices' normal and the direction in which their positions move, which shows a gantry tilt whatever the
    tag says. ``burned_in`` is text in the pixels
    only: RecognizableVisualFeatures is true of every head scan that was not defaced, whether the tag says so or not.
    ``other_object`` is true where no instance is a CT image by what it states: structures, doses, PET, reports.
    ``sex``, ``age`` (a decade) and ``contrast`` are of :mod:`components.ct.subject`.
    ``no_image`` counts objects, such as a structure set, under the series' UID: they are no part of the volume.
    ``mixed`` says what images outside the largest stack differ in; with ``only_largest_stack`` these are not measured,
    and ``left_out`` counts them.
    """
    images = planes(instances)
    stack = stacks.largest_stack([image.tags for image in images])
    left_out = len(images) - len(stack.members)
    if only_largest_stack:
        images = [images[n] for n in stack.members]
    first = images[0].tags if images else {}
    uids = [i.tags["SOPInstanceUID"] for i in images if "SOPInstanceUID" in i.tags]
    thickness = [float(i.tags["SliceThickness"]) for i in images if _is_number(i.tags.get("SliceThickness"))]
    spacings = {tuple(np.round(v, 4)) for i in images if (v := i.vector("PixelSpacing", 2)) is not None}
    spacing = min(spacings) if spacings else (None, None)
    return {
        "instances": len(images),
        "left_out": left_out if only_largest_stack else 0,
        "mixed": ", ".join(stack.left_out_for),
        "no_image": sum(i.status == "object" for i in instances),
        "unreadable_files": sum(i.truncated or i.status not in ("image", "object") for i in instances),
        **_kinds(instances, images),
        "duplicate_instances": len(uids) - len(set(uids)),
        "matrices": len({(i.tags.get("Rows"), i.tags.get("Columns")) for i in images}),
        "pixel_spacings": len(spacings),
        "kernels": len({i.tags.get("ConvolutionKernel") for i in images}),
        "rows": images[0].whole("Rows") if images else None,
        "columns": images[0].whole("Columns") if images else None,
        "spacing_row_mm": spacing[0],
        "spacing_column_mm": spacing[1],
        "thickness_min_mm": min(thickness, default=None),
        "thickness_max_mm": max(thickness, default=None),
        "manufacturer": first.get("Manufacturer", ""),
        "model": first.get("ManufacturerModelName", ""),
        "kernel": "\\".join(first.get("ConvolutionKernel", ())),
        "kvp": first.get("KVP", ""),
        "body_part": first.get("BodyPartExamined", ""),
        "patient_position": first.get("PatientPosition", ""),
        **subject.subject_of([image.tags for image in images]),
        **_geometry(images),
        **consistency.measure_consistency(images),
    }  # fmt: skip


def _kinds(instances: Sequence[Instance], images: Sequence[Instance]) -> dict[str, Any]:
    """What the instances are, and whether they were de-identified."""
    return {
        "modality": "|".join(sorted({i.tags.get("Modality", "") for i in instances})),
        "sop_class": "|".join(sorted({i.tags.get("SOPClassUID", "") for i in instances})),
        "is_ct_image": bool(images) and all(is_ct(i.tags) for i in images),
        "other_object": _other_object(instances),
        "is_localizer": any("LOCALIZER" in i.tags.get("ImageType", ()) for i in images),
        "missing_tags": _missing_tags(images),
        "transfer_syntax": "|".join(sorted({i.transfer_syntax for i in images})),
        "lossy": any(i.tags.get("LossyImageCompression") == "01" for i in images),
        "burned_in": any(i.tags.get("BurnedInAnnotation") == "YES" for i in images),
        "identifiers": "|".join(sorted(joined(i.identifiers for i in instances))),
        "private_unknown": len(joined(i.private_unknown for i in instances)),
        "identity_removed": bool(images) and all(i.tags.get("PatientIdentityRemoved") == "YES" for i in images),
    }


def _other_object(instances: Sequence[Instance]) -> bool:
    stated = [i.tags for i in instances if i.tags.get("Modality") or i.tags.get("SOPClassUID")]
    claims = [
        tags.get("Modality", "CT") == "CT" and tags.get("SOPClassUID", CT_IMAGE_STORAGE) in CT_CLASSES
        for tags in stated
    ]
    return bool(stated) and not any(claims)


def _is_number(value: Any) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False


def _missing_tags(images: Sequence[Instance]) -> str:
    """Names of the tags without which a slice has no size or place, missing in any instance; '' where none is."""
    lengths = {"PixelSpacing": 2, "ImagePositionPatient": 3, "ImageOrientationPatient": 6}
    missing = [tag for tag, n in lengths.items() if any(i.vector(tag, n) is None for i in images)]
    sizes = [tag for tag in ("Rows", "Columns") if any((i.whole(tag) or 0) < 1 for i in images)]
    return "|".join(missing + sizes)


def _geometry(images: Sequence[Instance]) -> dict[str, Any]:
    empty = {"orientations": 0, "positions": 0, "gap_median_mm": None, "gap_ratio": None, "tilt_degrees": None,
             "off_grid_mm": None, "extent_mm": None}  # fmt: skip
    placed = [
        (p, o)
        for i in images
        if (p := i.vector("ImagePositionPatient", 3)) is not None
        and (o := i.vector("ImageOrientationPatient", 6)) is not None
    ]
    if not placed:
        return empty
    orientation = placed[0][1]
    orientations = 1 + sum(bool(np.abs(o - orientation).max() > 1e-3) for _, o in placed)
    normal = np.cross(orientation[:3], orientation[3:])
    points = np.stack([p for p, _ in placed])
    along = points @ normal
    points = points[np.argsort(along, kind="stable")]
    gaps = np.diff(np.sort(along))
    apart = gaps[gaps > 0.01]
    if not len(apart):
        return {**empty, "orientations": orientations, "positions": 1}
    direction = points[-1] - points[0]
    cosine = abs(float(direction @ normal)) / (float(np.linalg.norm(direction)) * float(np.linalg.norm(normal)))
    return {
        "orientations": orientations,
        "positions": len(apart) + 1,
        "gap_median_mm": round(float(np.median(apart)), 4),
        "gap_ratio": round(float(apart.max() / np.median(apart)), 4),
        "off_grid_mm": round(stacks.off_grid(points[np.append(True, gaps > 0.01)]), 3),
        "tilt_degrees": round(float(np.degrees(np.arccos(min(1.0, cosine)))), 3),
        "extent_mm": round(float(along.max() - along.min()), 3),
    }
