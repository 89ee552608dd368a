"""What the decoders of a release find in one scan: a label map on the grid of the scan as it was sent, as NIfTI or as
DICOM SEG."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom

from components.ct.store import FloatArray
from components.models.embed import fixed_threads
from serving.asking import segmenter_of
from serving.embedding import DEFAULT_LIMITS, Scan, ServedBundle, read_scan
from serving.limits import Limits
from serving.overlays import nifti_bytes, onto
from serving.reading import header_values
from serving.sniff import InputError

Labels = npt.NDArray[np.uint8]
DIGITS = 3
CARET = 0  # extension of no registered kind, in which label tables are found
TABLE = (
    '<?xml version="1.0" encoding="UTF-8"?><CaretExtension><VolumeInformation Index="0"><LabelTable>{}</LabelTable>'
    "</VolumeInformation></CaretExtension>"
)


@dataclass(frozen=True)
class Segmented:
    """What was found in one scan.

    Attributes:
        labels: uint8, of the shape of the scan as it was sent.
        affine: of the labels, to RAS mm.
        structures: value to name.
        content: JSON-like: ``structures``, value to ``name``, ``volume_ml`` and ``dice`` on test scans; ``limits``, in
            words; ``part``, ``model`` and ``found``.
        images: headers of the scan's images, where they were asked for.
    """

    labels: Labels
    affine: FloatArray
    structures: dict[int, str]
    content: dict[str, Any]
    images: tuple[pydicom.Dataset, ...] = ()

    def as_nifti(self) -> bytes:
        """The label map as .nii.gz, with the structures' names in its header, where 3D Slicer and TotalSegmentator have
        them; equal maps give equal bytes."""
        rows = "".join(
            f'<Label Key="{value}"><![CDATA[{name}]]></Label>' for value, name in sorted(self.structures.items())
        )
        table = nib.nifti1.Nifti1Extension(CARET, TABLE.format(rows).encode())
        return nifti_bytes(self.labels, self.affine, [table])

    def as_dicom(self) -> bytes:
        """The label map as DICOM SEG in the scan's study.

        Raises:
            InputError: the scan was sent as NIfTI; or as :func:`serving.dicom_seg.dicom_seg`.
        """
        from serving.dicom_seg import dicom_seg  # highdicom takes half a second

        if not self.images:
            raise InputError("a DICOM SEG refers to DICOM images, and the scan was sent as NIfTI; ask for NIfTI")
        part, model = self.content["part"], self.content["model"]
        with header_values():
            return dicom_seg(self.images, self.labels, self.affine, self.structures, part, model)


def segment_file(
    path: Path,
    bundle: ServedBundle,
    part: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    with_images: bool = False,
) -> Segmented:
    """Segment one CT scan.

    Args:
        path: as :func:`serving.embedding.embed_file`.
        bundle: the release.
        part: which of its heads; None where it has one.
        limits: of archive and volume.
        with_images: whether the headers of its images are kept, for a DICOM SEG.

    Raises:
        InputError, UserError: as :func:`serving.embedding.embed_file`; or there is no such head.
    """
    part = segmenter_of(bundle.segmenters, part)
    return segment_scan(read_scan(path, bundle, limits, with_images), bundle, part)


def segment_scan(scan: Scan, bundle: ServedBundle, part: str) -> Segmented:
    """As :func:`segment_file`, of a scan that has been read; ``part``: one of the release's heads that segment."""
    head = bundle.segmenters[part]
    segmenter = head.on(bundle.embedder, Path(part))
    with fixed_threads():
        found = segmenter.segment(scan.volume.hu)
    labels = onto(found, scan.volume.affine, scan.sent)
    told = head.description
    millilitres = abs(float(np.linalg.det(scan.sent.affine[:3, :3]))) / 1000
    counts = np.bincount(labels.ravel(), minlength=len(told.structures) + 1)
    names = dict(enumerate(told.structures, start=1))
    structures = {
        str(value): {
            "name": name,
            "volume_ml": round(float(counts[value]) * millilitres, DIGITS),
            "dice": told.dice.get(name),
        }
        for value, name in names.items()
    }
    content = {"part": part, "structures": structures, "limits": list(told.limits)}
    content |= {"model": bundle.model, "found": scan.to_json()}
    return Segmented(labels, scan.sent.affine, names, content, scan.images)
