"""The one-page summary and the index of the Data Docs: all is in them, nothing of a patient, nothing from afar."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.curate.stage import funnel
from components.files import write_json
from components.quality import drift
from components.quality.drift import DriftConfig
from components.quality.judge import write_data_docs
from components.quality.offline import write_index
from components.quality.rules import Rule, Suite
from components.summary import page as summary
from components.summary.__main__ import _window
from components.tables import write_table

CONFIG = DriftConfig(warn_psi=0.1, critical_psi=0.25, confidence=0.99, critical_features=())
FROM_AFAR = re.compile(r"""(?:https?:)?//|@import|<script|<link|<iframe|url\(""")
PATIENT = "DOE_JANE"


def rule(reason: str, says: str, severity: str = "reject", failed: int = 0, success: bool = True) -> dict[str, Any]:
    return {"reason": reason, "says": says, "severity": severity, "failed": failed, "success": success}


def profile(vendor: str, series: int = 60) -> dict[str, Any]:
    keys = [f"s{i}" for i in range(series)]
    curated = pd.DataFrame({"series": keys, "patient": keys, "accepted": True, "role": "pretrain"})
    screened = pd.DataFrame({"series": keys, "manufacturer": vendor, "gap_median_mm": np.linspace(1, 5, series)})
    return drift.profile(curated, screened, pd.DataFrame({"series": keys, "hu_p01": -1000.0}))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """``data/wholebody`` of six series in two shards, one of each fate, without a champion."""
    folder = tmp_path / "data" / "wholebody"
    table = pd.DataFrame({
        "series": [f"s{i}" for i in range(6)], "patient": [f"p{i}" for i in range(6)], "source": "dicom",
        "name": f"{PATIENT}/scan", "detail": PATIENT, "location": PATIENT, "collection": "lidc & co",
        "licence": "CC BY 3.0", "doi": "https://doi.org/10.7937/A", "shard": [0, 1] * 3,
        "role": ["pretrain"] * 4 + ["evaluation", "held_out"],
    })  # fmt: skip
    reason = ["", "gantry_tilt", "gantry_tilt;localizer", "no_body", "", ""]
    curated = table.assign(reason=reason, accepted=[r == "" for r in reason])
    curated["status"] = curated["accepted"].map({True: "accepted", False: "rejected"})
    write_table(folder / "cohort" / "cohort.parquet", table)
    write_table(folder / "curate" / "curated.parquet", curated)
    passed = ~curated["reason"].str.contains("gantry")
    screened = table.assign(
        accepted=passed, identifiers=["PatientName", "PatientName|OtherPatientIDs", "", "", None, None],
        private_unknown=0, burned_in=[True, *[False] * 5], identity_removed=True,
    )  # fmt: skip
    for shard in (0, 1):
        write_table(folder / "screen" / str(shard) / "screened.parquet", screened[screened["shard"] == shard])
        rules = [rule("gantry_tilt", "gantry tilt at most 1.0 degrees", failed=1, success=False),
                 rule("localizer", "no scout image", failed=1 - shard, success=bool(shard)),
                 rule("rows_lost", f"all {3 + shard} series are there", "critical"),
                 rule("mostly_rejected", "at least 60% accepted", "warning", success=not shard)]  # fmt: skip
        write_json(folder / "screen" / str(shard) / "quality.json", {"suite": "headers", "rules": rules})
    allowed, body = rule("licence", "licence is allowed"), rule("no_body", "at least 5% <patient>", "reject", 1, False)
    write_json(folder / "cohort" / "quality.json", {"suite": "cohort", "rules": [allowed]})
    write_json(folder / "curate" / "quality.json", {"suite": "volumes", "rules": [body]})
    write_json(folder / "curate" / "profile.json", profile("GE"))
    write_json(folder / "drift" / "drift.json", drift.judge_release(profile("GE"), None, CONFIG))
    return folder


def page(data: Path) -> str:
    return summary.render(summary.read_facts(data, (0, 1), CONFIG, "data_docs/index.html"))


def rows(text: str) -> list[str]:
    """Every table row as text, tags taken out."""
    return [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in re.findall(r"<tr.*?</tr>", text, re.DOTALL)]


def test_every_series_and_rule_is_in_it(data: Path) -> None:
    text = page(data)
    found = rows(text)
    for series in range(6):
        assert f"<code>s{series}</code>" in text
    for said in (
        "licence is allowed reject licence met 0",
        "gantry tilt at most 1.0 degrees reject gantry_tilt series rejected 2 of 6",
        "no scout image reject localizer series rejected 1 of 6",
        "all series are there critical rows_lost met 0",
        "at least 60% accepted warning mostly_rejected warning (shard 1) 0",
        "at least 5% &lt;patient&gt; reject no_body series rejected 1 of 4",
    ):
        assert said in found, said
    assert "headers: expected at least 60% accepted (shard 1)" in text


def test_the_funnel_adds_up(data: Path) -> None:
    facts = summary.read_facts(data, (0, 1), CONFIG, "")
    steps = summary.funnel_steps(funnel(facts.curated), summary.suite_views(facts))
    by_kind = pd.DataFrame(steps).groupby("kind")["count"].sum()
    assert by_kind["in"] == 6 == by_kind["rejected"] + by_kind["accepted"]
    assert by_kind["role"] == by_kind["accepted"] == 3
    assert [step["label"] for step in steps if step["kind"] == "rejected"] == ["gantry_tilt", "no_body"]


