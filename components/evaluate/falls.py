"""By how much a task goes worse at other sites than at home."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from components.tasks.interface import Measure
from components.tasks.scores import DIGITS


def falls_of(
    tasks: Mapping[str, Any],
    judged: Mapping[str, Mapping[str, Mapping[str, float]]],
    measures: Mapping[str, Measure],
    patients: Mapping[str, int],
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Task to external set to figure to numbers; of sets that were evaluated, in all parts of the task.

    ``internal`` and ``external``, the figures; ``fall``, by how much the external one is worse, whichever way is worse;
    ``fall_low`` and ``fall_high``, its 95 % limits; ``internal_patients`` and ``external_patients``.

    Args:
        tasks: name to block.
        judged: task, or part of one, to figure to numbers, ``value``, ``low`` and ``high`` among them.
        measures: of the figures.
        patients: task, or part of one, to how many test patients it has.
    """
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for name, task in tasks.items():
        sites = set(getattr(task, "external", ()))
        for site in sorted(sites):
            part = f"{name}/{site}"
            if name in judged and part in judged and _made_of(judged, part) == _made_of(judged, name) - sites:
                counts = {"internal_patients": patients[name], "external_patients": patients[part]}
                found.setdefault(name, {})[site] = {
                    figure: _fall(judged[name][figure], there, measures[figure]) | counts
                    for figure, there in judged[part].items()
                    if figure in judged[name]
                }
    return found


def _made_of(judged: Mapping[str, Any], name: str) -> set[str]:
    """What a task's figure is the mean of: with a finding less it would be another figure."""
    return {part.removeprefix(f"{name}/") for part in judged if part.rpartition("/")[0] == name}


def _fall(here: Mapping[str, float], there: Mapping[str, float], measure: Measure) -> dict[str, float]:
    """Limits of the difference of two figures of different patients, from the limits of each (Zou and Donner, Stat.
    Med. 2008, doi 10.1002/sim.3095): uneven as those are, and not empty where a figure is 1 in every patient."""
    sign = -1.0 if measure.lower_is_better else 1.0
    fall = sign * (here["value"] - there["value"])
    # What makes the fall smaller is a worse figure here or a better one there.
    worse, better = ("low", "high") if sign > 0 else ("high", "low")
    low = fall - math.hypot(here["value"] - here[worse], there[better] - there["value"])
    high = fall + math.hypot(here[better] - here["value"], there["value"] - there[worse])
    numbers = {"fall": fall, "fall_low": low, "fall_high": high}
    return {"internal": here["value"], "external": there["value"]} | {
        name: round(number, DIGITS) for name, number in numbers.items()
    }
