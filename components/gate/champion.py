"""``python -m components.gate.champion``, stage ``champion``: the figures beside those of the release in use.

A bundle waits for the verdict, and holds nothing else of the comparison: ``ctfoundry promote`` changes the champion,
and must not change the bytes of the release that it promotes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from components.command import data_dir, run_stage
from components.errors import UserError
from components.files import read_json, write_json
from components.gate.config import GateConfig
from components.gate.rules import against_champion, decision, not_judged
from components.gate.stage import EXIT_FAILED, failure_line
from components.settings import load_stage

CHAMPIONS = Path("infra/champions")
VERDICT, COMPARISON = "verdict.json", "comparison.json"


def run(line: str) -> None:
    """Write ``verdict.json`` (pass or fail, no more) and ``comparison.json`` to ``data/<line>/champion``.

    Exits with 3 where the line is worse, after one line per figure on stderr.

    Raises:
        UserError: figures are missing, or the champion file is not one.
    """
    config = load_stage(GateConfig, line, "gate")
    metrics = data_dir(line, "evaluate") / "metrics.json"
    if not metrics.is_file():
        raise UserError(f"{metrics}: not found; run `dvc repro` so that the stages before this one are done")
    champion = read_champion(CHAMPIONS / f"{line}.json")
    asked_again = read_json(data_dir(line, "rival") / "rival.json")["tasks"]
    verdicts = against_champion(config, line, read_json(metrics), champion, asked_again) or [not_judged("champion")]
    judged = decision(verdicts)
    folder = data_dir(line, "champion")
    write_json(folder / COMPARISON, {"champion": champion and champion["bundle"], **judged})
    write_json(folder / VERDICT, {"verdict": judged["verdict"]})
    failed = [verdict for verdict in verdicts if verdict.failed]
    for verdict in failed:
        print(failure_line(verdict), file=sys.stderr)
    if failed:
        sys.exit(EXIT_FAILED)


def read_champion(path: Path) -> dict[str, Any] | None:
    """The champion in one of ``infra/champions``; None where the line has none. Raises UserError where it is broken."""
    if not path.is_file():
        raise UserError(f'{path}: not found; for a line without a champion it holds {{"champion": null}}')
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


if __name__ == "__main__":
    run_stage("champion", "Hold the figures beside the champion's; exits with 3 where they are worse.", run)
