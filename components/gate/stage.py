"""The gate stage: reads what was measured, writes the decision, and stops the graph where a gate fails."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from components.command import data_dir
from components.files import read_json, read_table, write_json
from components.gate.config import GateConfig
from components.gate.rules import Evidence, Verdict, decision, judge
from components.params import UserError, load_stage

CHAMPIONS = Path("infra/champions")
EXIT_FAILED = 3


def run(line: str) -> None:
    """Judge the line and write ``data/<line>/gate/decision.json``, whatever the verdict.

    Exits with 3 where a gate fails, after one line per failed gate on stderr.

    Raises:
        UserError: an input is missing.
    """
    config = load_stage(GateConfig, line, "gate")
    verdicts = judge(config, read_evidence(line))
    write_json(data_dir(line, "gate") / "decision.json", decision(verdicts))
    failed = [verdict for verdict in verdicts if verdict.failed]
    for verdict in failed:
        print(failure_line(verdict), file=sys.stderr)
    if failed:
        sys.exit(EXIT_FAILED)


def read_evidence(line: str) -> Evidence:
    """Everything the gates look at. Raises UserError where a file is missing or a champion file is not one."""
    evaluate, curate = data_dir(line, "evaluate"), data_dir(line, "curate")
    champion_file = CHAMPIONS / f"{line}.json"
    paths = [evaluate / "metrics.json", evaluate / "tasks.parquet", curate / "funnel.json", curate / "curated.parquet"]
    for path in [*paths, champion_file]:
        if not path.is_file():
            raise UserError(f"{path}: not found; {_remedy(path, champion_file)}")
    return Evidence(
        line=line,
        metrics=read_json(paths[0]),
        tasks=read_table(paths[1]),
        funnel=read_json(paths[2]),
        curated=read_table(paths[3]),
        champion=_champion(champion_file),
    )


def _remedy(path: Path, champion_file: Path) -> str:
    if path == champion_file:
        return 'for a line without a champion it holds {"champion": null}'
    return "run `dvc repro` so that the stages before this one are done"


def _champion(path: Path) -> dict[str, Any] | None:
    content = read_json(path)
    if not isinstance(content, dict) or "champion" not in content:
        raise UserError(f'{path}: no key "champion"; for a line without a champion it holds {{"champion": null}}')
    champion = content["champion"]
    if champion is None:
        return None
    missing = sorted({"bundle", "evaluation_data", "metrics"} - set(champion))
    if missing or "tasks" not in champion["metrics"]:
        lacking = ", ".join(missing) or "metrics.tasks"
        raise UserError(f"{path}: champion lacks {lacking}; write it with `ctfoundry promote`")
    return dict(champion)


def failure_line(verdict: Verdict) -> str:
    """One line for a failed gate: name, figure, bound, detail."""
    figure = "no figure" if verdict.figure is None else f"figure {verdict.figure:g}"
    bound = "" if verdict.bound is None else f", bound {verdict.bound:g}"
    return f"gate failed: {verdict.gate}: {figure}{bound}: {verdict.detail}"
