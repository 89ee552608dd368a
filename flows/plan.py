"""What a release would bring, before anything of it is transferred: series, bytes, hours, money.

Stage ``cohort`` has listed the source by then, which moves no scan. Beyond a bound a person is asked, as for a
promotion: the run waits suspended, no answer in time means no, and an answer is to the very cohort that was shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from prefect.artifacts import create_markdown_artifact
from prefect.flow_runs import suspend_flow_run
from prefect.input import create_flow_run_input, delete_flow_run_input, read_flow_run_input

from components.command import data_dir
from components.errors import UserError
from components.files import read_json, sha256_file
from components.tables import read_table
from flows.costs.moved import COMPUTED
from flows.costs.page import number
from flows.promotion.approval import JUDGED, KEY, Approval, refusal
from flows.promotion.reports import Row, markdown
from flows.publish import KEPT
from flows.watch import released_cohort

GB = 1e9
BY_SERIES = ("acquire", "screen", "preprocess")  # stages that work on what is new; the others begin anew
# Where one of these is another, a series is transferred again (components/sources/receipts.py).
TELLING = ("source", "location", "plan", "files", "bytes", "version")


@dataclass(frozen=True)
class Estimate:
    """By what the last release took, on whichever machine that was.

    Attributes:
        hours: one stage after another.
        cost: in ``currency``; None where no price is stated.
        without: stages of which there is no record.
    """

    hours: float
    cost: float | None
    currency: str
    without: int


@dataclass(frozen=True)
class Plan:
    """What a release would bring.

    Attributes:
        since: tag of the version that it is held beside; None where there is none, or its cohort is not to be had.
        digest: SHA-256 of ``cohort.parquet``.
        new, changed, gone, same: series, those that the suite rejects left out.
        moved: bytes of the new and the changed ones, as the source states them.
        funnel: how they were chosen: words and series.
        estimate: None where no earlier release has left its account on this machine.
    """

    line: str
    since: str | None
    digest: str
    new: int
    changed: int
    gone: int
    same: int
    moved: int
    funnel: tuple[tuple[str, int], ...]
    estimate: Estimate | None

    @property
    def told(self) -> str:
        """One line."""
        return f"release of {self.line}: {self.new} series new, {self.changed} changed, {self.moved / GB:.3g} GB"


def make_plan(line: str, since: str | None, afresh: bool = False) -> Plan:
    """From the cohort of this checkout.

    Args:
        line: model line.
        since: tag of its newest version.
        afresh: nothing that is kept stands in for a stage: all is brought in again.
    """
    folder = data_dir(line, "cohort")
    now = _brought(read_table(folder / "cohort.parquet"))
    before = None
    if since is not None:
        try:
            before = _brought(released_cohort(line, since))
        except UserError:
            since = None  # neither this machine nor the remote has it any more
    known = now.iloc[:0] if before is None else before
    both = now.index.intersection(known.index)
    differs = (now.loc[both, list(TELLING)] != known.loc[both, list(TELLING)]).any(axis=1)
    wanted = now if afresh else now.drop(both[~differs.to_numpy()])
    account = KEPT / line / (since or "").rpartition("@")[2] / line / "cost.json"
    return Plan(
        line, since, sha256_file(folder / "cohort.parquet"),
        new=len(now) - len(both), changed=int(differs.sum()), gone=len(known) - len(both),
        same=len(both) - int(differs.sum()), moved=_moved(wanted), funnel=_funnel(folder),
        estimate=_estimate(read_json(account), _share(wanted, known)) if since and account.is_file() else None,
    )  # fmt: skip


def ask(plan: Plan, above_gb: float | None, hours: float) -> str | None:
    """Put the plan on the run's page and, where it would move more, wait for a person; why it may not begin, or None.

    Args:
        plan: what would be brought.
        above_gb: 10^9 bytes; None never asks.
        hours: for an answer.
    """
    text = page(plan)
    key = f"plan-{plan.line.replace('_', '-')}"
    create_markdown_artifact(text, key=key, description=plan.told)
    if above_gb is None or plan.moved <= above_gb * GB:
        return None
    judged: Any = read_flow_run_input(JUDGED)
    if judged is not None:
        no = _answer(judged, text, hours)
        if no or judged["digest"] == plan.digest:
            return no
        delete_flow_run_input(JUDGED)  # more has come while it waited: that is another question
    judged = {"name": plan.told, "digest": plan.digest}
    create_flow_run_input(JUDGED, judged)
    return _answer(judged, text, hours)


def _answer(judged: Mapping[str, Any], text: str, hours: float) -> str | None:
    """Wait for a person, where they have not answered yet; why what they judged may not be done, or None."""
    key, asked = f"{KEY}-{judged['digest'][:16]}", Approval.with_initial_data(description=text)
    answer = suspend_flow_run(wait_for_input=asked, timeout=max(1, round(hours * 3600)), key=key)
    return refusal(judged["name"], answer)


def page(plan: Plan) -> str:
    """What a person judges by, as Markdown."""
    since = plan.since or "nothing: no earlier release is to be had"
    rows: list[Row] = [
        ("compared with", since), ("series new", str(plan.new)), ("series changed", str(plan.changed)),
        ("series gone", str(plan.gone)), ("series unchanged", str(plan.same)),
        ("to be brought in", f"{plan.moved / GB:.3g} GB"), *_estimated(plan),
        ("digest of the cohort", f"`{plan.digest}`"),
    ]  # fmt: skip
    funnel: list[Row] = [(words, f"{series:,}") for words, series in plan.funnel]
    parts = [f"## What a release of line {plan.line} would bring", markdown(("", ""), rows)]
    return "\n\n".join([*parts, "### How its series were chosen", markdown(("criterion", "series"), funnel)])


def _estimated(plan: Plan) -> list[Row]:
    of = plan.estimate
    if of is None:
        return [("hours, cost", "not known: no earlier release has left its account on this machine")]
    left = f", without {of.without} stages that nobody measured" if of.without else ""
    rows: list[Row] = [("hours, at most", f"{number(of.hours)}, as {plan.since} took{left}")]
    return rows if of.cost is None else [*rows, ("cost, at most", f"{number(of.cost)} {of.currency}")]


def _brought(cohort: pd.DataFrame) -> pd.DataFrame:
    """The series that some shard brings in, by their key; of a set of its own a series is another."""
    of_shards = cohort[cohort["shard"] >= 0]
    return of_shards.set_index(of_shards["series"] + "|" + of_shards["set"])


def _moved(rows: pd.DataFrame) -> int:
    return int(rows.loc[rows["source"] != COMPUTED, "bytes"].sum())


def _share(wanted: pd.DataFrame, before: pd.DataFrame) -> float:
    """How much work it is beside that on ``before``: by bytes, or by series where nobody states any."""
    if total := _moved(before):
        return _moved(wanted) / total
    return len(wanted) / max(1, len(before))


def _estimate(account: Mapping[str, Any], share: float) -> Estimate:
    hours, cost = 0.0, 0.0
    for row in account["stages"]:
        part = share if row["stage"].partition("@")[0] in BY_SERIES else 1.0
        hours += part * (row["wall_h"] or 0.0)
        cost += part * (row.get("cost") or 0.0)
    prices = account["prices"]
    without = sum(row["made"] is None for row in account["stages"])
    return Estimate(hours, cost if prices else None, prices["currency"] if prices else "", without)


def _funnel(folder: Path) -> tuple[tuple[str, int], ...]:
    """Of the source's own choice, where it makes one; then what the suite *cohort* rejects, and what is left."""
    cohort, chosen = read_table(folder / "cohort.parquet"), folder / "selection.json"
    steps = [(str(step["criterion"]), int(step["series"])) for step in read_json(chosen)["funnel"]] if (
        chosen.is_file()
    ) else []  # fmt: skip
    steps.append(("listed, evaluation sets and phantoms among them", len(cohort)))
    rejected = cohort.loc[cohort["reason"] != "", "reason"].value_counts().sort_index()
    steps += [(f"rejected: {reason}", int(count)) for reason, count in rejected.items()]
    left = cohort[cohort["shard"] >= 0]
    return (*steps, *((f"left for: {role}", int(n)) for role, n in left["role"].value_counts().sort_index().items()))
