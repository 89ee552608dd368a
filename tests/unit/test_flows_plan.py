"""What a release would bring, beside the last one, and when a person is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from components.errors import UserError
from components.files import write_json
from components.tables import write_table
from flows import plan as plans
from flows.plan import Estimate, ask, make_plan, page
from flows.promotion.approval import Approval

LINE, TAG = "wholebody", "wholebody@v0.0.1"


def rows(*sizes: tuple[str, int], **more: Any) -> pd.DataFrame:
    """A cohort of a PACS, series by series: key and bytes."""
    blank = {"set": "", "location": "", "plan": "", "version": "", "reason": "", "files": 1, "shard": 0}
    of = {**blank, "source": "dicomweb", "role": "pretrain", **more}
    return pd.DataFrame([{**of, "series": series, "bytes": size} for series, size in sizes])


def listed(*parts: pd.DataFrame) -> None:
    write_table(Path("data") / LINE / "cohort" / "cohort.parquet", pd.concat(parts))


@pytest.fixture(autouse=True)
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of two series of 1 GB, whose stages took an hour each, for 2 EUR."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plans, "KEPT", tmp_path / "published")
    earlier = [rows(("a", 10**9), ("b", 10**9)), rows(("p", 0), source="phantom", role="evaluation")]
    monkeypatch.setattr(plans, "released_cohort", lambda line, tag: pd.concat(earlier))
    stages = [{"stage": f"{name}@wholebody-0", "wall_h": 1.0, "cost": 2.0, "made": {}} for name in
              ("acquire", "screen", "preprocess", "pretrain")]  # fmt: skip
    lost = {"stage": "curate@wholebody", "wall_h": None, "cost": None, "made": None}
    account = {"stages": [*stages, lost], "prices": {"currency": "EUR"}}
    write_json(tmp_path / "published" / LINE / "v0.0.1" / LINE / "cost.json", account)


def test_what_is_new_is_counted_and_reckoned_by_what_the_last_release_took() -> None:
    rejected = rows(("x", 10**12), shard=-1, reason="too_large")
    listed(rows(("a", 10**9), ("b", 2 * 10**9), ("c", 10**9)), rows(("p", 0), source="phantom"), rejected)
    found = make_plan(LINE, TAG)
    assert (found.since, found.new, found.changed, found.gone, found.same) == (TAG, 1, 1, 0, 2)
    assert found.moved == 3 * 10**9
    # 3 GB beside 2 GB through three stages, and the training
    assert found.estimate == Estimate(hours=1.5 * 3 + 1, cost=2 * (1.5 * 3 + 1), currency="EUR", without=1)
    shown = page(found)
    for told in ("| series new | 1 |", "| to be brought in | 3 GB |", "5.5, as wholebody@v0.0.1 took, without 1",
                 "at most | 11 EUR |", "| rejected: too_large | 1 |", "| left for: pretrain | 4 |"):  # fmt: skip
        assert told in shown, told


def test_nothing_new_brings_nothing_and_afresh_brings_all() -> None:
    listed(rows(("a", 10**9)), rows(("p", 0), source="phantom", role="evaluation"))
    found = make_plan(LINE, TAG)
    assert (found.new, found.changed, found.gone, found.moved) == (0, 0, 1, 0)
    assert found.estimate is not None
    assert found.estimate.hours == 1.0
    assert make_plan(LINE, TAG, afresh=True).moved == 10**9


def test_the_first_release_and_one_whose_forerunner_is_lost_bring_all(monkeypatch: pytest.MonkeyPatch) -> None:
    listed(rows(("a", 10**9)))
    first = make_plan(LINE, None)
    assert (first.since, first.new, first.moved, first.estimate) == (None, 1, 10**9, None)

    def lost(line: str, tag: str) -> pd.DataFrame:
        raise UserError("neither in the cache nor in the remote")

    monkeypatch.setattr(plans, "released_cohort", lost)
    assert make_plan(LINE, TAG) == first


def test_the_same_series_in_a_labelled_set_is_another() -> None:
    listed(rows(("a", 10**9), ("b", 10**9)), rows(("a", 10**9), set="lungs"))
    assert (make_plan(LINE, TAG).new, make_plan(LINE, TAG).moved) == (1, 10**9)


@pytest.mark.parametrize(
    ("above_gb", "answer", "asked", "told"),
    [(None, None, False, None), (3.0, None, False, None),
     (2.9, {"approve": True, "by": "a", "reason": "b"}, True, None), (2.9, {}, True, "rejected by nobody who is named"),
     (2.9, {"approve": True}, True, "a yes without a name")],
)  # fmt: skip
def test_a_person_is_asked_beyond_the_bound_only(
    monkeypatch: pytest.MonkeyPatch,
    above_gb: float | None,
    answer: dict[str, Any] | None,
    asked: bool,
    told: str | None,
) -> None:
    listed(rows(("a", 10**9), ("b", 10**9), ("c", 3 * 10**9)))
    plan = make_plan(LINE, TAG)
    heard: list[Any] = []

    def suspend(**said: Any) -> Approval:
        heard.append(said)
        return Approval(**(answer or {}))

    monkeypatch.setattr(plans, "create_markdown_artifact", lambda text, **_: heard.append(text))
    monkeypatch.setattr(plans, "read_flow_run_input", lambda key: None)
    monkeypatch.setattr(plans, "create_flow_run_input", lambda key, value: heard.append(value))
    monkeypatch.setattr(plans, "suspend_flow_run", suspend)
    no = ask(plan, above_gb, 2.0)
    assert (no is None) == (told is None)
    assert (told or "") in (no or "")
    assert heard[0] == page(plan)
    assert len(heard) == (3 if asked else 1)
    if asked:
        assert heard[1] == {"name": plan.told, "digest": plan.digest}
        assert heard[2]["timeout"] == 7200


@pytest.mark.parametrize(
    ("kept", "yes", "expected", "told"),
    [("same", True, [], None), ("same", False, [], "1 GB: rejected by"), ("before", False, [], "1 GB: rejected by"),
     ("before", True, ["judged", "now", "approval-now"], None)],
)  # fmt: skip
def test_an_answer_is_to_the_cohort_that_was_shown(
    monkeypatch: pytest.MonkeyPatch, kept: str, yes: bool, expected: list[str], told: str | None
) -> None:
    """A no stays one; a yes to what was listed before leads to another question."""
    listed(rows(("c", 3 * 10**9)))
    plan = replace(make_plan(LINE, TAG), digest="now")
    done: list[str] = []

    def suspend(key: str, **_: Any) -> Approval:
        done.append(key)
        return Approval(approve=yes, by="anna", reason="seen")

    digest = plan.digest if kept == "same" else kept
    monkeypatch.setattr(plans, "create_markdown_artifact", lambda text, **_: None)
    monkeypatch.setattr(plans, "read_flow_run_input", lambda key: {"digest": digest, "name": "1 GB"})
    monkeypatch.setattr(plans, "create_flow_run_input", lambda key, value: done.append(value["digest"]))
    monkeypatch.setattr(plans, "delete_flow_run_input", done.append)
    monkeypatch.setattr(plans, "suspend_flow_run", suspend)
    no = ask(plan, 0.0, 1.0)
    assert (no or "").startswith(told or "")
    assert (no is None) == (told is None)
    assert done == [f"approval-{digest}", *expected]
