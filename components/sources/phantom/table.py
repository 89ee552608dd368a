"""The table that the plans of a site's phantoms make, as one of labels."""

from __future__ import annotations

import pandas as pd

from components.sources.config import PhantomConfig
from components.sources.phantom.dealing import plan_scans
from components.sources.phantom.plan import FINDINGS, ICH_KINDS, ScanPlan
from components.sources.phantom.seeds import generator

MONTHLY_HAZARD, PER_FINDING = 0.007, 2.0  # of dying, without a finding; and by what each finding multiplies it
FOLLOW_UP = (6.0, 60.0)  # months, evenly drawn: after them a patient is last seen


def planned_table(config: PhantomConfig) -> pd.DataFrame:
    """What the plans say of each scan to evaluate with, a row each, every column as text: ``series`` (its UID),
    ``patient``, and of a head every finding, ``present`` or ``absent``; ``findings``, how many there are besides the
    derived ``ich``; and ``months`` to the patient's death (``died`` 1) or to when he was last seen (0)."""
    rows = []
    for plan in plan_scans(config):
        if plan.role != "evaluation":
            continue
        has = {*plan.findings, *(["ich"] if set(plan.findings) & set(ICH_KINDS) else [])}
        told = {finding: "present" if finding in has else "absent" for finding in FINDINGS}
        told |= {"findings": str(len(plan.findings))} | _followed(plan)
        rows.append({"series": plan.series_uid, "patient": plan.patient_id} | (told if plan.anatomy == "head" else {}))
    return pd.DataFrame(rows, dtype=str)


def _followed(plan: ScanPlan) -> dict[str, str]:
    """What became of the patient: a constant hazard, greater with each finding, until the follow-up ends."""
    draws = generator("follow-up", plan.anatomy_seed)
    death = float(draws.exponential(1 / (MONTHLY_HAZARD * PER_FINDING ** len(plan.findings))))
    end = float(draws.uniform(*FOLLOW_UP))
    return {"months": f"{min(death, end):.2f}", "died": str(int(death <= end))}
