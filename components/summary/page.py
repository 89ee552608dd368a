"""The one-page summary of a line's data quality: one HTML file for whoever decides about a release.

It needs no network, and names series by their keys only: names of files and what was found in headers stay inside.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from components.curate.stage import funnel
from components.files import read_json, write_text
from components.quality import drift
from components.quality.drift import DriftConfig
from components.tables import read_table

TEMPLATE = "summary.html.j2"
ABOUT = {
    "cohort": "what was selected, before any transfer",
    "headers": "what headers say, before pixels are touched",
    "volumes": "what voxels show",
    "release": "the training set beside the champion's",
}
MAX_SERIES = 1000  # listed one by one; a page of 150,000 rows is no summary
CATEGORIES = 10  # bars of a histogram of categories; the rest is one bar
CHART_WIDTH, CHART_HEIGHT = 230.0, 44.0  # of a histogram, in pixels


@dataclass(frozen=True)
class Facts:
    """What the page is made from.

    Attributes:
        line: model line.
        cohort, screened, curated: one row per series.
        judged: content of every ``quality.json``: the cohort's, each shard's, the volumes'.
        profile: the training set's; None where it was not made.
        drift: content of ``drift.json``; None where the run stopped before it was written.
        champion: as tracked; None where there is none.
        config: thresholds of the drift.
        docs: path of the Data Docs from the page.
    """

    line: str
    cohort: pd.DataFrame
    screened: pd.DataFrame
    curated: pd.DataFrame
    judged: tuple[Mapping[str, Any], ...]
    profile: Mapping[str, Any] | None
    drift: Mapping[str, Any] | None
    champion: Mapping[str, Any] | None
    config: DriftConfig
    docs: str


@dataclass(frozen=True)
class RuleRow:
    """One expectation; ``state`` is ``met``, ``rejected``, ``warning`` or ``failed``, ``where`` its shards."""

    severity: str
    says: str
    reason: str
    state: str
    failed: int
    where: str


@dataclass(frozen=True)
class SuiteView:
    """One suite: ``judged`` rows of its table, and ``why`` where it was not judged."""

    name: str
    about: str
    judged: int
    state: str
    why: str
    rules: tuple[RuleRow, ...]


@dataclass(frozen=True)
class Bar:
    """One bin of a histogram: place, width and heights in pixels, and both figures in words."""

    x: float
    width: float
    now: float
    before: float
    title: str


@dataclass(frozen=True)
class FeatureRow:
    """One feature of the training set beside the champion's; ``psi`` and bounds as shares of the scale."""

    title: str
    unit: str
    verdict: str
    psi: float | None
    bound: float
    bar: float
    marks: tuple[float, ...]
    bars: tuple[Bar, ...]
    ends: tuple[str, str]
    width: float
    now: str
    before: str


def read_facts(data: Path, shards: Sequence[int], config: DriftConfig, docs: str) -> Facts:
    """Everything the page shows, from ``data/<line>``; parts that earlier versions did not write are left out."""
    judged = [data / "cohort" / "quality.json", *(data / "screen" / str(shard) / "quality.json" for shard in shards)]
    judged.append(data / "curate" / "quality.json")
    profile, release = data / "curate" / "profile.json", data / "drift" / "drift.json"
    return Facts(
        line=data.name,
        cohort=read_table(data / "cohort" / "cohort.parquet"),
        screened=pd.concat([read_table(data / "screen" / str(shard) / "screened.parquet") for shard in shards]),
        curated=read_table(data / "curate" / "curated.parquet"),
        judged=tuple(read_json(path) for path in judged if path.is_file()),
        profile=read_json(profile) if profile.is_file() else None,
        drift=read_json(release) if release.is_file() else None,
        champion=drift.champion_of(data),
        config=config,
        docs=docs,
    )


def write_summary(facts: Facts, path: Path, sheet: str = "") -> None:
    """Write the page. ``sheet``: path of the contact sheet from it."""
    write_text(path, render(facts, sheet))


