"""What a gate says, and the numbers that gates look up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """One gate's outcome.

    Attributes:
        gate: its name, with task and figure where it has them.
        figure: what was measured; None where there is none (the detail says why).
        bound: what it was held against; None as above.
        verdict: ``pass``, ``fail``, ``not judged`` where the parameters name no such gate, or ``off`` where there are
            too few patients to judge: nothing is refused, nor shown to be well.
        detail: what was compared, in words; for a failure without a figure, what to do.
    """

    gate: str
    figure: float | None
    bound: float | None
    verdict: str
    detail: str

    @property
    def failed(self) -> bool:
        return self.verdict == "fail"


def numbers_of(metrics: Mapping[str, Any], task: str, figure: str) -> tuple[Mapping[str, float] | None, str]:
    """The numbers of a figure, or None and why there are none."""
    tasks = metrics["tasks"]
    if task in tasks:
        if figure in tasks[task]:
            return tasks[task][figure], ""
        return None, f"task {task!r} has no figure {figure!r}; it has {', '.join(sorted(tasks[task]))}"
    reasons = metrics.get("not_evaluated", {})
    if task in reasons:
        return None, f"task {task!r} was not evaluated: {reasons[task]}"
    return None, f"task {task!r} is unknown; evaluated were {', '.join(sorted(tasks)) or 'none'}"


def word(passed: bool) -> str:
    return "pass" if passed else "fail"
