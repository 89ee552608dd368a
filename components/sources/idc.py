"""The NCI Imaging Data Commons: series chosen from its index, fetched from its public buckets or a mirror."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from components.ct.keys import patient_key, series_key, study_key, uid_key
from components.errors import UserError
from components.sources.config import IdcConfig, TransferConfig
from components.sources.idc_index import patients_of_ct, select
from components.sources.idc_preview import funnel_rows
from components.sources.interface import Listed, Listing
from components.sources.transfer import Bucket, download, s5cmd


class IdcSource:
    """Objects are immutable by ``crdc_series_uuid``, which is the location: no digest of the data is needed."""

    version = ""

    def __init__(self, config: IdcConfig) -> None:
        self._config = config

    def list_series(self, held_out: frozenset[str]) -> Listing:
        patients = frozenset(patient for patient in patients_of_ct() if patient_key(patient) in held_out)
        selection = select(self._config, patients)
        if selection.series.empty:
            raise UserError(f"cohort query {self._config.query!r}: no series is left; see `ctfoundry cohort preview`")
        listed = [
            Listed(
                series=series_key(row["SeriesInstanceUID"]),
                patient=patient_key(row["PatientID"]),
                study=study_key(row["StudyInstanceUID"]),
                uid=uid_key(row["SeriesInstanceUID"]),
                name=row["crdc_series_uuid"],
                location=f"{row['aws_bucket']}/{row['crdc_series_uuid']}",
                files=int(row["instanceCount"]),
                bytes=round(row["series_size_MB"] * 1e6),
                collection=row["collection_id"],
                licence=row["license_short_name"],
                doi=row["source_DOI"] if isinstance(row["source_DOI"], str) else "",
            )
            for row in selection.series.to_dict("records")
        ]
        chosen = {"funnel": funnel_rows(selection), "receipt": selection.receipt}
        return Listing(listed, selection=chosen, attribution=selection.attribution)

    def check(self) -> None:
        s5cmd()
        Bucket.configured().check_reachable()

    def fetch(
        self, row: dict[str, Any], members: list[str], folder: Path, transfer: TransferConfig
    ) -> pd.DataFrame | None:
        download(Bucket.configured(), row["location"], folder, int(row["files"]), int(row["bytes"]), transfer)
        return None
