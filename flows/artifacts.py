"""What a run shows on Prefect's page and on the terminal: series funnel, gate table, quality summary, plots.

Of what lies in ``data/``, it shows what this run made or found unchanged: after a failure the rest is an earlier run's.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from rich.table import Table

from components.bundle.signature import SUFFIX, is_of
from components.files import read_json
from components.progress import wide_console
from components.settings import shards
from flows.costs.page import remarks, summary, table_rows
from flows.run import COST, Run

MAX_ROWS = 1000  # of a table on Prefect's page
MAX_ROWS_PRINTED = 100
MAX_INLINE_BYTES = 400_000  # of one plot on Prefect's page


def publish_data(run: Run) -> None:
    """Funnel and quality summary, after ``drift``."""
    line = run.line
    funnel = read_json(Path("data") / line / "curate" / "funnel.json")
    create_table_artifact(key=f"{line}-series-funnel", table=funnel_rows(funnel), description=f"Series of line {line}")
    shown, note = _shortened(funnel["series"], MAX_ROWS)
    create_table_artifact(key=f"{line}-series", table=shown, description=f"Series of line {line} and their fate{note}")
    create_table_artifact(key=f"{line}-quality", table=quality_rows(line), description="Great Expectations suites")


def publish_model(run: Run) -> None:
    """Gate table and plots, as far as the run got."""
    line, gates = run.line, gate_rows(run)
    if gates:
        verdict = "fail" if any(gate["verdict"] == "fail" for gate in gates) else "pass"
        told = f"Gates of line {line}: verdict **{verdict}**"
        create_table_artifact(key=f"{line}-gates", table=gates, description=told)
    if run.made("evaluate") and (falls := fall_rows(line)):
        told = f"Figures of line {line} on external sets, and by how much they fall from the internal test patients"
        create_table_artifact(key=f"{line}-external-sets", table=falls, description=told)
    if run.outcomes.get(COST):
        cost = read_json(Path("reports") / line / "cost.json")
        told = " ".join([f"What line {line} took: {summary(cost)}.", *remarks(cost)])
        create_table_artifact(key=f"{line}-cost", table=table_rows(cost), description=told)
    made = [stage for stage in ("pretrain", "evaluate") if run.made(stage)]
    plots = [path for stage in made for path in sorted((Path("data") / line / stage).rglob("*.png"))]
    inline = [_inline(path) for path in plots if path.stat().st_size <= MAX_INLINE_BYTES]
    if inline:
        create_markdown_artifact(key=f"{line}-plots", markdown="\n\n".join(inline), description=f"Plots of line {line}")


def _shortened(series: list[dict[str, Any]], most: int) -> tuple[list[dict[str, Any]], str]:
    """As many as a page or terminal bears, the rejected ones first, and what to say of the others."""
    if len(series) <= most:
        return series, ""
    rejected_first = sorted(series, key=lambda row: row["status"] == "accepted")
    return rejected_first[:most], f" ({most} of {len(series)}; all are in curated.parquet)"


def _inline(path: Path) -> str:
    return f"### {path.stem}\n\n![{path.stem}](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})"


def _shown(value: Any) -> Any:
    if value is None:  # a gate without a figure, such as the champion's where there is none yet
        return "-"
    return round(value, 4) if isinstance(value, float) else value


def gate_rows(run: Run) -> list[dict[str, Any]]:
    """Every gate that was judged in this run, those of the champion last."""
    gates = [gate for path in run.decisions() for gate in read_json(path)["gates"]]
    return [{key: _shown(value) for key, value in gate.items()} for gate in gates]


def fall_rows(line: str) -> list[dict[str, Any]]:
    """Every figure that a task has on an external set beside the internal one, with the fall's 95 % limits."""
    falls = read_json(Path("data") / line / "evaluate" / "metrics.json")["falls"]
    return [
        {"task": task, "external set": site, "figure": figure} | {key: _shown(value) for key, value in numbers.items()}
        for task, sites in falls.items()
        for site, figures in sites.items()
        for figure, numbers in figures.items()
    ]


