"""Adding up what processes use, some of which end between two looks."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from flows.costs.members import Key

Amounts = tuple[float, float, float]  # processor seconds, bytes read from disks, bytes written to them
NOTHING: Amounts = (0.0, 0.0, 0.0)


def plus(one: Amounts, other: Amounts) -> Amounts:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


@dataclass(frozen=True)
class Seen:
    """A process at one moment. ``used``: by itself and by the children that it has waited for, as the kernel counts;
    ``taken``: that part of it, or more, that it may have from its children."""

    parent: int
    used: Amounts
    taken: Amounts


class Ledger:
    """What the processes of a stage have used so far, those that have ended with what they had last been seen to use.

    The kernel hands what a process used to its parent, where that waits for it. Nobody does so for a daemon, or for the
    workers of Ray, whose parent ignores its children's ends: they would be missed in the parent's figures.
    """

    def __init__(self) -> None:
        self._living: dict[Key, Seen] = {}
        self._lost: Amounts = NOTHING  # of those whom nobody waited for

    def update(self, now: dict[Key, Seen]) -> None:
        """Take note of the processes that there are now."""
        ended = {key: seen for key, seen in self._living.items() if key not in now}
        by_pid = {key[0]: key for key in self._living}
        owed: dict[Key, Amounts] = defaultdict(lambda: NOTHING)
        for key, seen in ended.items():
            heir = by_pid.get(seen.parent)
            passed = {key}
            while heir in ended and heir not in passed:  # it may have waited, and ended itself since
                passed.add(heir)
                heir = by_pid.get(ended[heir].parent)
            if heir is None or heir in passed:
                self._lost = plus(self._lost, seen.used)
            else:
                owed[heir] = plus(owed[heir], seen.used)
        for heir, amounts in owed.items():
            got = zip(amounts, now[heir].taken, self._living[heir].taken, strict=True)
            cpu, read, written = (max(0.0, due - (after - before)) for due, after, before in got)
            self._lost = plus(self._lost, (cpu, read, written))
        self._living = dict(now)

    def last(self, key: Key) -> Seen | None:
        """A process as it was seen last; None of an ended or a new one."""
        return self._living.get(key)

    @property
    def total(self) -> Amounts:
        amounts = self._lost
        for seen in self._living.values():
            amounts = plus(amounts, seen.used)
        return amounts
