"""Every gate as a pure function from figures to verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from components.gate.config import GateConfig, NotWorse
from components.gate.groups import external_falls, subgroup_gaps
from components.gate.verdict import Verdict, numbers_of, word

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 3  # tasks named in a verdict


@dataclass(frozen=True)
class Evidence:
    """What the gates look at.

    Attributes:
        line: the model line.
        metrics: of the evaluate stage.
        funnel: of the curate stage: ``in``, ``accepted``, ``not_ct``, ``rejected`` by reason.
        curated: every series that reached curation.
        tasks: the task table.
    """

    line: str
    metrics: Mapping[str, Any]
    funnel: Mapping[str, Any]
    curated: pd.DataFrame
    tasks: pd.DataFrame


def verdicts_of(config: GateConfig, evidence: Evidence) -> list[Verdict]:
    """The verdicts of all gates, in a fixed order: none is skipped because another failed."""
    return [
        leakage(evidence),
        same_scan(evidence),
        reject_rate(config, evidence),
        no_worse(config, evidence),
        *(better_than_random(config, evidence) or [not_judged("better_than_random")]),
        *(floors(config, evidence) or [not_judged("floors")]),
        *(subgroup_gaps(config, evidence.metrics) or [not_judged("subgroup_gaps")]),
        *(external_falls(config, evidence.metrics) or [not_judged("external_falls")]),
    ]


def not_judged(name: str) -> Verdict:
    """Of a kind of gate that the parameters ask for nowhere."""
    return Verdict(name, None, None, "not judged", f"gate.{name} is empty: nothing of this kind was asked")


def decision(verdicts: list[Verdict]) -> dict[str, Any]:
    """The content of ``decision.json``."""
    verdict = "fail" if any(gate.failed for gate in verdicts) else "pass"
    return {"verdict": verdict, "gates": [asdict(gate) for gate in verdicts]}


def leakage(evidence: Evidence) -> Verdict:
    """No patient whose scan the encoder was trained on is in any evaluation set."""
    accepted = evidence.curated[evidence.curated["status"] == "accepted"]
    trained = set(accepted.loc[accepted["role"] == "pretrain", "patient"])
    judged = set(evidence.tasks["patient"]) | set(accepted.loc[accepted["role"] == "evaluation", "patient"])
    both = sorted(trained & judged)
    named = f": {', '.join(both[:3])}{', ...' if len(both) > 3 else ''}" if both else ""
    return Verdict(
        "leakage", len(both), 0, word(not both),
        f"patients in pretraining ({len(trained)}) and also in evaluation ({len(judged)}){named}",
    )  # fmt: skip


def same_scan(evidence: Evidence) -> Verdict:
    """No scan that the encoder was trained on is one of an evaluation set under another patient's name."""
    accepted = evidence.curated[evidence.curated["status"] == "accepted"]
    both = sorted(accepted.loc[(accepted["role"] == "pretrain") & (accepted["same_scan"] != ""), "series"])
    named = f": {', '.join(both[:3])}{', ...' if len(both) > 3 else ''}" if both else ""
    detail = f"series in pretraining that are, by bytes or voxels, a scan of an evaluation set{named}"
    return Verdict("same_scan", len(both), 0, word(not both), detail)


def reject_rate(config: GateConfig, evidence: Evidence) -> Verdict:
    """A source that suddenly loses more series than it used to is looked at before it trains a release. Of its CT: what
    else it holds (structures, doses, PET, reports) is no loss."""
    others, accepted = int(evidence.funnel["not_ct"]), int(evidence.funnel["accepted"])
    total = int(evidence.funnel["in"]) - others
    if total == 0:
        return Verdict("reject_rate", None, config.max_reject_rate, "fail", "no CT series came in: check the source")
    rate = round((total - accepted) / total, 6)
    detail = f"{total - accepted} of {total} CT series rejected" + (f"; {others} others are no CT" if others else "")
    return Verdict("reject_rate", rate, config.max_reject_rate, word(rate <= config.max_reject_rate), detail)


def no_worse(config: GateConfig, evidence: Evidence) -> Verdict:
    """At no evaluated task is the encoder clearly worse than untrained ones: no task that went well makes up for it.

    One figure a task; ``worse`` of the metrics has their p-values by Holm's correction, since one of them refuses the
    release.
    """
    alpha, tasks = config.worse_alpha, evidence.metrics["tasks"]
    if alpha is None:
        return Verdict("no_worse", None, None, "not judged", "gate.worse_alpha is null: nothing of this kind was asked")
    if not tasks:
        return Verdict("no_worse", None, 0, "fail", "no task was evaluated")
    figures, adjusted = evidence.metrics["primary"], evidence.metrics["worse"]
    worse = sorted((float(p), task) for task, p in adjusted.items() if p <= alpha)
    told = [
        f"{task} {figures[task]} {numbers['value']:.3f}, untrained {numbers['random']:.3f}, difference "
        f"{numbers['difference']:+.3f} [{numbers['difference_low']:+.3f}, {numbers['difference_high']:+.3f}]"
        for _, task in worse[:SHOWN]
        for numbers in [tasks[task][figures[task]]]
    ]
    which = f": {'; '.join(told)}{', ...' if len(worse) > SHOWN else ''}" if told else ""
    detail = f"of {len(tasks)} evaluated tasks, those clearly worse than untrained encoders (Holm, {alpha:g}){which}"
    return Verdict("no_worse", len(worse), 0, word(not worse), detail)


