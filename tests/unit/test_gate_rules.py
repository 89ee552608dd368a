"""Every gate passes and fails where it should, and says why."""

from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.figures.resampling import sample_of
from components.gate.config import GateConfig
from components.gate.rules import Evidence, against_champion, decision, verdicts_of
from components.gate.stage import failure_line
from components.gate.verdict import Verdict
from components.settings import ParamsError, parse, read_yaml
from components.tasks.kinds import KINDS
from components.tasks.scores import Score, task_metrics

NUMBERS = {
    "value": 0.9, "low": 0.8, "high": 0.95, "random": 0.7,
    "difference": 0.2, "difference_low": 0.1, "difference_high": 0.3, "spread": 0.02, "least_gain": 0.1, "p_worse": 1.0,
}  # fmt: skip


def config(**changes: Any) -> GateConfig:
    block: dict[str, Any] = {
        "max_reject_rate": 0.3,
        "worse_alpha": 0.05,
        "better_than_random": [{"task": "organs", "figure": "linear_auc", "minimum_gain": 0.0}],
        "floors": [{"task": "organs", "figure": "linear_auc", "minimum": 0.85}],
        "subgroup_gaps": [],
        "external_falls": [],
        "champion": [{"task": "organs", "figure": "linear_auc", "tolerance": 0.02}],
    }
    return parse(GateConfig, block | changes, "wholebody.gate")


def evidence(**changes: Any) -> Evidence:
    parts: dict[str, Any] = {
        "line": "wholebody",
        "metrics": {
            "evaluation_data": "d1",
            "tasks": {"organs": {"linear_auc": NUMBERS}},
            "primary": {"organs": "linear_auc"},
            "worse": {"organs": 1.0},
            "not_evaluated": {"lesions": "one class only"},
        },
        "funnel": {"in": 10, "accepted": 8, "not_ct": 0, "rejected": {"no_body": 2}},
        "curated": pd.DataFrame(
            {
                "patient": ["p1", "p2", "p3"],
                "role": ["pretrain", "evaluation", "pretrain"],
                "status": ["accepted", "accepted", "rejected"],
                "series": ["s1", "s2", "s3"],
                "same_scan": ["", "", "s2"],
            }
        ),
        "tasks": pd.DataFrame({"patient": ["p2", "p9"]}),
    }
    return Evidence(**(parts | changes))


def named(verdicts: list[Verdict], start: str) -> Verdict:
    (found,) = [verdict for verdict in verdicts if verdict.gate.startswith(start)]
    return found


def test_all_gates_pass_and_the_decision_lists_each() -> None:
    content = decision(verdicts_of(config(), evidence()))
    assert content["verdict"] == "pass"
    assert [gate["gate"] for gate in content["gates"]] == [
        "leakage", "same_scan", "reject_rate", "no_worse", "better_than_random organs linear_auc",
        "floor organs linear_auc", "subgroup_gaps", "external_falls",
    ]  # fmt: skip


@pytest.mark.parametrize("leaking", ["p2", "p9"])  # in the cohort's evaluation role, or in a task from outside
def test_one_patient_in_pretraining_and_evaluation_fails(leaking: str) -> None:
    given = evidence()
    row = pd.DataFrame({"patient": [leaking], "role": ["pretrain"], "status": ["accepted"], "same_scan": [""]})
    verdict = named(verdicts_of(config(), evidence(curated=pd.concat([given.curated, row]))), "leakage")
    assert (verdict.figure, verdict.bound, verdict.verdict) == (1, 0, "fail")
    assert leaking in verdict.detail


def test_a_rejected_pretraining_scan_is_no_leak() -> None:
    assert named(verdicts_of(config(), evidence(tasks=pd.DataFrame({"patient": ["p3"]}))), "leakage").verdict == "pass"


def test_one_scan_under_two_names_fails() -> None:
    row = pd.DataFrame({"patient": ["p4"], "role": ["pretrain"], "status": ["accepted"], "series": ["s4"],
                        "same_scan": ["s2"]})  # fmt: skip
    verdict = named(verdicts_of(config(), evidence(curated=pd.concat([evidence().curated, row]))), "same_scan")
    assert (verdict.figure, verdict.bound, verdict.verdict) == (1, 0, "fail")
    assert "s4" in verdict.detail


