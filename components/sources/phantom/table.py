"""The table that the plans of a site's phantoms make, as one of labels."""

from __future__ import annotations

import pandas as pd

from components.sources.config import PhantomConfig
from components.sources.phantom.dealing import plan_scans
from components.sources.phantom.plan import FINDINGS, ICH_KINDS


def planned_table(config: PhantomConfig) -> pd.DataFrame:
    """What the plans say of each scan to evaluate with, a row each, every column as text: ``series`` (its UID),
    ``patient``, and of a head every finding, ``present`` or ``absent``."""
    rows = []
    for plan in plan_scans(config):
        if plan.role != "evaluation":
            continue
        has = {*plan.findings, *(["ich"] if set(plan.findings) & set(ICH_KINDS) else [])}
        told = {finding: "present" if finding in has else "absent" for finding in FINDINGS}
        rows.append({"series": plan.series_uid, "patient": plan.patient_id} | (told if plan.anatomy == "head" else {}))
    return pd.DataFrame(rows, dtype=str)
