"""What a suite of expectations is made of: what is expected, how severe, which reason. Each stage writes its own.

Severities: ``reject`` costs the series that fails it; ``critical`` stops the run; ``warning`` is reported. What a
missing value would tell is measured in a column of its own: Great Expectations passes over missing values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

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


def among(reason: str, column: str, allowed: list[Any], says: str, severity: Severity = "reject") -> Rule:
    return Rule(reason, "ExpectColumnValuesToBeInSet", {"column": column, "value_set": allowed}, says, severity)


def between(
    reason: str, column: str, low: float | None, high: float | None, says: str, severity: Severity = "reject"
) -> Rule:
    bounds = {"column": column, "min_value": low, "max_value": high}
    arguments = {k: v for k, v in bounds.items() if v is not None}
    return Rule(reason, "ExpectColumnValuesToBeBetween", arguments, says, severity)


def matching(reason: str, column: str, regex: str, says: str, severity: Severity) -> Rule:
    return Rule(reason, "ExpectColumnValuesToMatchRegex", {"column": column, "regex": regex}, says, severity)


def accounting(rows: int, accepted_rate: float) -> tuple[Rule, ...]:
    """What holds for every table of series: none lost, none twice, and not suspiciously many rejected."""
    return (
        Rule("rows_lost", "ExpectTableRowCountToEqual", {"value": rows}, f"all {rows} series are there", "critical"),
        Rule("rows_twice", "ExpectColumnValuesToBeUnique", {"column": "series"}, "every series once", "critical"),
        Rule("mostly_rejected", "ExpectColumnMeanToBeBetween", {"column": "accepted", "min_value": accepted_rate},
             f"at least {accepted_rate:.0%} accepted", "warning"),
    )  # fmt: skip