def render(facts: Facts, sheet: str = "") -> str:
    """The page's HTML. Equal facts give equal text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("components.summary", ""), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    counts, suites = funnel(facts.curated), suite_views(facts)
    return environment.get_template(TEMPLATE).render(
        line=facts.line,
        docs=facts.docs,
        sheet=sheet,
        counts=counts,
        patients=int(facts.cohort["patient"].nunique()),
        steps=funnel_steps(counts, suites),
        suites=suites,
        notes=[f"{suite.name}: expected {rule.says}{rule.where and f' ({rule.where})'}"
               for suite in suites for rule in suite.rules if rule.state in ("warning", "failed")],
        features=feature_rows(facts),
        profile=facts.profile,
        champion=facts.champion,
        why=champion_profile(facts)[1],
        config=facts.config,
        privacy=privacy_rows(facts.screened),
        collections=collection_rows(facts.cohort, facts.curated),
        series=series_rows(facts.curated),
        not_judged=[suite.name for suite in suites if suite.state == "not judged"],
        unlisted=max(0, len(facts.curated) - MAX_SERIES),
    )  # fmt: skip


def suite_views(facts: Facts) -> list[SuiteView]:
    """The four suites in the order in which they are judged."""
    sizes = {
        "cohort": len(facts.cohort), "headers": len(facts.screened), "volumes": int(facts.screened["accepted"].sum()),
        "release": len(drift.FEATURES),
    }  # fmt: skip
    views = []
    for name, about in ABOUT.items():
        parts = [part for part in facts.judged if part["suite"] == name]
        why = "no result: it was not run, or it stopped the run" if not parts else ""
        if name == "release":
            before, why = champion_profile(facts)
            parts = [facts.drift] if facts.drift and before else []
            why = why or ("" if parts else "no result: it stopped the run")
        rules = _rules([part["rules"] for part in parts])
        states = {rule.state for rule in rules}
        state = next((s for s in ("failed", "warning") if s in states), "met") if parts else "not judged"
        views.append(SuiteView(name, about, sizes[name], state, why, rules))
    return views


def champion_profile(facts: Facts) -> tuple[Mapping[str, Any] | None, str]:
    """The profile that the training set was judged beside, or None and why there is none."""
    before, why = drift.comparable(facts.champion)
    if before is not None and facts.drift is not None and facts.drift["champion"] != (facts.champion or {})["bundle"]:
        return None, f"the champion has changed since: judge again with `dvc repro drift@{facts.line}`"
    return before, why


def _rules(parts: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[RuleRow, ...]:
    """A suite's rules, results of its shards added up."""
    found = []
    for same in zip(*parts, strict=True):
        first, broken = same[0], [number for number, rule in enumerate(same) if not rule["success"]]
        bad = {"reject": "rejected", "critical": "failed", "warning": "warning"}[first["severity"]]
        says = first["says"]
        if any(rule["says"] != says for rule in same):  # a number of rows, which is the shard's own
            says = re.sub(r"\b\d+ ", "", says)
        where = f"shard {', '.join(map(str, broken))}" if broken and len(parts) > 1 and bad != "rejected" else ""
        failed = sum(rule["failed"] for rule in same)
        found.append(RuleRow(first["severity"], says, first["reason"], bad if broken else "met", failed, where))
    return tuple(found)


def funnel_steps(counts: Mapping[str, Any], suites: Sequence[SuiteView]) -> list[dict[str, Any]]:
    """Series in, no CT, rejected by first reason in the order of the suites, accepted, and what these are for."""
    said: dict[str, list[str]] = {}  # in the order of the suites
    for suite in suites:
        for rule in suite.rules:
            first = rule.reason not in said
            said.setdefault(rule.reason, []).append(f"{suite.name}: {rule.says}" if first else rule.says)
    order = list(said)
    steps = [{"kind": "in", "label": "series in", "says": "", "count": counts["in"]}]
    if counts["not_ct"]:
        steps.append({"kind": "other", "label": "no CT", "says": "structures, doses, PET, reports: no CT that was lost",
                      "count": counts["not_ct"]})  # fmt: skip
    for reason in sorted(counts["rejected"], key=lambda reason: order.index(reason) if reason in said else len(order)):
        steps.append({"kind": "rejected", "label": reason, "says": "; ".join(said.get(reason, [])),
                      "count": counts["rejected"][reason]})  # fmt: skip
    steps.append({"kind": "accepted", "label": "accepted", "says": "", "count": counts["accepted"]})
    uses = {"pretrain": "to pretrain on", "evaluation": "to evaluate with", "held_out": "held out of both"}
    for role, count in counts["accepted_by_role"].items():
        steps.append({"kind": "role", "label": uses.get(role, role), "says": "", "count": count})
    return steps


def feature_rows(facts: Facts) -> list[FeatureRow]:
    """The drift table; without a champion the training set alone."""
    if facts.profile is None:
        return []
    before = champion_profile(facts)[0]
    drifts = {d.feature: d for d in drift.compare(facts.profile, before, facts.config)} if before else {}
    scale = max([0.5, *(1.25 * d.critical_bound for d in drifts.values())])
    rows = []
    for name, feature in drift.FEATURES.items():
        now, found = facts.profile["features"][name], drifts.get(name)
        beside = before["features"].get(name) if before and found and found.psi is not None else None
        bars, ends = histogram(now, beside)
        marks = sorted({found.warn_bound, found.critical_bound}) if found and found.psi is not None else []
        rows.append(
            FeatureRow(
                title=feature.title,
                unit=feature.unit,
                verdict=found.verdict if found else "",
                psi=found.psi if found else None,
                bound=found.warn_bound if found else 0.0,
                bar=min(1.0, (found.psi or 0.0) / scale) if found else 0.0,
                marks=tuple(round(mark / scale, 4) for mark in marks),
                bars=bars,
                ends=ends,
                width=bars[-1].x + bars[-1].width if bars else 0.0,
                now=_typical(now),
                before=_typical(beside) if beside else "",
            )
        )
    return rows


