"""A label map as DICOM SEG (PS3.3 A.51), in the study of the scan that it was made from.

One binary segment a structure, as viewers and archives read it; frames refer to the images they lie on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from components.ct.store import FloatArray
from serving.dicom_out import FRAME, LONG, REFERRED_TO, SCHEME, SHORT, complete, date_as, entropy_of, file_of, made_by
from serving.sniff import InputError

SERIES_NUMBER = 9100
OFF_GRID = 0.1  # of a voxel: beyond it an image lies between the planes of the volume
LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
Value = TypeVar("Value", np.uint8, np.int16, np.float32)
SIDES = {"left": codes.SCT.Left, "right": codes.SCT.Right}


def dicom_seg(
    images: Sequence[pydicom.Dataset],
    labels: npt.NDArray[np.uint8],
    affine: FloatArray,
    structures: Mapping[int, str],
    part: str,
    model: Mapping[str, str],
) -> bytes:
    """Write a label map as DICOM SEG.

    Args:
        images: headers of the scan's images, pixel data not needed: one each slice, or one enhanced CT.
        labels: 0 and the values of ``structures``, on the grid of the scan.
        affine: of the labels, to RAS mm.
        structures: value to name. One that is nowhere has a segment without frames.
        part: the head that found them.
        model: ``name`` and ``digest`` of the release.

    Returns:
        A DICOM file. It is of the images' study and frame of reference, and carries their patient as they do.

    Raises:
        InputError: an image lies between the planes of the volume or lacks an identifier, or nothing was found.
    """
    images = [complete(image, (*REFERRED_TO, FRAME), "NIfTI") for image in images]
    share_a_frame(images)
    values = sorted(structures)
    if not labels.any():
        raise InputError("none of the release's structures was found in this scan: there is nothing to store as SEG")
    numbers = np.zeros(256, dtype=np.uint8)
    numbers[values] = range(1, 1 + len(values))  # segments are numbered from 1, without a gap
    images, frames = on_images(images, numbers[labels], affine)
    seen = hd.AlgorithmIdentificationSequence(
        name=model["name"][:LONG], version=model["digest"][:SHORT], family=codes.DCM.ArtificialIntelligence
    )
    about = entropy_of(images, model, part, "SEG")
    seg = hd.seg.Segmentation(
        source_images=list(images),
        pixel_array=frames,
        segmentation_type="BINARY",
        segment_descriptions=[
            _description(number, structures[value], seen, about) for number, value in enumerate(values, start=1)
        ],
        series_number=SERIES_NUMBER,
        content_label="SEGMENTATION",
        content_description=f"{part} by {model['name']}"[:LONG],
        **made_by(model, about, part),
    )
    date_as(seg, images[0])
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = generate_uid(entropy_srcs=[*about, "dimensions"])
    return file_of(seg)


def concept_of(name: str) -> tuple[Code, Code | None]:
    """What a structure is called in SNOMED CT, and its side; a code of ours where pydicom's dictionary has none.

    ``lung_left`` and ``left_lung`` are the lung, on the left.
    """
    words = name.lower().replace("-", "_").split("_")
    side = next((SIDES[word] for word in words if word in SIDES), None)
    plain = "".join(word.capitalize() for word in words if word not in SIDES)
    for keyword in (plain, plain.removesuffix("s")):
        if keyword and keyword in dir(codes.SCT):
            return getattr(codes.SCT, keyword), side
    return Code(name[:SHORT], SCHEME, name[:LONG]), None


def share_a_frame(images: Sequence[pydicom.Dataset]) -> None:
    """Give images of several frames of reference one of theirs. They have been found to be one volume, and some
    de-identification (that of LIDC-IDRI) gives each image a frame of its own, in which nothing could lie on two."""
    frames = sorted({str(image.FrameOfReferenceUID) for image in images})
    for image in images if len(frames) > 1 else ():
        image.FrameOfReferenceUID = frames[0]


def _description(
    number: int, name: str, algorithm: hd.AlgorithmIdentificationSequence, about: Sequence[str]
) -> hd.seg.SegmentDescription:
    concept, side = concept_of(name)
    described = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:LONG],
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=concept,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=generate_uid(entropy_srcs=[*about, name]),
        tracking_id=name[:LONG],
    )
    if side is not None:
        modifier = hd.sr.CodedConcept.from_code(side)
        described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return described


def on_images(
    images: Sequence[pydicom.Dataset], labels: npt.NDArray[Value], affine: FloatArray
) -> tuple[list[pydicom.Dataset], npt.NDArray[Value]]:
    """The images that lie in the volume, in its order, and the labels or other values on each: (frames, rows, columns).
    Of an enhanced CT the one image, and the values on each of its frames. Raises InputError where an image lies between
    the planes of the volume."""
    to_voxel = np.linalg.inv(affine) @ LPS_OF_RAS
    rows, columns = int(images[0].Rows), int(images[0].Columns)
    planes = _planes(images)
    frames: list[npt.NDArray[Value] | None] = []
    places: list[npt.NDArray[np.int_]] = []
    for number, to_lps in enumerate(planes, start=1):
        step = to_voxel @ to_lps  # (row, column, 0, 1) to voxel
        whole = np.round(step)
        corners = np.array([[0, 0, 0, 1], [rows - 1, 0, 0, 1], [0, columns - 1, 0, 1]], dtype=float).T
        if np.abs((step - whole) @ corners)[:3].max() > OFF_GRID:
            raise InputError(
                f"image {number} of {len(planes)} lies between the planes of the volume: its labels have no image to "
                "lie on; ask for NIfTI"
            )
        place = whole[:3, 3].astype(int)
        places.append(place)
        index = [
            place[axis]
            + whole[axis, 0].astype(int) * np.arange(rows)[:, None]
            + whole[axis, 1].astype(int) * np.arange(columns)[None, :]
            for axis in range(3)
        ]
        inside = all(of.min() >= 0 and of.max() < size for of, size in zip(index, labels.shape, strict=True))
        frames.append(labels[index[0], index[1], index[2]] if inside else None)
    if len(images) < len(planes):  # frames of one file cannot be left out
        return list(images), np.stack([np.zeros((rows, columns), labels.dtype) if of is None else of for of in frames])
    order = sorted((number for number, of in enumerate(frames) if of is not None), key=lambda n: tuple(places[n]))
    return [images[n] for n in order], np.stack([of for of in (frames[n] for n in order) if of is not None])


def _planes(images: Sequence[pydicom.Dataset]) -> list[FloatArray]:
    """(row, column, 0, 1) to LPS mm, of each image or frame (PS3.3 C.7.6.2.1.1)."""
    planes: list[FloatArray] = []
    for image in images:
        if "PerFrameFunctionalGroupsSequence" not in image:
            planes.append(_plane(image.ImagePositionPatient, image.ImageOrientationPatient, image.PixelSpacing))
            continue
        shared = image.SharedFunctionalGroupsSequence[0]
        for own in image.PerFrameFunctionalGroupsSequence:
            planes.append(
                _plane(
                    _group(own, shared, "PlanePositionSequence").ImagePositionPatient,
                    _group(own, shared, "PlaneOrientationSequence").ImageOrientationPatient,
                    _group(own, shared, "PixelMeasuresSequence").PixelSpacing,
                )
            )
    return planes


def _group(own: pydicom.Dataset, shared: pydicom.Dataset, keyword: str) -> pydicom.Dataset:
    found: pydicom.Dataset = (own if keyword in own else shared)[keyword].value[0]
    return found


def _plane(position: Any, orientation: Any, spacing: Any) -> FloatArray:
    along_row, along_column = (np.array(orientation, dtype=float)[of] for of in (slice(0, 3), slice(3, 6)))
    plane = np.eye(4)
    plane[:3, 0] = along_column * float(spacing[0])  # the next row
    plane[:3, 1] = along_row * float(spacing[1])
    plane[:3, 2] = 0
    plane[:3, 3] = np.array(position, dtype=float)
    return plane
