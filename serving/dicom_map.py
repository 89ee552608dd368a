"""A saliency map as DICOM, in the study of the scan that it explains.

As a parametric map (PS3.3 A.75) every value lies on the scan's images; a secondary capture (A.8.1) is a picture of the
slice with the highest one, which every viewer shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from components.ct.store import FloatArray
from serving.dicom_out import FRAME, LONG, REFERRED_TO, complete, date_as, entropy_of, file_of, made_by
from serving.dicom_seg import on_images, share_a_frame

MAP_NUMBER, CAPTURE_NUMBER = 9300, 9400  # of their series
WINDOW = (-160.0, 240.0)  # HU, soft tissue
OPACITY = 0.6
TO = {(0, 1): "L", (0, -1): "R", (1, 1): "P", (1, -1): "A", (2, 1): "H", (2, -1): "F"}  # axis of LPS and sign
# Of what made_by gives, what highdicom takes for a capture, and what is put into it afterwards.
TAKEN_BY_CAPTURES = ("series_instance_uid", "sop_instance_uid", "instance_number", "manufacturer")
ADDED_TO_CAPTURES = {
    "series_description": "SeriesDescription", "manufacturer_model_name": "ManufacturerModelName",
    "software_versions": "SoftwareVersions", "device_serial_number": "DeviceSerialNumber",
}  # fmt: skip
Float32Array = npt.NDArray[np.float32]


def dicom_map(
    images: Sequence[pydicom.Dataset],
    values: Float32Array,
    affine: FloatArray,
    told: Mapping[str, Any],
    model: Mapping[str, str],
) -> bytes:
    """Write a map as DICOM Parametric Map, float32.

    Args:
        images: headers of the scan's images, pixel data not needed.
        values: log odds, on the grid of the scan.
        affine: of the values, to RAS mm.
        told: content of the answer, see :class:`serving.explaining.Explained`.
        model: ``name`` and ``digest`` of the release.

    Returns:
        A DICOM file. It is of the images' study and frame of reference, and carries their patient as they do.

    Raises:
        InputError: an image lies between the planes of the volume or lacks an identifier.
    """
    images = [complete(image, (*REFERRED_TO, FRAME), "NIfTI") for image in images]
    share_a_frame(images)
    images, frames = on_images(images, values, affine)
    about = entropy_of(images, model, *_what(told), "map")
    said = f"saliency of {told['of_class']}, {told['part']}"
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="LOG_ODDS", lut_explanation=f"Log odds of {told['of_class']}, by {told['way']}"[:LONG],
        unit=codes.UCUM.NoUnits, value_range=(float(frames.min()), float(frames.max())), slope=1.0, intercept=0.0,
    )  # fmt: skip
    shown = hd.VOILUTTransformation(window_center=0.0, window_width=2 * max(float(np.abs(frames).max()), 1e-6))
    made = hd.pm.ParametricMap(
        source_images=list(images), pixel_array=frames, series_number=MAP_NUMBER,
        contains_recognizable_visual_features=False, real_world_value_mappings=[mapping],
        voi_lut_transformations=[shown],
        transfer_syntax_uid=ExplicitVRLittleEndian, content_label="SALIENCY",
        content_description=said[:LONG], **made_by(model, about, said),
    )  # fmt: skip
    made.Laterality = ""  # of a paired organ only (PS3.3, C.7.3.1); a validator that cannot tell wants it
    date_as(made, images[0])
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = generate_uid(entropy_srcs=[*about, "dimensions"])
    return file_of(made)


def dicom_capture(
    images: Sequence[pydicom.Dataset],
    values: Float32Array,
    hu: npt.NDArray[np.int16],
    affine: FloatArray,
    told: Mapping[str, Any],
    model: Mapping[str, str],
) -> bytes:
    """Draw the image with the highest value: the slice in grey, and what raises the answer over it in orange.

    Arguments, errors and the answer as :func:`dicom_map`; ``hu``: of the scan, on the grid of the values.
    """
    images = [complete(image, REFERRED_TO, "NIfTI") for image in images]
    ordered, frames = on_images(images, values, affine)
    _, slices = on_images(images, hu, affine)
    chosen = int(frames.reshape(len(frames), -1).max(axis=1).argmax())
    image = ordered[chosen if len(ordered) == len(frames) else 0]
    about = entropy_of(ordered, model, *_what(told), "capture")
    said = f"saliency of {told['of_class']}, {told['part']}"
    identity = made_by(model, about, said)
    made = hd.sc.SCImage.from_ref_dataset(
        image, _drawn(slices[chosen], frames[chosen]), photometric_interpretation="RGB", bits_allocated=8,
        coordinate_system="PATIENT", patient_orientation=_orientation(image), series_number=CAPTURE_NUMBER,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **{name: identity[name] for name in TAKEN_BY_CAPTURES},
    )  # fmt: skip
    for name, keyword in ADDED_TO_CAPTURES.items():
        setattr(made, keyword, identity[name])
    made.BurnedInAnnotation, made.Laterality = "NO", ""
    date_as(made, image)
    return file_of(made)


def _what(told: Mapping[str, Any]) -> tuple[str, ...]:
    """Which question was answered."""
    point = told.get("point_mm")
    return str(told["part"]), str(told["of_class"]), str(told["way"]), str(told["blocks"]), str(point)


def _drawn(hu: npt.NDArray[np.int16], values: Float32Array) -> npt.NDArray[np.uint8]:
    """(rows, columns, 3)."""
    grey = np.clip((hu.astype(np.float32) - WINDOW[0]) * (255 / (WINDOW[1] - WINDOW[0])), 0, 255)
    strength = OPACITY * np.clip(values / max(float(values.max()), 1e-6), 0, 1)[..., None]
    orange = np.array([230, 159, 0], np.float32)  # Okabe and Ito's, which colour-blind readers tell from grey
    drawn: npt.NDArray[np.uint8] = np.rint(grey[..., None] * (1 - strength) + orange * strength).astype(np.uint8)
    return drawn


def _orientation(image: pydicom.Dataset) -> tuple[str, str]:
    """Where rows and columns lead, such as L and P."""
    holder = image
    if "SharedFunctionalGroupsSequence" in image:
        group = image.SharedFunctionalGroupsSequence[0]
        own = image.PerFrameFunctionalGroupsSequence[0]
        holder = (group if "PlaneOrientationSequence" in group else own).PlaneOrientationSequence[0]
    cosines = np.array(holder.ImageOrientationPatient, dtype=float).reshape(2, 3)
    axes = [int(np.abs(way).argmax()) for way in cosines]
    along = [TO[axis, int(np.sign(way[axis]))] for axis, way in zip(axes, cosines, strict=True)]
    return along[0], along[1]