def histogram(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> tuple[tuple[Bar, ...], tuple[str, str]]:
    """Bars of one feature, and the words at both ends of its axis.

    Numbers: the bins from the first to the last that is occupied. Categories: the most frequent first, the rest as one.
    """
    labels, p, q = drift.bins(now, before or {**now, "counts": _nothing(now), "missing": 0})
    found = list(zip(labels, p, q, strict=True))
    tail = [row for row in found[-1:] if row[1] + row[2]]  # the missing ones
    found = found[:-1]
    used = [place for place, (_, a, b) in enumerate(found) if a + b]
    if "edges" in now:
        found = found[used[0] : used[-1] + 1] if used else []
        low, high = (found[0][0].split(" to ")[0], found[-1][0].split(" to ")[-1]) if found else ("", "")
        ends = (_minus(low), _minus(high))
    else:
        found = sorted((found[place] for place in used), key=lambda row: (-row[1] - row[2], row[0]))
        rest = found[CATEGORIES:]
        found = found[:CATEGORIES]
        if rest:
            found.append((f"{len(rest)} others", sum(r[1] for r in rest), sum(r[2] for r in rest)))
        ends = ("", "")
    rows = found + tail
    width = min(34.0, CHART_WIDTH / max(1, len(rows)))
    totals = max(1, sum(p)), max(1, sum(q))
    peak = max((max(a / totals[0], b / totals[1]) for _, a, b in rows), default=1.0) or 1.0
    bars = [
        Bar(
            x=round(place * width, 2),
            width=round(width - 2, 2),
            now=round(CHART_HEIGHT * a / totals[0] / peak, 2),
            before=round(CHART_HEIGHT * b / totals[1] / peak, 2),
            title=f"{label}: {a / totals[0]:.0%}" + (f", champion {b / totals[1]:.0%}" if before else ""),
        )
        for place, (label, a, b) in enumerate(rows)
    ]
    return tuple(bars), ends


def _nothing(now: Mapping[str, Any]) -> Any:
    return [0] * len(now["counts"]) if "edges" in now else {}


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _typical(feature: Mapping[str, Any]) -> str:
    """Median and range of the middle nine tenths, or the most frequent categories."""
    if feature.get("percentiles"):
        low, middle, high = feature["percentiles"]
        return _minus(f"{middle:.4g} ({low:.4g} to {high:.4g})")
    if not feature["counts"] or "edges" in feature:
        return "not measured"
    total = sum(feature["counts"].values()) + feature["missing"]
    frequent = sorted(feature["counts"].items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{name} {count / total:.0%}" for name, count in frequent[:4])
    return named + (f", {len(frequent) - 4} more" if len(frequent) > 4 else "")


def privacy_rows(screened: pd.DataFrame) -> list[dict[str, Any]]:
    """Series by what their headers disclose: counts and keywords, never a value."""
    labels = {
        "identifiers": "a direct identifier in the header",
        "private_unknown": "private elements that are not known to be safe",
        "burned_in": "annotation burned into the pixels",
        "identity_removed": "the header states that identity was removed",
    }
    rows = []
    for column, label in labels.items():
        if column not in screened:
            rows.append({"label": label, "count": None, "of": 0, "what": "", "good": True})
            continue
        known = screened[column].dropna()
        found = known[~known.isin(["", 0, False])]
        keywords = found.astype(str).str.split("|").explode().value_counts() if column == "identifiers" else pd.Series()
        what = ", ".join(f"{keyword} {count}" for keyword, count in sorted(keywords.items()))
        good = column == "identity_removed" or not len(found)
        rows.append({"label": label, "count": len(found), "of": len(known), "what": what, "good": good})
    return rows


def collection_rows(cohort: pd.DataFrame, curated: pd.DataFrame) -> list[dict[str, Any]]:
    """Every collection with licence and DOI: series and patients in, and accepted series by use."""
    joined = cohort[["series", "patient", "collection", "licence", "doi"]].merge(
        curated[["series", "accepted", "role"]], on="series", how="left", validate="one_to_one"
    )
    rows = []
    for (collection, licence, doi), group in joined.groupby(["collection", "licence", "doi"], sort=True, dropna=False):
        used = group[group["accepted"].eq(True)]["role"].value_counts()
        rows.append({
            "collection": collection, "licence": licence, "doi": re.sub(r"^https?://(dx\.)?doi\.org/", "", str(doi)),
            "series": len(group), "patients": int(group["patient"].nunique()),
            "pretrain": int(used.get("pretrain", 0)), "evaluation": int(used.get("evaluation", 0)),
        })  # fmt: skip
    return rows


def series_rows(curated: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Series one by one, the rejected ones first, by key: at most ``MAX_SERIES``."""
    ordered = curated.sort_values(["accepted", "reason", "series"], kind="stable").head(MAX_SERIES)
    fate = ordered["reason"].str.replace(";", ", ").where(~ordered["accepted"], "accepted")
    return ordered[["series", "source", "role"]].assign(fate=fate).to_dict("records")
