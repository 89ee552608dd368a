"""The training thresholds applied to one request, without Great Expectations, which takes seconds to import.

Rules and bounds are those of ``components.quality.rules``; a test holds the verdicts equal to Great Expectations'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from components.quality.derived import prepare
from components.quality.geometry import OF_A_ROW
from components.quality.rules import Rule, Suite


def warnings_of(measurements: Mapping[str, Any], suite: Suite) -> list[str]:
    """One line per rejecting rule that one series fails: ``reason: what is expected; found value``.

    Args:
        measurements: columns of the suite's table; rules on columns that are absent (there are no headers in a
            NIfTI) are passed over, and so are missing values, as Great Expectations does.
        suite: the rules.
    """
    row = prepare(pd.DataFrame([{"series": "", **measurements}])).iloc[0].to_dict()
    failed = [rule for rule in suite.rules if rule.severity == "reject" and _fails(row, rule)]
    return [f"{rule.reason}: {rule.says}; found {_found(row, rule)}" for rule in failed]


def _fails(row: Mapping[Any, Any], rule: Rule) -> bool:
    values = {name: row.get(name) for name in _columns(rule)}
    if all(value is None or pd.isna(value) for value in values.values()):
        return False
    if own := OF_A_ROW.get(rule.expectation):
        return not own(pd.DataFrame([values]), rule.arguments)
    value = next(iter(values.values()))
    if rule.expectation == "ExpectColumnValuesToBeInSet":
        return value not in rule.arguments["value_set"]
    if rule.expectation == "ExpectColumnValuesToBeBetween":
        low, high = rule.arguments.get("min_value"), rule.arguments.get("max_value")
        return bool((low is not None and value < low) or (high is not None and value > high))
    raise ValueError(f"rule {rule.reason}: expectation {rule.expectation} is not known to the service")


def _columns(rule: Rule) -> list[str]:
    return list(rule.arguments.get("column_list") or [rule.arguments["column"]])


def _found(row: Mapping[Any, Any], rule: Rule) -> str:
    return ", ".join(_shown(row.get(name)) for name in _columns(rule))


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)[:40]
