"""What is to be known of each kind of source before it is built: by suites, commands and the keeping of receipts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A value of ``cohort.source``.

    Attributes:
        site: its data are nobody else's to know, so that pseudonyms want the site's own secret.
        folder: it is a folder of this machine, pinned by a digest and named behind ``--source <kind>:``.
        sized: files and bytes are known before the transfer. a_slice: each file is then one slice.
        nifti: its files are NIfTI volumes, not DICOM.
        labels: of a fetched series' folder, the file that holds its labels (NIfTI, DICOM SEG or RTSTRUCT); '' where the
            source brings none.
    """

    site: bool = False
    folder: bool = False
    sized: bool = False
    a_slice: bool = False
    nifti: bool = False
    labels: str = ""


KINDS: Mapping[str, Kind] = {
    "phantom": Kind(labels="mask.nii.gz"),
    "idc": Kind(sized=True, a_slice=True),
    "dicomweb": Kind(site=True),
    "dicom": Kind(site=True, folder=True, sized=True, a_slice=True),
    "nifti": Kind(site=True, folder=True, sized=True, nifti=True),
}


def spelled(place: str) -> str:
    """The kinds as ``--source`` takes them, ``place`` standing for a folder."""
    words = [f"{name}:{place}" if kind.folder else name for name, kind in KINDS.items()]
    return f"{', '.join(words[:-1])} or {words[-1]}"
