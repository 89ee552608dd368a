"""Names of the states that a deployed run may end in, beside Prefect's own; Prefect names its events after them."""

from __future__ import annotations

NOTHING_TO_DO = "NothingToDo"
REFUSED, NOT_REPRODUCED = "Refused", "NotReproduced"
REJECTED, TIMED_OUT = "Rejected", "TimedOut"  # of a promotion that waited for a person
FAILURES = ("GateFailed", "StageFailed", "NotCollected", REFUSED, NOT_REPRODUCED, TIMED_OUT)