def test_no_identifier_and_nothing_from_afar(data: Path) -> None:
    text = page(data)
    assert PATIENT not in text
    assert not FROM_AFAR.search(text)
    assert "10.7937/A" in text
    assert "lidc &amp; co CC BY 3.0 10.7937/A 6 6 1 1" in rows(text)


def test_privacy_counts_series_and_names_keywords(data: Path) -> None:
    found = rows(page(data))
    assert "a direct identifier in the header 2 4 OtherPatientIDs 1, PatientName 2" in found
    assert "private elements that are not known to be safe 0 6" in found
    assert "annotation burned into the pixels 1 6" in found
    assert "the header states that identity was removed 6 6" in found


def test_without_a_champion_the_release_is_not_judged_and_never_passed(data: Path) -> None:
    facts = summary.read_facts(data, (0, 1), CONFIG, "")
    release = summary.suite_views(facts)[-1]
    assert (release.name, release.state, release.rules) == ("release", "not judged", ())
    text = page(data)
    assert "Not judged: no champion" in text
    assert "Not judged: release." in text
    assert "<svg" in text


def test_a_champion_is_shown_beside_the_training_set(data: Path) -> None:
    champion = {"bundle": "ab" * 32, "profile": profile("SIEMENS")}
    write_json(data.parents[1] / "infra" / "champions" / "wholebody.json", {"champion": champion})
    assert "the champion has changed since" in page(data)
    rules = [rule("drift", "Vendor: PSI at most 0.3", "warning", 1, False)]
    judged = {"suite": "release", "judged": True, "why": "", "champion": "ab" * 32, "rules": rules}
    write_json(data / "drift" / "drift.json", judged)
    text = page(data)
    assert "release: expected Vendor: PSI at most 0.3" in text
    features = [
        row for row in rows(text) if row.endswith(("stable", "shifted")) or " shifted " in row or " stable " in row
    ]
    assert len(features) == len(drift.FEATURES)
    (vendor,) = [row for row in features if row.startswith("Vendor")]
    assert "strongly shifted" in vendor
    assert "GE: 100%, champion 0%" in vendor


def test_equal_facts_give_equal_bytes_and_old_runs_still_give_a_page(data: Path) -> None:
    assert page(data) == page(data)
    for name in ("curate/profile.json", "drift/drift.json", "cohort/quality.json"):
        (data / name).unlink()
    text = page(data)
    assert "No data profile was made." in text
    assert "Not judged: cohort, release." in text


def test_long_cohorts_are_cut_and_say_so(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "MAX_SERIES", 4)
    text = page(data)
    assert "4 series by key, rejected ones first; 2 more stand in <code>curated.parquet</code>" in text
    assert "<code>s1</code>" in text


def test_a_histogram_keeps_every_bin_in_order() -> None:
    now = {"edges": [1.0, 2.0, 3.0], "counts": [0, 3, 1, 0], "missing": 1}
    bars, ends = summary.histogram(now, {**now, "counts": [0, 0, 0, 4], "missing": 0})
    assert ends == ("1", "from 3")
    assert [bar.title for bar in bars] == [
        "1 to 2: 60%, champion 0%", "2 to 3: 20%, champion 0%", "from 3: 0%, champion 100%",
        "missing: 20%, champion 0%",
    ]  # fmt: skip
    kinds = {"counts": {f"k{i:02d}": 20 - i for i in range(14)}, "missing": 0}
    bars, _ = summary.histogram(kinds, None)
    assert [bar.title.partition(":")[0] for bar in bars] == [f"k{i:02d}" for i in range(10)] + ["4 others"]


def test_the_index_of_data_docs_lists_every_suite_and_its_page_every_rule(tmp_path: Path) -> None:
    table = pd.DataFrame({"series": ["a", "b"], "extent_mm": [10.0, 200.0], "accepted": [0.0, 1.0]})
    bounds = {"column": "extent_mm", "min_value": 60}
    suite = Suite("volumes", (Rule("scan_too_short", "ExpectColumnValuesToBeBetween", bounds, "at least 60 mm long"),))
    index = write_data_docs([("volumes", table, suite)], tmp_path / "wholebody" / "data_docs")
    write_index(index.parent, {"release": "no champion"}, tmp_path / "wholebody" / "quality.html")
    text = index.read_text()
    assert [row.split()[0] for row in rows(text)] == ["suite", "volumes", "release"]
    assert "release not judged: no champion" in rows(text)
    (link,) = re.findall(r'href="([^"]*quality.html)"', text)
    assert (index.parent / link).resolve() == (tmp_path / "wholebody" / "quality.html").resolve()
    (result,) = re.findall(r'href="(validations/[^"]*)"', text)
    pages = [index.parent / result, index.parent / "expectations" / "volumes.html"]
    assert "at least 60 mm long reject scan_too_short series rejected 1" in rows(pages[0].read_text())
    for path in [index, *pages]:
        assert not re.search(r"""(?:src|href)=["'](?:https?:)?//[^"']*\.(?:js|css)""", path.read_text()), path.name


@pytest.mark.parametrize(("line", "window"), [("wholebody", "soft"), ("head", "brain")])
def test_people_look_at_a_line_as_its_encoder_does_where_that_is_a_window_of_theirs(
    line: str, window: str, project: Path
) -> None:
    assert _window(line) == window
