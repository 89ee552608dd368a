"""Judge a table of measurements with a Great Expectations suite: a reason per series, a verdict for the run.

Great Expectations takes seconds to import, so it is imported where it is used. ``ValidationDefinition.run`` does not
raise on failure: :func:`judge` does, for critical rules.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from components.errors import UserError
from components.quality.derived import prepare
from components.quality.offline import make_offline
from components.quality.rules import Rule, Suite

KEY = "series"
NAMED = 3  # series that an error names; the table holds the rest


@dataclass(frozen=True)
class Judgement:
    """Attributes:
    reasons: series to its failed reject rules' codes, in the suite's order; series without failure are absent.
    expected: series to what was expected of it and is not so, in the suite's order.
    results: one row per rule: reason, says, severity, success, and how many series failed it.
    warnings: what was expected, of every failed warning rule.
    """

    reasons: dict[str, list[str]]
    expected: dict[str, list[str]]
    results: list[dict[str, Any]]
    warnings: list[str]


def judge(table: pd.DataFrame, suite: Suite) -> Judgement:
    """Judge every row, then the table.

    Args:
        table: one row per series, with column ``series`` and what the suite names.
        suite: the rules.

    Raises:
        UserError: a critical rule failed, or a column that a rule needs is not there; the message names it.
    """
    prepared = prepare(table.assign(accepted=1.0))  # until the reject rules have spoken
    _check_columns(prepared, suite)
    reject = [i for i, rule in enumerate(suite.rules) if rule.severity == "reject"]
    whole = [i for i, rule in enumerate(suite.rules) if rule.severity != "reject"]
    first = _validate(prepared, suite, reject)
    reasons: dict[str, list[str]] = {}
    expected: dict[str, list[str]] = {}
    for index in reject:
        for key in first[index].failed:
            expected.setdefault(key, []).append(suite.rules[index].says)
            codes = reasons.setdefault(key, [])
            if suite.rules[index].reason not in codes:
                codes.append(suite.rules[index].reason)
    prepared = prepare(table.assign(accepted=(~table[KEY].isin(list(reasons))).astype(float)))
    outcome = {**first, **_validate(prepared, suite, whole)}
    results = [
        {"reason": rule.reason, "says": rule.says, "severity": rule.severity, "success": outcome[i].success,
         "failed": len(outcome[i].failed)}
        for i, rule in enumerate(suite.rules)
    ]  # fmt: skip
    broken = [
        f"{rule.reason}: {rule.says}{_named(outcome[i].failed)}"
        for i, rule in enumerate(suite.rules)
        if rule.severity == "critical" and not outcome[i].success
    ]
    if broken:
        raise UserError(f"suite {suite.name}: critical expectation failed: {'; '.join(broken)}")
    warnings = [str(r["says"]) for r in results if r["severity"] == "warning" and not r["success"]]
    return Judgement(dict(sorted(reasons.items())), dict(sorted(expected.items())), results, warnings)


def _check_columns(table: pd.DataFrame, suite: Suite) -> None:
    """A rule on a column that is not there would judge nobody: that is a defect of the table, and stops the run."""
    missing = sorted({name for rule in suite.rules for name in _named_by(rule)} - set(table.columns))
    if missing:
        raise UserError(
            f"suite {suite.name}: column {', '.join(missing)} is missing from the table, so nothing judges it; "
            "run the stages before this one again"
        )


def _named_by(rule: Rule) -> list[str]:
    found = [rule.arguments.get("column"), *rule.arguments.get("column_list", ())]
    return [str(name) for name in found if name is not None]


def _columns(table: pd.DataFrame, suite: Suite, indices: list[int]) -> list[str]:
    """Those that the rules name: Great Expectations copies the whole table for every rule."""
    named = {KEY, *(name for index in indices for name in _named_by(suite.rules[index]))}
    conditions = " ".join(str(suite.rules[index].arguments.get("row_condition", "")) for index in indices)
    return [str(name) for name in table.columns if name in named or str(name) in conditions]


def _named(failed: list[str]) -> str:
    if not failed:
        return ""
    first = ", ".join(sorted(set(failed))[:NAMED])
    return f" ({len(failed)} series: {first}{', ...' if len(set(failed)) > NAMED else ''})"


@dataclass(frozen=True)
class _Outcome:
    success: bool
    failed: list[str]


def _validate(table: pd.DataFrame, suite: Suite, indices: list[int]) -> dict[int, _Outcome]:
    """Run some rules of a suite with Great Expectations, in memory."""
    gx = _great_expectations()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = gx.data_context.types.base.ProgressBarsConfig(globally=False)
    definition = _definition(context, suite, indices)
    result = definition.run(
        batch_parameters={"dataframe": table[_columns(table, suite, indices)]},
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [KEY]},
    )
    outcome = {}
    for found in result.results:
        if raised := _raised(found.exception_info or {}):
            raise RuntimeError(f"suite {suite.name}: {raised}")
        failed = [entry[KEY] for entry in found.result.get("unexpected_index_list") or []]
        outcome[int(found.expectation_config.meta["rule"])] = _Outcome(bool(found.success), failed)
    return outcome


def _raised(info: Mapping[str, Any]) -> str:
    """What an expectation raised: Great Expectations reports it by itself, or by metric, and never raises it."""
    parts = [info, *(part for part in info.values() if isinstance(part, dict))]
    return "; ".join(sorted({str(part["exception_message"]) for part in parts if part.get("raised_exception")}))


def _definition(context: Any, suite: Suite, indices: list[int], name: str | None = None) -> Any:
    gx = _great_expectations()
    name = name or suite.name
    severities = {"reject": "warning", "critical": "critical", "warning": "info"}
    expectations = [
        _expectation(gx, rule.expectation)(
            **rule.arguments,
            severity=severities[rule.severity],
            notes=f"{rule.says}; otherwise {rule.severity}: {rule.reason}",
            meta={"rule": index, "reason": rule.reason, "severity": rule.severity},
        )
        for index, rule in enumerate(suite.rules)
        if index in indices
    ]
    asset = context.data_sources.add_pandas(name).add_dataframe_asset(name="series")
    batch = asset.add_batch_definition_whole_dataframe("all")
    suite_object = context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations))
    return context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite_object))


def write_data_docs(tables: list[tuple[str, pd.DataFrame, Suite]], folder: Path) -> Path:
    """Build Data Docs, a site that people browse, from judged tables.

    Args:
        tables: name of the validation, its table (with column ``accepted``), its suite.
        folder: replaced. Data Docs carry the clock, so they are a report and no tracked output.

    Returns:
        The site's ``index.html``.
    """
    gx = _great_expectations()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    context = gx.get_context(mode="file", project_root_dir=str(folder))
    context.variables.progress_bars = gx.data_context.types.base.ProgressBarsConfig(globally=False)
    for name, table, suite in tables:
        definition = _definition(context, suite, list(range(len(suite.rules))), name)
        checkpoint = gx.Checkpoint(
            name=name,
            validation_definitions=[definition],
            result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [KEY]},
        )
        prepared = prepare(table)
        shown = prepared[_columns(prepared, suite, list(range(len(suite.rules))))]
        context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": shown})
    context.build_data_docs()
    index = next((folder / "gx").glob("uncommitted/data_docs/*/index.html"))
    make_offline(index.parent)
    return index


def _expectation(gx: Any, name: str) -> Any:
    """An expectation of our own, or one of Great Expectations'."""
    from components.quality import expectations

    return getattr(expectations, name, None) or getattr(gx.expectations, name)


def _great_expectations() -> Any:
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.WARNING)  # it says much while it is imported
    import great_expectations

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("great_expectations."):  # some set a level of their own
            logging.getLogger(name).setLevel(logging.WARNING)
    return great_expectations
