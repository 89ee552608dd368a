"""The gate stage: reads what was measured, writes the decision, and stops the graph where a gate fails."""

from __future__ import annotations

import sys

from components.command import data_dir
from components.errors import UserError
from components.files import read_json, write_json
from components.gate.config import GateConfig
from components.gate.rules import Evidence, decision, verdicts_of
from components.gate.verdict import Verdict
from components.settings import load_stage
from components.tables import read_table

EXIT_FAILED = 3


def run(line: str) -> None:
    """Judge the line and write ``data/<line>/gate/decision.json``, whatever the verdict.

    Exits with 3 where a gate fails, after one line per failed gate on stderr.

    Raises:
        UserError: an input is missing.
    """
    config = load_stage(GateConfig, line, "gate")
    verdicts = verdicts_of(config, read_evidence(line))
    write_json(data_dir(line, "gate") / "decision.json", decision(verdicts))
    failed = [verdict for verdict in verdicts if verdict.failed]
    for verdict in failed:
        print(failure_line(verdict), file=sys.stderr)
    if failed:
        sys.exit(EXIT_FAILED)


def read_evidence(line: str) -> Evidence:
    """Everything the gates look at. Raises UserError where a file is missing."""
    evaluate, curate = data_dir(line, "evaluate"), data_dir(line, "curate")
    paths = [evaluate / "metrics.json", evaluate / "tasks.parquet", curate / "funnel.json", curate / "curated.parquet"]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: not found; run `dvc repro` so that the stages before this one are done")
    return Evidence(
        line=line,
        metrics=read_json(paths[0]),
        tasks=read_table(paths[1]),
        funnel=read_json(paths[2]),
        curated=read_table(paths[3]),
    )


def failure_line(verdict: Verdict) -> str:
    """One line for a failed gate: name, figure, bound, detail."""
    figure = "no figure" if verdict.figure is None else f"figure {verdict.figure:g}"
    bound = "" if verdict.bound is None else f", bound {verdict.bound:g}"
    return f"gate failed: {verdict.gate}: {figure}{bound}: {verdict.detail}"