def better_than_random(config: GateConfig, evidence: Evidence) -> list[Verdict]:
    """The encoder is better than an untrained one by more than the bound."""
    verdicts = []
    for wanted in config.better_than_random:
        name, bound = f"better_than_random {wanted.task} {wanted.figure}", wanted.minimum_gain
        numbers, reason = numbers_of(evidence.metrics, wanted.task, wanted.figure)
        if numbers is None:
            verdicts.append(Verdict(name, None, bound, "fail", reason))
            continue
        gain = float(numbers["least_gain"])
        detail = (
            f"encoder {numbers['value']:.3f}, untrained {numbers['random']:.3f} (spread {numbers['spread']:.3f}), "
            f"difference {numbers['difference']:+.3f} [{numbers['difference_low']:+.3f}, "
            f"{numbers['difference_high']:+.3f}]; the least gain must be above the bound"
        )
        verdicts.append(Verdict(name, gain, bound, word(gain > bound), detail))
    return verdicts


def floors(config: GateConfig, evidence: Evidence) -> list[Verdict]:
    """The figure is at least the bound; where lower is better, at most."""
    verdicts = []
    for wanted in config.floors:
        name = f"floor {wanted.task} {wanted.figure}"
        numbers, reason = numbers_of(evidence.metrics, wanted.task, wanted.figure)
        if numbers is None:
            verdicts.append(Verdict(name, None, wanted.bound, "fail", reason))
            continue
        value, side = float(numbers["value"]), "most" if wanted.minimum is None else "least"
        detail = f"{value:.3f} [{numbers['low']:.3f}, {numbers['high']:.3f}]; must be at {side} the bound"
        verdicts.append(Verdict(name, value, wanted.bound, word(wanted.met(value)), detail))
    return verdicts


def against_champion(
    config: GateConfig,
    line: str,
    metrics: Mapping[str, Any],
    champion: Mapping[str, Any] | None,
    asked_again: Mapping[str, Any],
) -> list[Verdict]:
    """Not worse than the release in use, case by case; where its encoder was not asked again, by its figures on the
    very same evaluation data.

    Args:
        config: the line's bounds.
        line: the model line.
        metrics: of the evaluate stage.
        champion: of the line: ``bundle``, ``evaluation_data``, ``metrics``; None where there is none.
        asked_again: task to figure to what the champion's encoder gives on the same cases, of stage ``rival``.
    """
    if champion is None:
        return [Verdict("champion", None, None, "pass", "no champion yet: nothing to compare with")]
    told = [(wanted, asked_again.get(wanted.task, {}).get(wanted.figure)) for wanted in config.champion]
    verdicts = [_beside(wanted, pair) for wanted, pair in told if pair is not None]
    rest = [wanted for wanted, pair in told if pair is None]
    return verdicts + (_by_figures(rest, line, metrics, champion) if rest else [])


def _beside(wanted: NotWorse, pair: Mapping[str, float]) -> Verdict:
    """Refused where it is worse by more than the tolerance, or clearly worse by however little."""
    gain, high = float(pair["gain"]), float(pair["gain_high"])
    detail = (
        f"{pair['value']:.3f}; champion {pair['champion']:.3f} on the same cases; gain {gain:+.3f} "
        f"[{pair['gain_low']:+.3f}, {high:+.3f}]; must not be below the bound, nor its interval below 0"
    )
    passed = gain >= -wanted.tolerance and high >= 0
    return Verdict(f"champion {wanted.task} {wanted.figure}", gain, -wanted.tolerance, word(passed), detail)


def _by_figures(
    asked: Sequence[NotWorse], line: str, metrics: Mapping[str, Any], champion: Mapping[str, Any]
) -> list[Verdict]:
    if champion["evaluation_data"] != metrics["evaluation_data"]:
        detail = (
            f"the champion was measured on other evaluation data ({str(champion['evaluation_data'])[:12]}, "
            f"here {str(metrics['evaluation_data'])[:12]}): figures do not compare; "
            f"unset it with `ctfoundry promote --line {line} --none`, or evaluate on its data"
        )
        return [Verdict("champion", None, None, "fail", detail)]
    verdicts = []
    for wanted in asked:
        name = f"champion {wanted.task} {wanted.figure}"
        numbers, reason = numbers_of(metrics, wanted.task, wanted.figure)
        before, reason_before = numbers_of(champion["metrics"], wanted.task, wanted.figure)
        if numbers is None or before is None:
            why = reason if numbers is None else f"the champion's figures: {reason_before}"
            verdicts.append(Verdict(name, None, None, "fail", why))
            continue
        lower = wanted.figure in metrics.get("lower_is_better", ())
        tolerance = wanted.tolerance if lower else -wanted.tolerance
        value, bound = float(numbers["value"]), round(float(before["value"]) + tolerance, 6)
        detail = (
            f"{value:.3f}; champion {before['value']:.3f} {'and' if lower else 'less'} tolerance {wanted.tolerance}"
        )
        verdicts.append(Verdict(name, value, bound, word(value <= bound if lower else value >= bound), detail))
    return verdicts