def test_reject_rate_above_its_bound_fails() -> None:
    verdict = named(verdicts_of(config(max_reject_rate=0.1), evidence()), "reject_rate")
    assert (verdict.figure, verdict.bound, verdict.verdict) == (0.2, 0.1, "fail")


def test_what_is_no_ct_is_no_rejected_ct() -> None:
    """A radiotherapy archive holds a structure set, a dose and a PET beside every CT."""
    funnel = {"in": 40, "accepted": 8, "not_ct": 30, "rejected": {"no_body": 2}}
    verdict = named(verdicts_of(config(max_reject_rate=0.2), evidence(funnel=funnel)), "reject_rate")
    assert (verdict.figure, verdict.verdict) == (0.2, "pass")
    assert "2 of 10 CT series rejected; 30 others are no CT" in verdict.detail
    assert named(verdicts_of(config(max_reject_rate=0.19), evidence(funnel=funnel)), "reject_rate").failed


@pytest.mark.parametrize("others", [0, 7])
def test_nothing_in_fails(others: int) -> None:
    funnel = {"in": others, "accepted": 0, "not_ct": others, "rejected": {}}
    assert named(verdicts_of(config(), evidence(funnel=funnel)), "reject_rate").failed


def test_a_gain_that_only_touches_the_bound_is_not_better_than_random() -> None:
    wanted = [{"task": "organs", "figure": "linear_auc", "minimum_gain": 0.1}]
    verdict = named(verdicts_of(config(better_than_random=wanted), evidence()), "better_than_random")
    assert (verdict.figure, verdict.verdict) == (0.1, "fail")


def worse(**adjusted: float) -> Evidence:
    """Evidence of as many tasks, by the adjusted p-value of their first figure."""
    metrics = evidence().metrics | {
        "tasks": {task: {"dice": NUMBERS | {"difference": -0.2}, "hd95": NUMBERS} for task in adjusted},
        "primary": dict.fromkeys(adjusted, "dice"),
        "worse": adjusted,
    }
    return evidence(metrics=metrics)


def test_a_release_that_is_worse_than_untrained_encoders_at_any_task_is_refused_and_the_task_named() -> None:
    verdict = named(verdicts_of(config(better_than_random=[], floors=[]), worse(a=0.9, b=0.001, c=0.5)), "no_worse")
    assert (verdict.figure, verdict.bound, verdict.verdict) == (1, 0, "fail")
    assert (
        "of 3 evaluated tasks, those clearly worse than untrained encoders (Holm, 0.05): b dice 0.900, untrained"
        in (verdict.detail)
    )


def test_what_is_worse_at_the_bound_is_worse() -> None:
    block = config(better_than_random=[], floors=[])
    assert named(verdicts_of(block, worse(a=0.051)), "no_worse").verdict == "pass"
    assert named(verdicts_of(block, worse(a=0.05)), "no_worse").verdict == "fail"


def test_no_worse_is_not_judged_where_it_is_not_asked_and_fails_where_nothing_was_evaluated() -> None:
    block = {"better_than_random": [], "floors": []}
    assert named(verdicts_of(config(worse_alpha=None, **block), worse(b=0.0)), "no_worse").verdict == "not judged"
    assert named(verdicts_of(config(**block), worse()), "no_worse").failed


def test_a_floor_out_of_reach_fails_and_its_line_names_gate_figure_and_bound() -> None:
    wanted = [{"task": "organs", "figure": "linear_auc", "minimum": 0.99}]
    verdict = named(verdicts_of(config(floors=wanted), evidence()), "floor")
    assert failure_line(verdict).startswith("gate failed: floor organs linear_auc: figure 0.9, bound 0.99: ")


@pytest.mark.parametrize(
    ("task", "figure", "said"),
    [
        ("lesions", "linear_auc", "was not evaluated: one class only"),
        ("liver", "linear_auc", "task 'liver' is unknown; evaluated were organs"),
        ("organs", "auc", "no figure 'auc'; it has linear_auc"),
    ],
)
def test_a_gate_without_its_figure_fails_with_the_reason(task: str, figure: str, said: str) -> None:
    wanted = [{"task": task, "figure": figure, "minimum": 0.5}]
    verdict = named(verdicts_of(config(floors=wanted), evidence()), "floor")
    assert verdict.verdict == "fail"
    assert said in verdict.detail


