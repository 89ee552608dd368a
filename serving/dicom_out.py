"""What our DICOM objects have in common: they are of their scan's study, and equal input gives equal bytes and UIDs, so
that what is stored twice is one object, not two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import pydicom
from pydicom.uid import generate_uid

import components  # noqa: F401  # which silences what pydicom quotes of a header
from serving.sniff import InputError

SCHEME = "99CTFOUNDRY"  # of what SNOMED CT, as pydicom has it, does not name
SHORT, LONG = 16, 64  # characters of a code's value and meaning (SH, LO)
REFERRED_TO = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
FRAME = "FrameOfReferenceUID"
MAY_BE_EMPTY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
                "StudyTime", "ReferringPhysicianName")  # type 2, which many a scan does without  # fmt: skip


def complete(image: pydicom.Dataset, needed: Sequence[str], instead: str) -> pydicom.Dataset:
    """An image's header with what may be empty, empty where it lacks it.

    Args:
        image: of the scan; it is changed.
        needed: keywords that it must have a value of.
        instead: form to ask for where it has not.

    Raises:
        InputError: it has not.
    """
    missing = [name for name in needed if not image.get(name)]
    if missing:
        raise InputError(
            f"an image of the scan has no {', '.join(missing)}: nothing could refer to it; ask for {instead}"
        )
    for name in MAY_BE_EMPTY:
        if name not in image:
            setattr(image, name, "")
    return image


def entropy_of(images: Sequence[pydicom.Dataset], model: Mapping[str, str], *what: str) -> tuple[str, ...]:
    """What an object's UIDs follow from: the release, ``what`` it holds, and the very images it was made from. The same
    series with an image more, as one that came late, gives another object."""
    return (model["digest"], *what, *sorted(str(image.SOPInstanceUID) for image in images))


def made_by(model: Mapping[str, str], about: Sequence[str], said: str) -> dict[str, Any]:
    """Identity, equipment and description of an object, as highdicom takes them.

    Args:
        model: ``name`` and ``digest`` of the release.
        about: see :func:`entropy_of`.
        said: of its series, after the model's name.
    """
    return {
        "series_instance_uid": generate_uid(entropy_srcs=[*about, "series"]),
        "sop_instance_uid": generate_uid(entropy_srcs=[*about, "instance"]),
        "instance_number": 1,
        "manufacturer": "ctfoundry",
        "manufacturer_model_name": model["name"][:LONG],
        "software_versions": model["digest"][:LONG],
        "device_serial_number": model["digest"][:LONG],
        "series_description": f"{model['name']} {said}"[:LONG],
    }


def date_as(made: pydicom.Dataset, image: pydicom.Dataset) -> None:
    """Put the scan's date and time where an object has those of its making."""
    for kind, unknown in (("Date", "19700101"), ("Time", "000000")):
        of_the_scan = (str(image.get(f"{what}{kind}") or "") for what in ("Acquisition", "Series", "Study"))
        taken = next(filter(None, of_the_scan), unknown)
        for name in (f"Content{kind}", f"InstanceCreation{kind}", f"Series{kind}", f"{kind}OfSecondaryCapture"):
            if name in made:
                setattr(made, name, taken)
    for equipment in made.get("ContributingEquipmentSequence", []):
        if "ContributionDateTime" in equipment:
            del equipment.ContributionDateTime


def file_of(made: pydicom.Dataset) -> bytes:
    """The object as a DICOM file."""
    file = BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()
