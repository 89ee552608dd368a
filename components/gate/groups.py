"""Gates on whom a release serves less well: a group of patients, or another site.

Both refuse only what is shown: where the near end of an interval is beyond the bound. The other way round, to pass only
where the far end is within it, would refuse every release whose groups are small, and groups mostly are. So a pass says
that no such gap was shown, and how large a gap the cases leave possible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.gate.config import ALL, ExternalFall, GateConfig, SubgroupGap
from components.gate.verdict import Verdict, numbers_of, word

OFF = "off"


def subgroup_gaps(config: GateConfig, metrics: Mapping[str, Any]) -> list[Verdict]:
    """By no attribute is a group clearly worse than all others together by more than the bound: a verdict each.

    Args:
        config: the line's bounds.
        metrics: of the evaluate stage; ``subgroups`` are as ``evaluate.subgroups.compare`` gives them.
    """
    verdicts = []
    for wanted in config.subgroup_gaps:
        found = metrics["subgroups"].get(wanted.task)
        if found is None:
            verdicts.append(_ungrouped(wanted, metrics))
            continue
        attributes = list(found) if wanted.attribute == ALL else [wanted.attribute]
        verdicts += [_worst_group(wanted, attribute, found[attribute], metrics) for attribute in attributes]
    return verdicts


def _ungrouped(wanted: SubgroupGap, metrics: Mapping[str, Any]) -> Verdict:
    name = f"subgroup_gap {wanted.task} {wanted.attribute}"
    _, reason = numbers_of(metrics, wanted.task, "")
    if wanted.task in metrics["tasks"]:
        reason = f"task {wanted.task!r} has no figure that follows from single cases, and so none of a group"
    return Verdict(name, None, wanted.maximum, "fail", reason)


def _worst_group(wanted: SubgroupGap, attribute: str, found: Mapping[str, Any], metrics: Mapping[str, Any]) -> Verdict:
    name = f"subgroup_gap {wanted.task} {attribute}"
    compared, of = found.get("gaps", {}), "patients of the rarest class" if found["of_classes"] else "patients"
    counts = ", ".join(f"{group} {count}" for group, count in found["patients"].items() if group not in compared)
    if not compared:
        detail = f"too small: no two known groups of at least {found['needed']} {of}: {counts}"
        return Verdict(name, None, wanted.maximum, OFF, detail)
    behind = {
        group: _behind(numbers, found["figure"] in metrics["lower_is_better"]) for group, numbers in compared.items()
    }
    group = max(behind, key=lambda one: (behind[one][1], one))
    gap, near, far = behind[group]
    detail = (
        f"{found['figure']} of {group} is {gap:.3f} [{near:.3f}, {far:.3f}] worse than of the others of {len(behind)} "
        f"groups; shown is the near end, which must not be above the bound; not ruled out: "
        f"{max(limits[2] for limits in behind.values()):.3f}"
    )
    detail += f"; too small, of less than {found['needed']} {of}: {counts}" if counts else ""
    return Verdict(name, near, wanted.maximum, word(near <= wanted.maximum), detail)


def _behind(numbers: Sequence[float], lower_is_better: bool) -> tuple[float, float, float]:
    """By how much a group is worse than all others, with the near and the far end, of its gap with both limits."""
    gap, low, high = (float(number) for number in numbers)
    return (gap, low, high) if lower_is_better else (0.0 - gap, 0.0 - high, 0.0 - low)


def external_falls(config: GateConfig, metrics: Mapping[str, Any]) -> list[Verdict]:
    """At no other site is a figure clearly worse than at home by more than the bound.

    Args:
        config: the line's bounds.
        metrics: of the evaluate stage; ``falls`` are as ``evaluate.falls.falls_of`` gives them.
    """
    return [_fall(wanted, metrics) for wanted in config.external_falls]


def _fall(wanted: ExternalFall, metrics: Mapping[str, Any]) -> Verdict:
    name, there = f"external_fall {wanted.task} {wanted.set} {wanted.figure}", f"{wanted.task}/{wanted.set}"
    small = [part for part in metrics["too_few"] if part == there or part.startswith(f"{there}/")]
    if small:
        told = "; ".join(f"{part}: {metrics['not_evaluated'][part]}" for part in small)
        return Verdict(name, None, wanted.maximum, OFF, f"too small: {told}")
    for part in (wanted.task, there):
        numbers, reason = numbers_of(metrics, part, wanted.figure)
        if numbers is None:
            return Verdict(name, None, wanted.maximum, "fail", reason)
    found = metrics["falls"].get(wanted.task, {}).get(wanted.set, {}).get(wanted.figure)
    if found is None:
        detail = f"task {wanted.task!r} is not tested on set {wanted.set!r}: add it to the task's `external`"
        return Verdict(name, None, wanted.maximum, "fail", detail)
    near, far = float(found["fall_low"]), float(found["fall_high"])
    detail = (
        f"internal {found['internal']:.3f} ({found['internal_patients']} patients), external {found['external']:.3f} "
        f"({found['external_patients']}): a fall of {found['fall']:.3f} [{near:.3f}, {far:.3f}]; shown is its near "
        "end, which must not be above the bound"
    )
    return Verdict(name, near, wanted.maximum, word(near <= wanted.maximum), detail)
