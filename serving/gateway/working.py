"""What the gateway does with a study that is complete: every series is asked about, every answer delivered, once.

An answer is on the disk before it is delivered, and its delivery is in the queue when it has been taken. Where the
gateway is killed between the two, the same object goes out again, with the same UIDs: it is stored once. A while later
it is looked for where it went: an archive that dies may lose what it has acknowledged.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from serving.account import audit_log
from serving.gateway.asking import BrokenError, LaterError, Model, NothingError, Service
from serving.gateway.delivery import Delivery
from serving.gateway.queue import (
    ANSWERED,
    COMPLETE,
    DELIVERED,
    DUE,
    FAILED,
    NOTHING,
    Answer,
    Queue,
    Study,
)
from serving.gateway.spool import Images, Spool

log = logging.getLogger(__name__)

BEFORE_THE_END = (DUE, DELIVERED)
MOST_TRIES = 6
FIRST_WAIT, LONGEST_WAIT = 2.0, 300.0
REASON_CHARACTERS = 500


@dataclass(frozen=True)
class Times:
    """In seconds.

    Attributes:
        keep: for which images of an answered study stay, for the case that some come late.
        confirm: after a delivery, when the answer is looked for where it went; 0 trusts what was acknowledged.
    """

    keep: float = 3600.0
    confirm: float = 30.0


class Worker:
    """Works on complete studies, one answer at a time.

    Attributes:
        waits: why nothing goes on, in a line; empty while it does.
        delivered: answers, since it began.
    """

    def __init__(
        self, spool: Spool, queue: Queue, service: Service, delivery: Delivery, times: Times, lock: threading.Lock
    ) -> None:
        """``lock``: see :class:`serving.gateway.listener.Listener`."""
        self._spool, self._queue, self._service, self._delivery = spool, queue, service, delivery
        self._times, self._lock = times, lock
        self.waits, self.delivered = "", 0

    def step(self, going_on: Callable[[], bool] = lambda: True) -> float:
        """Do all that is due, while ``going_on``. Returns the seconds after which there may be more to do."""
        self._sweep()
        studies = self._queue.studies((COMPLETE,))
        if not studies:
            self._told("")
            return LONGEST_WAIT
        try:
            model = self._service.model()
            self._told("")
            waits = [self._study(study, model) for study in studies if going_on()]
        except LaterError as error:
            self._told(str(error))
            return error.seconds
        return min(waits, default=LONGEST_WAIT)

    def _study(self, study: Study, model: Model) -> float:
        """Ask what is due of a study; the seconds until more of it is, 0 where it has ended."""
        answers = {(answer.series, answer.ask): answer for answer in self._queue.answers(study.study)}
        asked: list[Answer] = []
        for images in self._spool.series_of(study.study):
            for ask in model.asks:
                answer = _begun(answers.get((images.series, ask)), images, ask)
                if answer.state in BEFORE_THE_END and answer.due_at <= time.time():
                    tried = self._tried if answer.state == DUE else self._confirmed
                    answer = tried(answer, images, model)
                self._queue.put(answer)
                asked.append(answer)
        due = [answer.due_at for answer in asked if answer.state in BEFORE_THE_END]
        if due:
            return max(0.0, min(due) - time.time())
        states = {answer.state for answer in asked}
        ended = FAILED if FAILED in states else ANSWERED if ANSWERED in states else NOTHING
        if self._queue.end(study.study, ended):  # else more of it has arrived
            self._spool.drop_results(study.study)
        _audit(study, model.digest, ended, asked)
        return 0.0

    def _tried(self, answer: Answer, images: Images, model: Model) -> Answer:
        """What becomes of one answer. Raises LaterError where it is the service or the PACS that cannot now."""
        kept = self._spool.result(images, answer.ask)
        try:
            if not kept.is_file():
                self._spool.keep_result(kept, self._service.ask(images, *model.asks[answer.ask]))
            self._delivery.deliver(kept)
        except NothingError as error:
            return replace(answer, state=NOTHING, reason=_line(error), digest=model.digest)
        except BrokenError as error:
            tries = answer.tries + 1
            log.warning("study %s, %s: %s (try %d of %d)", images.study, answer.ask, error, tries, MOST_TRIES)
            kept.unlink(missing_ok=True)
            if tries == MOST_TRIES:
                return replace(answer, state=FAILED, tries=tries, reason=_line(error), digest=model.digest)
            due = time.time() + min(LONGEST_WAIT, FIRST_WAIT * 2**tries)
            return replace(answer, tries=tries, due_at=due, reason=_line(error))
        self.delivered += 1
        due = time.time() + self._times.confirm
        done = replace(answer, state=DELIVERED, reason="", due_at=due, digest=model.digest)
        return done if self._times.confirm else self._confirmed(done, images, model)

    def _confirmed(self, answer: Answer, images: Images, model: Model) -> Answer:
        """What becomes of an answer that was delivered. Raises LaterError."""
        kept = self._spool.result(images, answer.ask)
        if self._times.confirm and kept.is_file() and self._delivery.holds(kept) is False:
            log.warning("study %s, %s: was taken, and is not there: it is delivered again", images.study, answer.ask)
            return replace(answer, state=DUE, due_at=0.0)
        self._queue.put(done := replace(answer, state=ANSWERED))
        kept.unlink(missing_ok=True)
        return done

    def _sweep(self) -> None:
        """Remove the images of studies whose time is over, and what never came whole."""
        self._spool.sweep(time.time())
        for name in self._spool.studies():
            with self._lock:
                study = self._queue.study(name)
                if study is None or study.ended_at is None:
                    continue
                if time.time() - study.ended_at >= self._times.keep:
                    self._spool.remove(name)

    def _told(self, waits: str) -> None:
        """Log why nothing goes on when that begins, and that it goes on when that ends."""
        if waits != self.waits:
            log.warning("waiting: %s", waits) if waits else log.info("going on")
        self.waits = waits


def _begun(known: Answer | None, images: Images, ask: str) -> Answer:
    """An answer as it stands now that the series has these images."""
    count, fingerprint = len(images.files), images.fingerprint
    fresh = Answer(images.study, images.series, ask, fingerprint, count, DUE, 0, 0.0, "", "")
    if known is None:
        return fresh
    if known.fingerprint == fingerprint:
        return known
    if known.state == ANSWERED and count < known.images:
        reason = f"{count} images came after all {known.images} were answered and forgotten; send the whole series"
        return replace(fresh, images=known.images, state=FAILED, reason=reason)
    return fresh


def _audit(study: Study, digest: str, outcome: str, answers: list[Answer]) -> None:
    """One line for one study, without identifiers."""
    audit_log.info(
        json.dumps({
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "who": study.sender or None,
            "study": study.study,
            "digest": digest,
            "route": "gateway",
            "outcome": outcome,
            "answers": {f"{answer.series} {answer.ask}": answer.state for answer in answers},
        })
    )  # fmt: skip


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:REASON_CHARACTERS]
