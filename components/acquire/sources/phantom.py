"""The embedded default source: the procedural CT scanner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from components.acquire.sources import Listed, Listing
from components.cohort.keys import patient_key, series_key
from components.phantom.config import PhantomConfig
from components.phantom.plan import ScanPlan, plan_scans
from components.phantom.scanner import scan


class PhantomSource:
    """Series that are planned from a seed and scanned when they are fetched."""

    def __init__(self, line: str, config: PhantomConfig, pretrain: bool) -> None:
        """``pretrain``: list pretraining patients too, not evaluation patients only."""
        self._line, self._config, self._pretrain = line, config, pretrain

    def list_series(self) -> Listing:
        plans = [p for p in plan_scans(self._line, self._config) if self._pretrain or p.role == "evaluation"]
        return Listing([self._listed(plan) for plan in plans])

    def _listed(self, plan: ScanPlan) -> Listed:
        return Listed(
            series=series_key(plan.series_uid),
            patient=patient_key(plan.patient_id),
            name=plan.name,
            location="",
            files=0,
            bytes=0,
            role=plan.role,
            split=plan.split,
            retest_of=series_key(plan.retest_of) if plan.retest_of else "",
            plan=plan.to_json(),
        )

    def fetch(self, row: dict[str, Any], members: list[str], folder: Path) -> pd.DataFrame | None:
        return scan(ScanPlan.from_json(row["plan"]), folder)
