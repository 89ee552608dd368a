"""One scan as the page's viewer shows it: on the model's grid, in HU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.ct.store import FloatArray, Int16Array
from serving.embedding import DEFAULT_LIMITS, ServedBundle, read_scan
from serving.limits import Limits
from serving.overlays import nifti_bytes


@dataclass(frozen=True)
class Preview:
    """A scan to look at.

    Attributes:
        hu: int16, slices first, standardised: the model's spacing, cropped to the body.
        affine: of the array, to RAS mm.
        content: JSON-like: ``model`` and ``found``.
    """

    hu: Int16Array
    affine: FloatArray
    content: dict[str, Any]

    def as_nifti(self) -> bytes:
        """The volume as .nii.gz, columns first and slices last, as other software has it."""
        return nifti_bytes(self.hu, self.affine, level=1)  # quickly: somebody waits to see it


def preview_file(path: Path, bundle: ServedBundle, limits: Limits = DEFAULT_LIMITS) -> Preview:
    """A scan as the model sees it. Arguments and errors as :func:`serving.embedding.embed_file`."""
    scan = read_scan(path, bundle, limits)
    bundle.embedder.show(scan.volume)  # raises where no place of it holds enough body: nothing would be answered
    return Preview(scan.volume.hu, scan.volume.affine, {"model": bundle.model, "found": scan.to_json()})
