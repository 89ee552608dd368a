"""What a child does with one scan of a batch: read it once, and answer all that is asked as the service's routes do."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import cv2
import nibabel as nib
import numpy as np
import numpy.typing as npt

from components.ct.store import Volume
from components.errors import UserError
from serving.batch_files import COLOURS, PICTURE, SUFFIXES
from serving.classifying import classify_scan
from serving.device import of_gpu
from serving.embedding import Answer, Scan, ServedBundle, read_scan, volume_vector
from serving.limits import Limits
from serving.segmenting import Labels, Segmented, segment_scan

SIDE = 320  # pixels of a picture's longer side
WINDOW = (-160.0, 240.0)  # HU, soft tissue
OPACITY = 0.45


def answer_all(
    path: Path, bundle: ServedBundle, limits: Limits, only: Collection[str], form: str, scratch: Path
) -> dict[str, Any]:
    """All answers for one scan.

    Args:
        path: as :func:`serving.embedding.embed_file`.
        bundle: the release.
        limits: of archive and volume.
        only: what is asked: of ``embed``, ``classify`` and ``segment``.
        form: of segmentations, ``nifti`` or ``dicom``; a scan that was sent as NIfTI has them as NIfTI.
        scratch: folder, into which segmentations and the picture are written.

    Returns:
        JSON-like: ``answers``, with what ``/embed`` and ``/classify`` answer, and by part what ``/segment`` does;
        ``form`` of the segmentations, which have their head's number as their name; ``refused``, what is asked to one
        line of why it has no answer.

    Raises:
        InputError, UserError: as :func:`serving.embedding.embed_file`.
    """
    scan = read_scan(path, bundle, limits, with_images=form == "dicom")
    form = "dicom" if scan.images else "nifti"
    answers: dict[str, Any] = {}
    refused: dict[str, str] = {}

    def tried(what: str, answer: Callable[[], Any]) -> Any:
        try:
            return answer()
        except UserError as error:
            if of_gpu(error):  # which says nothing of the scan: it is to be done again, and not kept in part
                raise
            refused[what] = " ".join(str(error).split())
            return None

    vector = tried("embed", lambda: volume_vector(scan, bundle)) if {"embed", "classify"} & set(only) else None
    if vector is not None and "embed" in only:
        answers["embed"] = Answer(vector, bundle.model, scan.found).to_json()
    if vector is not None and "classify" in only:
        answers["classify"] = classify_scan(scan, bundle, vector=vector)
    shown = None
    for number, part in enumerate(bundle.segmenters if "segment" in only else ()):
        name = f"{number}{SUFFIXES[form]}"

        def segmented(part: str = part, name: str = name) -> Segmented:
            found = segment_scan(scan, bundle, part)
            (scratch / name).write_bytes(found.as_dicom() if form == "dicom" else found.as_nifti())
            return found

        found = tried(f"segment {part}", segmented)
        if found is not None:
            answers.setdefault("segment", {})[part] = found.content
            shown = found.labels if shown is None else shown
    (scratch / PICTURE).write_bytes(picture(scan, shown))
    return {"answers": answers, "form": form, "refused": refused}


def picture(scan: Scan, labels: Labels | None) -> bytes:
    """The middle axial slice as PNG, true to millimetres: the patient's right at the left, anterior at the top.

    Args:
        scan: as it was sent.
        labels: on its grid, laid over it; None for none.
    """
    plane, wide, high = _axial(scan.sent, scan.sent.hu)
    size = (max(1, round(wide * SIDE / max(wide, high))), max(1, round(high * SIDE / max(wide, high))))
    grey = np.clip((plane.astype(np.float32) - WINDOW[0]) * (255 / (WINDOW[1] - WINDOW[0])), 0, 255)
    shown = np.repeat(cv2.resize(grey, size, interpolation=cv2.INTER_AREA)[..., None], 3, axis=2)
    if labels is not None:
        over = cv2.resize(_axial(scan.sent, labels)[0], size, interpolation=cv2.INTER_NEAREST)
        colours = np.array([[int(text[n : n + 2], 16) for n in (5, 3, 1)] for text in COLOURS], np.float32)  # BGR
        there = over > 0
        shown[there] += OPACITY * (colours[(over[there] - 1) % len(COLOURS)] - shown[there])
    done, content = cv2.imencode(".png", np.rint(shown).astype(np.uint8))
    assert done
    return bytes(content)


def _axial(volume: Volume, voxels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], float, float]:
    """The middle slice of ``voxels``, which lie on the volume's grid, rows downwards; its width and height in mm."""
    turn = nib.orientations.io_orientation(volume.affine)
    upright = nib.orientations.apply_orientation(voxels, turn)
    spacing = np.linalg.norm(volume.affine @ nib.orientations.inv_ornt_aff(turn, voxels.shape), axis=0)
    plane = np.ascontiguousarray(upright[::-1, ::-1, upright.shape[2] // 2].T)
    return plane, float(plane.shape[1] * spacing[0]), float(plane.shape[0] * spacing[1])
