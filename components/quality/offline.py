"""Make Data Docs a site that needs no network: Great Expectations' pages load their looks from public servers.

Its index and its filters are drawn by scripts from those servers, so that an index and an overview of our own stand in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from components.files import read_json, write_text

# Pages of a hospital's data must not call out: every script, style and picture from elsewhere goes.
FROM_ELSEWHERE = re.compile(
    r"<script[^>]*src=\"(?:https?:)?//[^>]*>\s*</script>|<link[^>]*href=\"(?:https?:)?//[^>]*>"
    r"|<img[^>]*src=\"(?:https?:)?//[^>]*>|<p>Stay current on everything GX.*?</p>",
    re.DOTALL,
)
LOOKS = """
:root { --ink: #1c2430; --soft: #5c6673; --rule: #dfe3e8; --blue: #1f5fbf; }
body { font: 15px/1.5 system-ui, "Segoe UI", Arial, "DejaVu Sans", sans-serif; color: var(--ink); margin: 0 auto;
  max-width: 1180px; padding: 28px 28px 80px; background: #fff; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; } h2 { font-size: 19px; margin: 32px 0 6px; }
h3, h4, h5, h6 { font-size: 15.5px; margin: 26px 0 4px; }
p { margin: 4px 0 10px; max-width: 82ch; } a { color: var(--blue); }
table { border-collapse: collapse; margin: 4px 0 12px; font-size: 13px; font-variant-numeric: tabular-nums; }
.rules { width: 100%; }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--ink);
  padding: 5px 14px 5px 0; }
