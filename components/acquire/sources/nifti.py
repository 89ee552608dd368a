"""A directory of NIfTI volumes in HU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from components.acquire.config import TransferConfig
from components.acquire.sources import Listed, Listing
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
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            location = path.relative_to(root).as_posix()
            size = path.stat().st_size
            status = "image" if path.name.endswith(SUFFIXES) else "not_nifti"
            key = series_key(f"nifti|{location}")
            rows.append(
                {"location": location, "bytes": size, "status": status, "series": key if status == "image" else ""}
            )
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
        return Listing(sorted(listed, key=lambda s: s.series), rows)

    def check(self) -> None:
        root_of("nifti")

    def fetch(
        self, row: dict[str, Any], members: list[str], folder: Path, transfer: TransferConfig
    ) -> pd.DataFrame | None:
        for member in members:
            suffix = ".nii.gz" if member.endswith(".gz") else ".nii"
            (folder / f"volume{suffix}").write_bytes((root_of("nifti") / member).read_bytes())
        return None
