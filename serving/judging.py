"""The training thresholds applied to one request, without Great Expectations, which takes seconds to import.

Rules and bounds are those of ``components.quality.suites``; a test holds the verdicts equal to Great Expectations'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from components.quality.judge import prepare
from components.quality.suites import Rule, Suite


def warnings_of(measurements: Mapping[str, Any], suite: Suite) -> list[str]:
    """One line per rejecting rule that one series fails: ``reason: what is expected; found value``.

    Args:
        measurements: columns of the suite's table; rules on columns that are absent (there are no headers in a
            NIfTI) are passed over, and so are missing values, as Great Expectations does.
        suite: the rules.
    """
    row = prepare(pd.DataFrame([{"series": "", **measurements}])).iloc[0].to_dict()
    failed = [rule for rule in suite.rules if rule.severity == "reject" and _fails(row, rule)]
    return [f"{rule.reason}: {rule.says}; found {_shown(row[rule.arguments['column']])}" for rule in failed]


def _fails(row: Mapping[Any, Any], rule: Rule) -> bool:
    value = row.get(rule.arguments["column"])
    if value is None or pd.isna(value):
        return False
    if rule.expectation == "ExpectColumnValuesToBeInSet":
        return value not in rule.arguments["value_set"]
    if rule.expectation == "ExpectColumnValuesToBeBetween":
        low, high = rule.arguments.get("min_value"), rule.arguments.get("max_value")
        return bool((low is not None and value < low) or (high is not None and value > high))
    raise ValueError(f"rule {rule.reason}: expectation {rule.expectation} is not known to the service")


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)[:40]
