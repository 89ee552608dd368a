"""The embedded default source: the procedural CT scanner."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from components import arithmetic
from components.ct.keys import patient_key, series_key, study_key, uid_key
from components.sources.config import PhantomConfig, TransferConfig
from components.sources.interface import Listed, Listing
from components.sources.phantom.dealing import plan_scans
from components.sources.phantom.plan import ScanPlan
from components.sources.phantom.scanner import scan


@cache
def _scanner_version() -> str:
    """Digest of the scanner's own code and of its arithmetic: another gives other series for the same plan."""
    here = Path(__file__)
    made = b"".join(path.read_bytes() for path in sorted(here.parent.glob("*.py")) if path != here)
    return hashlib.sha256(made + arithmetic.mode().encode()).hexdigest()


class PhantomSource:
    """Series that are planned from a seed and scanned when they are fetched."""

    def __init__(self, config: PhantomConfig, pretrain: bool) -> None:
        """``pretrain``: list pretraining patients too, not evaluation patients only."""
        self._config, self._pretrain = config, pretrain
        self.version = _scanner_version()

    def list_series(self, held_out: frozenset[str]) -> Listing:
        plans = [p for p in plan_scans(self._config) if self._pretrain or p.role == "evaluation"]
        return Listing([self._listed(plan) for plan in plans])

    def _listed(self, plan: ScanPlan) -> Listed:
        return Listed(
            series=series_key(plan.series_uid),
            patient=patient_key(plan.patient_id),
            study=study_key(plan.study_uid),
            uid=uid_key(plan.series_uid),
            name=plan.name,
            location="",
            files=0,
            bytes=0,
            collection="ctfoundry-phantom",
            licence="Apache-2.0",
            doi="",
            role=plan.role,
            split=plan.split,
            retest_of=series_key(plan.retest_of) if plan.retest_of else "",
            plan=plan.to_json(),
        )

    def check(self) -> None:
        """It is part of this program."""

    def fetch(
        self, row: dict[str, Any], members: list[str], folder: Path, transfer: TransferConfig
    ) -> pd.DataFrame | None:
        return scan(ScanPlan.from_json(row["plan"]), folder)