td { border-bottom: 1px solid var(--rule); padding: 5px 14px 5px 0; vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; }
.soft { color: var(--soft); } .met, .fa-check-circle { color: #1a7f37; } .warning { color: #9a6200; font-weight: 600; }
.failed, .fa-times, .fa-exclamation-triangle, .text-danger { color: #b3372b; } .rejected, .failed { font-weight: 600; }
"""
GENERIC = re.compile(r"<h4>Expectation Validation Result</h4>.*?<p>.*?</p>", re.DOTALL)  # says nothing of this suite
# Scripts are gone, and with them what only scripts fill or open: sidebar, filters, dialogues, notes on the batch.
PAGE_STYLE = f"""<style>{LOOKS}
ol.breadcrumb, .modal, .cooltip, footer, .sticky,
#section-1, .collapse, a[data-toggle=collapse], .btn, .navbar-brand {{ display: none; }}
.container-fluid, .container {{ padding: 0; }} .row > .col-lg-2 {{ display: none; }}
.alert h5 {{ margin: 22px 0 0; }} .fas {{ font-style: normal; }}
.fa-times::before {{ content: "failed"; }} .fa-exclamation-triangle::before {{ content: "error"; }}
.fa-check-circle::before {{ content: "met"; }}
</style></head>"""
STATES = {"reject": "series rejected", "critical": "failed", "warning": "warning"}
OVERVIEW = """<p><a href="{{ home }}">All suites</a></p><h1>Suite {{ title }}</h1>
<p class="soft"><em>reject</em> costs the series that fails, <em>critical</em> stops the run, <em>warning</em> is
reported. Below: what was measured, column by column, and the series that failed, by key.</p>
<table class="rules"><tr><th>expected</th><th>severity</th><th>reason</th><th>outcome</th><th class="n">failed</th></tr>
{% for rule in rules %}<tr><td>{{ rule.says }}</td><td class="soft">{{ rule.severity }}</td>
<td class="soft">{{ rule.reason }}</td>
<td class="{{ rule.state.split()[-1] }}">{{ rule.state }}</td><td class="n">{{ rule.failed }}</td></tr>
{% endfor %}</table><h2>By column</h2>"""
INDEX = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Data Docs</title>
<style>{{ looks | safe }}</style></head>
<body>{% if summary %}<p><a href="{{ summary }}">One-page summary</a></p>{% endif %}<h1>Data Docs</h1>
<p class="soft">Every table of measurements, judged by a Great Expectations suite. Series are named by key.</p>
<table class="rules"><tr><th>suite</th><th class="n">rows</th><th class="n">rules</th><th class="n">met</th>
<th class="n">cost series</th><th class="n">warnings</th><th class="n">critical</th><th></th></tr>
{% for row in rows %}<tr>{% if row.why %}<td>{{ row.title }}</td>
<td class="soft" colspan="7">not judged: {{ row.why }}</td>
{% else %}<td><a href="{{ row.page }}">{{ row.title }}</a></td>
<td class="n">{{ row.size }}</td><td class="n">{{ row.rules }}</td>
<td class="n met">{{ row.met }}</td><td class="n rejected">{{ row.rejected or "" }}</td>
<td class="n warning">{{ row.warning or "" }}</td><td class="n failed">{{ row.failed or "" }}</td>
<td class="n"><a href="expectations/{{ row.name }}.html">expectations</a></td>{% endif %}</tr>
{% endfor %}</table></body></html>
"""


@dataclass(frozen=True)
class Judged:
    """One rule's result."""

    says: str
    severity: str
    reason: str
    state: str
    failed: int
    of: int


@dataclass(frozen=True)
class Result:
    """A validation's result: its name, its page below the site, its rules in the suite's order."""

    name: str
    page: str
    rules: tuple[Judged, ...]


def make_offline(site: Path) -> None:
    """Rewrite every page below ``site``: nothing is loaded from elsewhere, style, overview and index are built in."""
    overviews = {site / result.page: _overview(result) for result in read_results(site)}
    for page in sorted(site.rglob("*.html")):
        text = FROM_ELSEWHERE.sub("", page.read_text(encoding="utf-8"))
        text = text.replace("</head>", PAGE_STYLE, 1)
        if page in overviews:
            text = GENERIC.sub("", text, count=1)
            head, body, rest = text.partition("<body")
            attributes, _, rest = rest.partition(">")
            text = f"{head}{body}{attributes}>{overviews[page]}{rest}"
        page.write_text(text, encoding="utf-8")
    write_index(site, {})


def read_results(site: Path) -> list[Result]:
    """What Great Expectations stored of every validation, in the order in which the suites are judged."""
    results = []
    store = site.parents[1] / "validations"
    for path in sorted(store.rglob("*.json")):
        content = read_json(path)
        page = (Path("validations") / path.relative_to(store)).with_suffix(".html").as_posix()
        found = sorted(content["results"], key=lambda result: result["expectation_config"]["meta"]["rule"])
        results.append(Result(content["suite_name"], page, tuple(_rule(result) for result in found)))
    return sorted(results, key=lambda result: _place(result.name))


def _place(name: str) -> tuple[int, int, str]:
    """Suites in the order in which they are judged, shards by number."""
    suite, _, shard = name.partition("_shard_")
    order = ("cohort", "headers", "volumes", "release")
    return order.index(suite) if suite in order else len(order), int(shard) if shard.isdigit() else 0, name


def _rule(result: Mapping[str, Any]) -> Judged:
    expected, found = result["expectation_config"], result["result"]
    meta = expected["meta"]
    return Judged(
        says=str(expected.get("notes", "")).partition("; otherwise ")[0],
        severity=meta["severity"],
        reason=meta["reason"],
        state="met" if result["success"] else STATES[meta["severity"]],
        failed=found.get("unexpected_count", 0),
        of=found.get("element_count", 0),
    )


def _title(name: str) -> str:
    return name.replace("_shard_", ", shard ")


def _render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(**values)


def _overview(result: Result) -> str:
    home = "../" * result.page.count("/") + "index.html"
    return _render(OVERVIEW, home=home, title=_title(result.name), rules=result.rules)


def write_index(site: Path, not_judged: Mapping[str, str], summary: Path | None = None) -> None:
    """The page that opens the site: every suite with its outcome.

    Args:
        site: folder of the Data Docs' pages.
        not_judged: suites without a result, and why.
        summary: the one-page summary, linked.
    """
    rows: list[dict[str, Any]] = [{"name": name, "title": name, "why": why} for name, why in not_judged.items()]
    for result in read_results(site):
        states = [rule.state for rule in result.rules]
        rows.append({
            "name": result.name, "title": _title(result.name), "why": "", "page": result.page,
            "size": max((rule.of for rule in result.rules), default=0), "rules": len(states),
            "met": states.count("met"), "rejected": states.count("series rejected"),
            "warning": states.count("warning"), "failed": states.count("failed"),
        })  # fmt: skip
    rows.sort(key=lambda row: _place(row["name"]))
    link = "" if summary is None else Path(os.path.relpath(summary, site)).as_posix()
    write_text(site / "index.html", _render(INDEX, looks=LOOKS, summary=link, rows=rows))
