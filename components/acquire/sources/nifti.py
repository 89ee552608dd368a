"""A directory of NIfTI volumes in HU."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from components.acquire.config import TransferConfig
from components.acquire.sources import Listed, Listing
from components.acquire.sources.tree import has_map, keyed, names, reason_of, resolve, shown, write_map
from components.cohort.config import CohortConfig
from components.cohort.keys import patient_key, series_key
from components.cohort.roots import check_pinned, root_of
from components.params import UserError

SUFFIXES = (".nii", ".nii.gz")


class NiftiSource:
    """Every ``.nii`` and ``.nii.gz`` below the root ``nifti`` is one series; its folder, or its name at the top, is the
    patient."""

    def __init__(self, config: CohortConfig, line: str) -> None:
        self._config, self._key = config, f"{line}.cohort.source_digest"
        self.version = config.source_digest or ""

    def list_series(self, held_out: frozenset[str]) -> Listing:
        root = check_pinned("nifti", self._config.source_digest, self._key)
        listed, rows = [], []
        for found in names(root):
            location = found.location
            size, status = _measured(root / location) if not found.status else (0, found.status)
            key = series_key(f"nifti|{location}") if status == "image" else ""
            rows.append({"location": location, "bytes": size, "status": status, "series": key})
            if status == "image":
                patient = location.partition("/")[0]
                name = location.removesuffix(".gz").removesuffix(".nii")
                of = self._config
                listed.append(
                    Listed(key, patient_key(patient), name, location, 1, size, of.collection, of.licence, of.doi,
                           members=(location,))
                )  # fmt: skip
        if not listed:
            raise UserError("root 'nifti': no .nii or .nii.gz file below it")
        listing = Listing(sorted(listed, key=lambda s: s.series), rows)
        return keyed(listing, "nifti") if self._config.paths == "keyed" else shown(listing, "nifti")

    def check(self) -> None:
        root_of("nifti")
        if self._config.paths == "keyed" and not has_map("nifti"):
            write_map("nifti")

    def fetch(
        self, row: dict[str, Any], members: list[str], folder: Path, transfer: TransferConfig
    ) -> pd.DataFrame | None:
        for location in resolve("nifti", members) if self._config.paths == "keyed" else members:
            suffix = ".nii.gz" if location.endswith(".gz") else ".nii"
            try:
                shutil.copyfile(root_of("nifti") / location, folder / f"volume{suffix}")
            except OSError as error:
                raise reason_of(error) from None
        return None


def _measured(path: Path) -> tuple[int, str]:
    """Size and status of a file: ``image``, ``empty``, ``not_nifti``, ``vanished`` or ``unreadable``."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
    except FileNotFoundError:
        return 0, "vanished"
    except OSError:
        return 0, "unreadable"
    return size, "not_nifti" if not path.name.endswith(SUFFIXES) else "image" if size else "empty"
