"""Small phantom plans, quick to scan, for the tests of the phantom."""

from __future__ import annotations

from dataclasses import replace

from components.sources.config import PhantomConfig
from components.sources.phantom.dealing import plan_scans
from components.sources.phantom.equipment import VENDORS, kernels
from components.sources.phantom.plan import ScanPlan


def small(anatomy: str, **changes: object) -> ScanPlan:
    """A clean plan of few pixels and slices, quick to scan."""
    config = PhantomConfig.model_validate(
        {"anatomy": anatomy}
        | {"pretrain_patients": 1, "evaluation_patients": 12, "retest_patients": 0, "fault_share": 0.0, "seed": 11}
    )
    plan = plan_scans(config)[1]
    field = plan.pixel_mm * plan.matrix
    extent = plan.slices * plan.increment_mm
    plan = replace(plan, matrix=96, pixel_mm=round(field / 96, 6), increment_mm=6.0, thickness_mm=6.0)
    plan = replace(plan, slices=int(extent / 6), position="HFS", oblique_deg=0.0, descending=False)
    return with_vendor(replace(plan, **changes), "siemens")  # type: ignore[arg-type]


def with_vendor(plan: ScanPlan, vendor: str) -> ScanPlan:
    return replace(
        plan, vendor=vendor, model=VENDORS[vendor].models[0], kernel=next(iter(kernels(vendor, plan.anatomy)))
    )
