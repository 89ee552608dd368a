"""Gates on groups of patients and on other sites: refused where it is shown, off where nothing can be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.evaluate import stage
from components.evaluate.falls import falls_of
from components.figures.resampling import figure, sample_of
from components.gate.config import GateConfig
from components.gate.groups import external_falls, subgroup_gaps
from components.gate.verdict import Verdict
from components.settings import ParamsError, parse
from components.tasks.interface import Measure
from tests.unit.gate_blocks import asking

GROUPS = {
    "figure": "linear_auc", "patients": {"GE": 20, "PHILIPS": 30, "SIEMENS": 25, "TOSHIBA": 2}, "needed": 3,
    "of_classes": True, "groups": 3,
    # The gap of GE is the largest and may be chance; that of PHILIPS is not.
    "gaps": {"GE": [-0.3, -0.62, 0.02], "PHILIPS": [-0.2, -0.28, -0.12], "SIEMENS": [0.25, 0.15, 0.35]},
}  # fmt: skip
ALONE = {"figure": "linear_auc", "patients": {"B30f": 40, "unknown": 2}, "needed": 3, "of_classes": False, "groups": 1}


def gaps(attribute: str = "vendor", maximum: float = 0.1, task: str = "organs", **changed: Any) -> list[Verdict]:
    config = parse(
        GateConfig, asking(subgroup_gaps=[{"task": task, "attribute": attribute, "maximum": maximum}]), "wholebody.gate"
    )
    metrics = {
        "tasks": {"organs": {"linear_auc": {}}, "clusters": {"nmi": {}}}, "not_evaluated": {"lesions": "no lesions"},
        "subgroups": {"organs": {"vendor": GROUPS, "kernel": ALONE}}, "lower_is_better": ["mae"], "too_few": [],
    }  # fmt: skip
    return subgroup_gaps(config, metrics | changed)


def test_the_group_that_is_clearly_worse_is_refused_and_not_the_one_that_may_be_by_chance() -> None:
    (verdict,) = gaps()
    assert (verdict.gate, verdict.figure, verdict.bound) == ("subgroup_gap organs vendor", 0.12, 0.1)
    assert verdict.failed
    for said in (
        "linear_auc of PHILIPS is 0.200 [0.120, 0.280] worse",
        "not ruled out: 0.620",
        "rarest class: TOSHIBA 2",
    ):
        assert said in verdict.detail


def test_a_gap_that_the_interval_does_not_show_passes_and_what_is_not_ruled_out_is_said() -> None:
    (verdict,) = gaps(maximum=0.12)
    assert verdict.verdict == "pass"
    assert "not ruled out: 0.620" in verdict.detail


def test_of_an_error_the_group_that_is_higher_is_worse() -> None:
    of_error = {"organs": {"vendor": GROUPS | {"figure": "mae"}}}
    (verdict,) = gaps(subgroups=of_error)
    assert (verdict.figure, verdict.verdict) == (0.15, "fail")
    assert "mae of SIEMENS is 0.250 [0.150, 0.350] worse" in verdict.detail


def test_where_no_two_groups_are_large_enough_the_gate_is_off_and_says_how_small_they_are() -> None:
    (verdict,) = gaps("kernel")
    assert (verdict.verdict, verdict.figure, verdict.failed) == ("off", None, False)
    assert verdict.detail == "too small: no two known groups of at least 3 patients: B30f 40, unknown 2"


def test_all_attributes_are_a_verdict_each() -> None:
    assert [(verdict.gate, verdict.verdict) for verdict in gaps("all")] == [
        ("subgroup_gap organs vendor", "fail"),
        ("subgroup_gap organs kernel", "off"),
    ]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("liver", "task 'liver' is unknown; evaluated were clusters, organs"),
        ("lesions", "task 'lesions' was not evaluated: no lesions"),
        ("clusters", "task 'clusters' has no figure that follows from single cases"),
    ],
)
def test_a_task_without_groups_fails_with_the_reason(task: str, said: str) -> None:
    (verdict,) = gaps(task=task)
    assert verdict.failed
    assert said in verdict.detail


def test_an_unknown_attribute_is_one_line() -> None:
    with pytest.raises(ParamsError) as caught:
        gaps("vendors")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(
        "params.yaml: wholebody.gate.subgroup_gaps.0.attribute: 'vendors' is not allowed: one of all,"
    )
    assert line.endswith("did you mean 'vendor'?")


HERE = {"value": 0.9, "low": 0.84, "high": 0.94}
THERE = {"value": 0.7, "low": 0.6, "high": 0.78}
TASK = type("Task", (), {"external": ("elsewhere", "tiny", "nowhere")})


def site(maximum: float, of_set: str = "elsewhere", name: str = "linear_auc") -> Verdict:
    measures = {"linear_auc": Measure("AUC"), "mae": Measure("Error", (0.0, np.inf), lower_is_better=True)}
    judged = {
        "mine": {"linear_auc": HERE, "mae": HERE},
        "mine/elsewhere": {"linear_auc": THERE, "mae": THERE},
    }
    found = falls_of({"mine": TASK}, judged, measures, {"mine": 40, "mine/elsewhere": 30})
    metrics = {
        "tasks": judged, "falls": found, "too_few": ["mine/tiny"],
        "not_evaluated": {"mine/tiny": "at least 3 patients per class and split are needed: 1: 9 patients in train, 1",
                          "mine/nowhere": "no labelled scan"},
    }  # fmt: skip
    wanted = {"task": "mine", "set": of_set, "figure": name, "maximum": maximum}
    (verdict,) = external_falls(parse(GateConfig, asking(external_falls=[wanted]), "t"), metrics)
    return verdict


def test_a_fall_that_the_intervals_show_is_refused_and_one_that_they_do_not_is_not() -> None:
    near = 0.2 - np.hypot(0.9 - 0.84, 0.78 - 0.7)
    assert site(0.09).failed
    assert site(0.09).figure == pytest.approx(near, abs=1e-6)
    assert "internal 0.900 (40 patients), external 0.700 (30): a fall of 0.200 [0.100, " in site(0.09).detail
    assert site(0.11).verdict == "pass"


def test_an_error_that_is_smaller_elsewhere_is_no_fall() -> None:
    verdict = site(0.0, name="mae")
    assert verdict.figure == pytest.approx(-0.2 - np.hypot(0.94 - 0.9, 0.7 - 0.6), abs=1e-6)
    assert verdict.verdict == "pass"


def test_a_set_that_is_too_small_is_off_and_one_that_is_missing_fails() -> None:
    assert site(0.1, "tiny").verdict == "off"
    assert site(0.1, "tiny").detail.startswith("too small: mine/tiny: at least 3 patients per class and split are")
    assert site(0.1, "nowhere").failed
    assert "was not evaluated: no labelled scan" in site(0.1, "nowhere").detail
    assert "task 'mine/other' is unknown" in site(0.1, "other").detail
    assert "has no figure 'auc'" in site(0.1, name="auc").detail


def test_limits_of_a_fall_hold_the_true_one() -> None:
    """Two sites of 24 and 40 patients, the first with high figures: nominal 95 % limits."""
    generator, measure = np.random.default_rng(3), {"share": Measure("Share")}
    inside = below = above = 0
    for _ in range(400):
        judged = {}
        for name, count, truth in (("mine", 24, 0.9), ("mine/elsewhere", 40, 0.7)):
            values = (generator.random(count) < truth).astype(float)
            weights = generator.multinomial(count, np.full(count, 1 / count), 400)
            replicates = np.concatenate([[values.mean()], weights @ values / count])
            estimate = figure(replicates, sample_of([str(n) for n in range(count)]))
            judged[name] = {"share": dict(zip(("value", "low", "high"), (estimate.value, *estimate.interval()),
                                              strict=True))}  # fmt: skip
        of = falls_of({"mine": TASK}, judged, measure, {"mine": 24, "mine/elsewhere": 40})["mine"]["elsewhere"]["share"]
        below += of["fall_high"] < 0.2
        above += of["fall_low"] > 0.2
        inside += of["fall_low"] <= 0.2 <= of["fall_high"]
    assert inside >= 0.93 * 400
    assert above <= 0.035 * 400, "a near end beyond the truth refuses a release"


def test_patients_of_a_mean_are_those_of_its_parts_at_its_own_site() -> None:
    rows = pd.DataFrame(
        [("f/a", "p1"), ("f/a", "p2"), ("f/b", "p2"), ("f/b", "p3"), ("f/out/a", "q1"), ("mine", "p1"),
         ("mine/out", "q1"), ("mine/out", "q2")],
        columns=["task", "patient"],
    )  # fmt: skip
    found = stage.tested(rows.assign(split="test"))
    assert found == {"f": 3, "f/a": 2, "f/b": 2, "f/out": 1, "f/out/a": 1, "mine": 1, "mine/out": 2}
