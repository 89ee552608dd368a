"""Alarms, figures and dashboards: each alarm has a test and a page, and all go by figures that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.watch import RINGS
from serving.gateway.queue import Queue, sqlite_address
from serving.gateway.running import Figures
from serving.limits import Limits
from serving.load import Load
from serving.metrics import Metrics
from tests.released import ROOT

MONITORING = ROOT / "infra" / "monitoring"
BACKUP = ROOT / "infra" / "backup" / "backup.sh"
# What Prometheus or its exporters for the machine, PostgreSQL and Python say themselves.
OTHERS = ("up", "pg_", "node_", "process_", "ALERTS")
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool not found: apt-get install prometheus"
)


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alarms() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def dashboards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in (MONITORING / "dashboards").glob("*.json")}


def expressions() -> list[str]:
    panels = [panel for board in dashboards().values() for panel in board["panels"]]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def figures(tmp_path: Path) -> set[str]:
    """Names of all that the service, the gateway, the database's queries, the backup and the rules give."""
    queue = Queue(sqlite_address(tmp_path / "queue.sqlite"), "here")
    found = {sample.name for family in Figures(queue, None, None).collect() for sample in family.samples}
    queue.close()
    text = Metrics("m", "d", {"vendor": {"GE": 1}}).text(Load(Limits()), True).decode()
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)", text, re.MULTILINE):
        found |= {name, f"{name}_bucket"} if kind == "histogram" else {name}
    for name, block in yaml.safe_load((MONITORING / "queries.yml").read_text()).items():
        for column in block["metrics"]:
            ((label, how),) = column.items()
            found |= {f"{name}_{label}"} if how["usage"] != "LABEL" else set()
    found |= set(re.findall(r'echo "(ctfoundry_\w+) ', BACKUP.read_text()))
    return found | {rule["record"] for rule in rules() if "record" in rule}


def asked(expression: str) -> set[str]:
    """Names of figures in an expression of PromQL."""
    text = re.sub(r"\{[^}]*\}|\[[^]]*\]|\"[^\"]*\"|\b(?:by|on|group_left|without) \([^)]*\)", " ", expression)
    words = set(re.findall(r"(?<![\w:.$])[a-zA-Z_][\w:]*(?!\w*\s*\()", text))
    return words - {"and", "or", "unless", "bool", "group_left", "by", "on"}


def test_alarms_and_panels_go_by_figures_that_there_are(tmp_path: Path) -> None:
    found = figures(tmp_path)
    names = {name for expression in [*(rule["expr"] for rule in rules()), *expressions()] for name in asked(expression)}
    ours = {name for name in names if not name.startswith(OTHERS)}
    assert len(ours) > 15
    assert ours <= found


def test_a_figure_that_is_none_is_found() -> None:
    assert asked('sum by (le) (rate(a_b{x="y"}[5m])) / c:d > 0 and on (z) e') == {"a_b", "c:d", "e"}


def test_every_alarm_has_a_page_of_the_runbook() -> None:
    pages = {
        line.removeprefix("## ").lower()
        for line in (MONITORING / "runbook.md").read_text().splitlines()
        if line[:3] == "## "
    }
    assert pages == {name.lower() for name in alarms()}
    for name, rule in alarms().items():
        file, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert (ROOT / file) == MONITORING / "runbook.md", name
        assert anchor == name.lower()
        assert rule["labels"]["severity"] in ("warning", "critical"), name


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in (MONITORING / "runbook.md", MONITORING / "README.md", BACKUP.parent / "README.md"):
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            file, _, anchor = target.partition("#")
            there = (page.parent / file) if file else page
            assert there.exists(), target
            titles = (
                {
                    line.lstrip("# ").lower().replace(" ", "-")
                    for line in there.read_text().splitlines()
                    if line[:1] == "#"
                }
                if anchor
                else {""}
            )
            assert anchor in titles, target


def test_every_alarm_rings_in_a_test_and_all_but_few_are_silent_before() -> None:
    tests = yaml.safe_load((MONITORING / "rules_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(alarms())
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]}
    # These have no moment before: their figure is there or is not.
    assert set(alarms()) - silent <= {"RunFailed", "RunCrashed", "NotReproduced", "ServiceAway", "GatewayAway"}


@needs_promtool
def test_alarms_ring_when_they_should() -> None:
    command = ["promtool", "test", "rules", "rules_test.yml"]
    done = subprocess.run(command, cwd=MONITORING, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_configuration_is_one(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    for name in ("prometheus_token", "prefect_password"):
        (tmp_path / "secrets" / name).write_text("x" * 20)
    for name in ("prometheus.yml", "rules.yml"):
        shutil.copy(MONITORING / name, tmp_path)
    command = ["promtool", "check", "config", "prometheus.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dashboards_are_whole() -> None:
    assert set(dashboards()) == {"runs", "service"}
    for name, board in dashboards().items():
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids), name
        for panel in board["panels"]:
            assert panel["title"], name
            assert panel["targets"], panel["title"]
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24, panel["title"]
        taken = [(place["x"] + dx, place["y"] + dy) for place in (panel["gridPos"] for panel in board["panels"])
                 for dx in range(place["w"]) for dy in range(place["h"])]  # fmt: skip
        assert len(set(taken)) == len(taken), f"{name}: panels lie over each other"


def test_the_exporter_may_read_what_it_asks_for_and_no_more() -> None:
    granted = set(re.search(r"GRANT SELECT ON (.*) TO", (MONITORING / "exporter.sql").read_text())[1].split(", "))
    queries = yaml.safe_load((MONITORING / "queries.yml").read_text())
    text = " ".join(block["query"] for block in queries.values())
    used = set(re.findall(r"\b(?:FROM|JOIN) ([a-z_]+) [a-z]\b", text))
    assert granted == used


def test_what_the_watch_asks_of_prometheus_is_tested_with_the_alarms() -> None:
    text = (MONITORING / "rules_test.yml").read_text()
    for line in ("head", "wholebody"):
        assert f"- expr: {RINGS.format(model=f'ctfoundry-{line}')}\n" in text
