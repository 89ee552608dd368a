"""Places for uploads and for the queue are counted apart, and those sent away are told when to come again."""

from __future__ import annotations

import anyio
import pytest

from serving.limits import Limits
from serving.load import LONGEST, BusyError, Load


def test_uploads_take_no_place_in_the_queue_and_the_queue_none_of_theirs() -> None:
    load = Load(Limits(uploads=2, queue=1))
    with load.uploading(), load.uploading():
        with pytest.raises(BusyError, match=r"^files being sent: 2, at most 2 \(CTFOUNDRY_MAX_UPLOADS\)") as caught:
            load.uploading().__enter__()
        assert (caught.value.status, caught.value.outcome) == (429, "busy_uploads")
        with load.queueing():
            assert (load.uploads, load.queued, load.waiting, load.working) == (2, 1, 1, 0)
            said = r"^files that wait or are worked on: 1, at most 1 \(CTFOUNDRY_MAX_QUEUE\)"
            with pytest.raises(BusyError, match=said):
                load.queueing().__enter__()
    assert (load.uploads, load.queued) == (0, 0)


def test_nobody_sends_a_file_for_which_there_is_no_place() -> None:
    load = Load(Limits(queue=1))
    with load.queueing(), pytest.raises(BusyError) as caught:
        load.uploading().__enter__()
    assert caught.value.outcome == "busy_queue"
    assert load.uploads == 0


def test_a_place_is_given_back_whatever_happens_in_it() -> None:
    load = Load(Limits())
    for place in (load.uploading, load.queueing):
        with pytest.raises(KeyError), place():
            raise KeyError
    assert (load.uploads, load.queued) == (0, 0)


@pytest.mark.parametrize(
    ("seconds", "queued", "at_once", "expected"),
    [([], 0, 1, 5), ([4.0, 8.0], 1, 1, 6), ([6.0], 16, 1, 48), ([6.0], 16, 4, 12), ([0.01], 2, 1, 1),
     ([300.0], 16, 1, LONGEST), ([99.0] * 3 + [2.0] * 16, 16, 1, 16)],
)  # fmt: skip
def test_the_estimate_is_half_of_the_queue_at_the_recent_pace(
    seconds: list[float], queued: int, at_once: int, expected: int
) -> None:
    load = Load(Limits(at_once=at_once))
    load.queued = queued
    load._worked.extend(seconds)
    assert load.retry_after() == expected


def test_a_turn_is_measured_and_so_is_work_that_fails() -> None:
    async def work() -> None:
        load = Load(Limits())
        for fails in (False, True):
            try:
                async with load.turn():
                    assert load.working == 1
                    await anyio.sleep(0.02)
                    if fails:
                        raise KeyError
            except KeyError:
                pass
        assert len(load._worked) == 2
        assert min(load._worked) > 0.01
        assert load.working == 0

    anyio.run(work)