def of_kind(name: str, good: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics of a task of a kind, beside untrained encoders: far better in every figure, or far worse; and the
    gates on all of its figures."""
    measures, generator = KINDS[name].figures, np.random.default_rng(1)
    sample, scores = sample_of([f"p{n}" for n in range(40)]), []
    for figure, measure in measures.items():
        ours = 0.8 if good is not measure.lower_is_better else 0.3
        for method, value in {"encoder": ours, "random_1": 1.1 - ours, "random_2": 1.08 - ours}.items():
            replicates = np.append(value, value + 0.01 * generator.normal(size=100))
            scores.append(Score("t", method, figure, replicates, 40, sample))
    wanted = [{"task": "t", "figure": figure} for figure in measures]
    side = {figure: "maximum" if measure.lower_is_better else "minimum" for figure, measure in measures.items()}
    gates = {
        "better_than_random": [of | {"minimum_gain": 0.1} for of in wanted],
        "floors": [of | {side[of["figure"]]: 0.5} for of in wanted],
    }
    return task_metrics(scores, measures), gates


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_task_can_be_gated_by_every_figure_it_has(name: str) -> None:
    for good in (True, False):
        tasks, gates = of_kind(name, good)
        metrics = evidence().metrics | {"tasks": tasks, "primary": {"t": next(iter(tasks["t"]))}, "worse": {"t": 1.0}}
        verdicts = verdicts_of(config(**gates), evidence(metrics=metrics))
        told = {verdict.gate: verdict.verdict for verdict in verdicts if verdict.gate.split()[-1] in tasks["t"]}
        figures = list(KINDS[name].figures)
        assert list(told) == [f"{gate} t {figure}" for gate in ("better_than_random", "floor") for figure in figures]
        assert set(told.values()) == {"pass" if good else "fail"}


def champion(value: float, data: str = "d1") -> dict[str, Any]:
    metrics = {"tasks": {"organs": {"linear_auc": NUMBERS | {"value": value}}}}
    return {"bundle": "b", "evaluation_data": data, "metrics": metrics}


def beside(champion: dict[str, Any] | None) -> list[Verdict]:
    return against_champion(config(), "wholebody", evidence().metrics, champion, {})


def test_without_a_champion_there_is_nothing_to_compare_with() -> None:
    assert named(beside(None), "champion").verdict == "pass"


@pytest.mark.parametrize(("before", "verdict"), [(0.92, "pass"), (0.93, "fail"), (0.5, "pass")])
def test_not_worse_than_the_champion_within_the_tolerance(before: float, verdict: str) -> None:
    assert named(beside(champion(before)), "champion").verdict == verdict


def test_an_error_is_not_above_the_champions_by_more_than_the_tolerance() -> None:
    block = config(champion=[{"task": "dose", "figure": "mae", "tolerance": 0.5}])
    told = [
        against_champion(
            block, "wholebody", {"tasks": {"dose": {"mae": {"value": now}}}, "evaluation_data": "d1",
                                 "lower_is_better": ["mae"]},
            {"evaluation_data": "d1", "metrics": {"tasks": {"dose": {"mae": {"value": 3.0}}}}}, {},
        )[0]
        for now in (2.0, 3.5, 3.6)
    ]  # fmt: skip
    assert [(verdict.bound, verdict.verdict) for verdict in told] == [(3.5, "pass"), (3.5, "pass"), (3.5, "fail")]


@pytest.mark.parametrize(
    ("gain", "half_width", "verdict"),
    [(0.01, 0.02, "pass"), (-0.01, 0.02, "pass"), (-0.03, 0.05, "fail"), (-0.01, 0.005, "fail"), (-0.02, 0.02, "pass")],
)
def test_the_champion_is_asked_again_case_by_case(gain: float, half_width: float, verdict: str) -> None:
    """On other data than it was promoted on, too: worse by more than the tolerance of .02, or clearly worse at all."""
    pair = {"value": 0.9, "champion": 0.9 - gain, "gain": gain, "gain_low": gain - half_width,
            "gain_high": gain + half_width}  # fmt: skip
    found = against_champion(
        config(), "wholebody", evidence().metrics, champion(0.5, data="d2"), {"organs": {"linear_auc": pair}}
    )
    assert [(v.figure, v.bound, v.verdict) for v in found] == [(gain, -0.02, verdict)]


def test_a_champion_of_other_evaluation_data_fails_with_the_remedy() -> None:
    verdict = named(beside(champion(0.5, data="d2")), "champion")
    assert verdict.verdict == "fail"
    assert "ctfoundry promote --line wholebody --none" in verdict.detail


def test_a_mistyped_bound_is_one_line() -> None:
    with pytest.raises(ParamsError) as raised:
        config(floors=[{"task": "organs", "figure": "linear_auc", "minimum": 9}])
    assert str(raised.value).startswith("params.yaml: wholebody.gate.floors.0.minimum: 9 is not allowed")


def test_what_no_gate_asks_is_not_judged_and_does_not_count_as_passed() -> None:
    verdicts = verdicts_of(config(better_than_random=[], floors=[]), evidence())
    assert {gate.gate: gate.verdict for gate in verdicts} == {
        "leakage": "pass", "same_scan": "pass", "reject_rate": "pass", "no_worse": "pass",
        "better_than_random": "not judged", "floors": "not judged", "subgroup_gaps": "not judged",
        "external_falls": "not judged",
    }  # fmt: skip
    assert decision(verdicts)["verdict"] == "pass"
    assert "gate.floors is empty" in named(verdicts, "floors").detail
    leaking = verdicts_of(config(floors=[]), evidence(tasks=pd.DataFrame({"patient": ["p1"]})))
    assert decision(leaking)["verdict"] == "fail"


def shipped(line: str) -> GateConfig:
    return parse(GateConfig, read_yaml()[line]["gate"], f"{line}.gate")


def judged(line: str, value: float, random: float, half_width: float) -> dict[str, str]:
    """Verdicts of the shipped gates for one encoder's figures, the same for every task and figure."""
    difference = value - random
    chance = NormalDist(0, half_width / 1.96)
    numbers = {
        "value": value, "low": value - half_width, "high": value + half_width, "random": random,
        "difference": difference, "difference_low": difference - half_width, "difference_high": difference + half_width,
        "spread": 0.0, "least_gain": difference - half_width, "p_worse": chance.cdf(difference),
    }  # fmt: skip
    task = {"wholebody": "organs", "head": "findings"}[line]
    asked = {wanted.figure for wanted in (*shipped(line).better_than_random, *shipped(line).floors)}
    metrics = {
        "evaluation_data": "d1", "tasks": {task: dict.fromkeys(asked, numbers)}, "not_evaluated": {},
        "primary": {task: "linear_auc"}, "worse": {task: numbers["p_worse"]},
    }  # fmt: skip
    verdicts = verdicts_of(shipped(line), evidence(metrics=metrics))
    return {verdict.gate.split()[0]: verdict.verdict for verdict in verdicts}


@pytest.mark.parametrize("line", ["wholebody", "head"])
def test_the_shipped_gates_refuse_what_they_are_there_for(line: str, project: Path) -> None:
    good = {
        "leakage": "pass",
        "same_scan": "pass",
        "reject_rate": "pass",
        "no_worse": "pass",
        "better_than_random": "pass",
        "floor": "pass",
        "subgroup_gaps": "not judged",
        "external_falls": "not judged",
    }
    assert judged(line, 0.98, 0.9, 0.02) == good
    assert judged(line, 0.98, 0.98, 0.02) == good | {"better_than_random": "fail"}, "as good as untrained ones"
    assert judged(line, 0.98, 0.97, 0.02) == good | {"better_than_random": "fail"}, "better, but perhaps by chance"
    assert judged(line, 0.9, 0.98, 0.02) == good | {"better_than_random": "fail", "no_worse": "fail"}
    assert judged(line, 0.5, 0.4, 0.02) == good | {"floor": "fail"}, "better than untrained ones, yet no use"


@pytest.mark.parametrize("line", ["wholebody", "head"])
def test_the_shipped_bounds_are_no_empty_ones(line: str, project: Path) -> None:
    gates = shipped(line)
    assert gates.better_than_random
    assert gates.floors
    assert gates.champion
    assert all(gate.minimum_gain >= 0 for gate in gates.better_than_random)
    assert all(gate.minimum > 0.5 for gate in gates.floors if gate.figure.endswith("auc"))
    assert all(gate.tolerance <= 0.05 for gate in gates.champion)
    assert gates.max_reject_rate < 0.5
    assert gates.worse_alpha == 0.05
