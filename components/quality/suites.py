"""The Great Expectations suites, readable in one place: what is expected, how severe, which reason.

Severities: ``reject`` costs the series that fails it; ``critical`` stops the run; ``warning`` is reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from components.curate.config import CurateConfig
from components.screen.config import ScreenConfig

Severity = Literal["reject", "critical", "warning"]


@dataclass(frozen=True)
class Rule:
    """One expectation.

    Attributes:
        reason: code given to a series (or to the run) that fails it.
        expectation: name of a Great Expectations class.
        arguments: its arguments; the bounds come from ``params.yaml``.
        severity: see the module.
        says: what is expected, for people.
    """

    reason: str
    expectation: str
    arguments: dict[str, Any]
    says: str
    severity: Severity = "reject"


@dataclass(frozen=True)
class Suite:
    """A named list of rules."""

    name: str
    rules: tuple[Rule, ...] = field(default_factory=tuple)


def _among(reason: str, column: str, allowed: list[Any], says: str) -> Rule:
    return Rule(reason, "ExpectColumnValuesToBeInSet", {"column": column, "value_set": allowed}, says)


def _between(reason: str, column: str, low: float | None, high: float | None, says: str) -> Rule:
    bounds = {"column": column, "min_value": low, "max_value": high}
    return Rule(reason, "ExpectColumnValuesToBeBetween", {k: v for k, v in bounds.items() if v is not None}, says)


def _accounting(rows: int, accepted_rate: float) -> tuple[Rule, ...]:
    """What holds for every table of series: none lost, none twice, and not suspiciously many rejected."""
    return (
        Rule("rows_lost", "ExpectTableRowCountToEqual", {"value": rows}, f"all {rows} series are there", "critical"),
        Rule("rows_twice", "ExpectColumnValuesToBeUnique", {"column": "series"}, "every series once", "critical"),
        Rule("mostly_rejected", "ExpectColumnMeanToBeBetween", {"column": "accepted", "min_value": accepted_rate},
             f"at least {accepted_rate:.0%} accepted", "warning"),
    )  # fmt: skip


def headers(config: ScreenConfig, rows: int) -> Suite:
    """What headers must say before pixels are touched. ``rows``: series expected in the table."""
    low, high = config.thickness_mm
    return Suite(
        "headers",
        (
            _among("acquire_failed", "status", ["acquired"], "the transfer succeeded"),
            _among("not_ct", "is_ct_image", [True], "modality and SOP class are CT"),
            _among("localizer", "is_localizer", [False], "no scout image"),
            _between("unreadable_files", "unreadable_files", 0, 0, "every file readable and complete"),
            _among("missing_tags", "missing_tags", [""], "position, orientation and pixel spacing are there"),
            _between("too_few_slices", "instances", config.min_instances, None,
                     f"at least {config.min_instances} slices"),
            _between("slice_thickness", "thickness_min_mm", low, None, f"thickness at least {low} mm"),
            _between("slice_thickness", "thickness_max_mm", None, high, f"thickness at most {high} mm"),
            _between("repeated_positions", "repeated", 0, 0, "no position twice"),
            _between("uneven_spacing", "gap_ratio", None, config.max_gap_ratio,
                     f"largest gap at most {config.max_gap_ratio} times the median"),
            _between("gantry_tilt", "tilt_degrees", None, config.max_tilt_degrees,
                     f"gantry tilt at most {config.max_tilt_degrees} degrees"),
            _between("mixed_geometry", "geometries", 0, 1, "one orientation, matrix and pixel spacing"),
            _among("lossy_compression", "lossy", [False], "never compressed with loss"),
            _among("burned_in_annotation", "burned_in", [False], "no text burned into the pixels"),
            *_accounting(rows, config.min_accepted_rate),
        ),
    )  # fmt: skip


def volumes(config: CurateConfig, rows: int) -> Suite:
    """What voxels must show before a volume is used. ``rows``: series expected in the table."""
    low, high = config.body_median_hu
    return Suite(
        "volumes",
        (
            _among("decode_failed", "decoded", [True], "pixels decode"),
            _between("scan_too_short", "extent_mm", config.min_extent_mm, None,
                     f"at least {config.min_extent_mm} mm long"),
            _between("no_body", "body_fraction", config.min_body_fraction, None,
                     f"at least {config.min_body_fraction:.0%} of the volume is the patient"),
            _between("hu_calibration", "body_median_hu", low, high, f"soft tissue between {low} and {high} HU"),
            _between("hu_calibration", "hu_p01", None, config.max_darkest_hu,
                     f"the darkest percent at most {config.max_darkest_hu} HU"),
            _between("constant_slices", "constant_slices", 0, config.max_constant_slices,
                     f"at most {config.max_constant_slices} slices of one value"),
            *_accounting(rows, config.min_accepted_rate),
        ),
    )  # fmt: skip