def told_verdict(gate: dict[str, Any]) -> str:
    """The verdict; of a gate that is off also why, so that nobody takes it for a pass."""
    return f"off: {gate['detail']}" if gate["verdict"] == "off" else str(gate["verdict"])


def funnel_rows(funnel: dict[str, Any]) -> list[dict[str, Any]]:
    """Series in, rejected by first reason, accepted, and what the accepted ones are used for."""
    rows = [{"step": "series in", "series": funnel["in"]}]
    rows += [{"step": "no CT", "series": funnel["not_ct"]}] if funnel["not_ct"] else []
    rows += [{"step": f"rejected: {reason}", "series": n} for reason, n in funnel["rejected"].items()]
    rows.append({"step": "accepted", "series": funnel["accepted"]})
    rows += [{"step": f"of these for: {role}", "series": n} for role, n in funnel["accepted_by_role"].items()]
    return rows


def quality_rows(line: str) -> list[dict[str, Any]]:
    """One row per rule and suite, shards added up."""
    data = Path("data") / line
    found = [read_json(data / "cohort" / "quality.json")]
    found += [read_json(data / "screen" / str(shard) / "quality.json") for shard in shards()]
    release = read_json(data / "drift" / "drift.json")
    found += [read_json(data / "curate" / "quality.json"), release]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for suite in found:
        for rule in suite["rules"]:
            row = rows.setdefault(
                (suite["suite"], rule["says"]),
                {
                    "suite": suite["suite"],
                    "expectation": rule["says"],
                    "severity": rule["severity"],
                    "failed": 0,
                    "met": True,
                },
            )
            row["failed"] += rule["failed"]
            row["met"] = row["met"] and rule["success"]
    unjudged = {"suite": release["suite"], "expectation": f"not judged: {release['why']}", "severity": "-",
                "failed": "-", "met": "-"}  # fmt: skip
    return [*rows.values(), *([] if release["judged"] else [unjudged])]


def print_summary(run: Run) -> None:
    """The tables that end a release run; on a failed one, as far as it got."""
    console, line = wide_console(), run.line
    if run.made("curate"):
        funnel = read_json(Path("data") / line / "curate" / "funnel.json")
        table = Table("series", "source", "name", "role", "fate", title_justify="left")
        external = [s for s in funnel["series"] if s["source"] != "phantom"]
        shown, note = _shortened(external, MAX_ROWS_PRINTED)
        for series in shown:
            fate = series["reason"] or "accepted"
            table.add_row(series["series"], series["source"], series["name"], series["role"], fate)
        if external:
            table.title = f"Series of line {line}{note}"
            console.print(table)
        console.print(_table(f"Funnel of line {line}", funnel_rows(funnel)))
    gates = gate_rows(run)
    if gates:
        rows = [
            {key: gate[key] for key in ("gate", "figure", "bound")} | {"verdict": told_verdict(gate)} for gate in gates
        ]
        console.print(_table(f"Gates of line {line}", rows))
    bundle = Path("releases") / line
    digest = read_json(bundle / "manifest.json")["digest"] if run.made("bundle") else None
    signature = bundle.with_name(f"{line}{SUFFIX}")
    rows = [
        {"what": "Bento", "where": run.tag or "none built"},
        {"what": "bundle digest", "where": digest or "no new bundle"},
        {"what": "bundle", "where": bundle if digest else "no new bundle"},
        {"what": "signature", "where": signature if digest and is_of(signature, bundle) else "none"},
        {"what": "evaluation report", "where": f"data/{line}/evaluate/report.html" if run.made("evaluate") else "none"},
        {"what": "data quality", "where": f"reports/{line}/quality.html" if run.data_docs else "none"},
        {"what": "Data Docs", "where": run.data_docs or "none"},
        *_cost_rows(run),
    ]
    console.print(_table(f"Release of line {line}", rows))


def _cost_rows(run: Run) -> list[dict[str, Any]]:
    page = run.outcomes.get(COST)
    if not page:  # a run that failed; `ctfoundry cost` tells what there is
        return []
    told = summary(read_json(Path("reports") / run.line / "cost.json"))
    return [{"what": "took", "where": told}, {"what": "cost and energy", "where": page}]


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in rows[0] if rows else []:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    return table
