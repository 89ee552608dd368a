"""The gateway's spool, queue and worker: nothing is lost, nothing is answered twice, whatever comes between."""

from __future__ import annotations

import io
import os
import sqlite3
import tarfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.ct.keys import study_key
from components.errors import UserError
from serving.gateway.asking import BrokenError, LaterError, Model, NothingError
from serving.gateway.queue import ANSWERED, COMPLETE, DUE, FAILED, NOTHING, RECEIVING, Queue, sqlite_address
from serving.gateway.spool import Images, Spool
from serving.gateway.working import MOST_TRIES, Times, Worker

STUDY = "1.2.3"
NAME = study_key(STUDY)
in_a_file = pytest.mark.skipif("CTFOUNDRY_TEST_QUEUE" in os.environ, reason="the queue is in no file")


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "state")


@pytest.fixture
def address(tmp_path: Path) -> str:
    """Of the queue's database; tests/integration/serving/test_gateway_postgres.py sets another."""
    return os.environ.get("CTFOUNDRY_TEST_QUEUE") or sqlite_address(tmp_path / "queue.sqlite")


@pytest.fixture
def queue(address: str) -> Iterator[Queue]:
    made = Queue(address, uuid.uuid4().hex)
    yield made
    made.close()


def receive(spool: Spool, queue: Queue, *instances: str, series: str = "1.2.3.1") -> None:
    """Images arrive, and their sender ends in order."""
    for instance in instances:
        file = spool.incoming / "file"
        file.write_bytes(instance.encode() * 100)
        queue.arrived(spool.put(file, STUDY, series, instance), "SCANNER")
    queue.settled({NAME})


class Hospital:
    """A service and a PACS: what they were asked, what they took, and what comes in their way next."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.stored: list[bytes] = []
        self.troubles: list[Exception] = []
        self.refusals: list[Exception] = []
        self.mute = False

    def model(self) -> Model:
        return Model("d" * 64, {"classify": ("/classify", {"form": "dicom"})})

    def ask(self, images: Images, route: str, parameters: dict[str, str]) -> bytes:
        if self.troubles:
            raise self.troubles.pop(0)
        self.asked.append((route, len(images.files)))
        return b"".join(images.as_tar())[:10] + str(len(images.files)).encode()

    def holds(self, file: Path) -> bool | None:
        return None if self.mute else file.read_bytes() in self.stored

    def deliver(self, file: Path) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.stored.append(file.read_bytes())


@pytest.fixture
def hospital() -> Hospital:
    return Hospital()


@pytest.fixture
def worker(spool: Spool, queue: Queue, hospital: Hospital) -> Worker:
    return Worker(spool, queue, hospital, hospital, Times(3600.0, 0.0), threading.Lock())  # type: ignore[arg-type]


def complete(queue: Queue) -> list[str]:
    return queue.complete(0.0, 0.0, set())


def state(queue: Queue) -> str:
    study = queue.study(NAME)
    assert study is not None
    return study.state


def test_a_series_leaves_as_a_tar_that_is_as_long_as_announced(spool: Spool, queue: Queue) -> None:
    receive(spool, queue, "1", "22", "333" * 300)
    (images,) = spool.series_of(NAME)
    content = b"".join(images.as_tar())
    assert len(content) == images.tar_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        found = [archive.extractfile(member).read() for member in archive.getmembers()]  # type: ignore[union-attr]
    assert sorted(found) == sorted(text.encode() * 100 for text in ("1", "22", "333" * 300))


def test_an_image_that_comes_twice_is_one(spool: Spool, queue: Queue) -> None:
    receive(spool, queue, "1", "2", "1")
    (images,) = spool.series_of(NAME)
    assert len(images.files) == 2


@in_a_file
def test_neither_spool_nor_queue_holds_a_uid(spool: Spool, queue: Queue, tmp_path: Path) -> None:
    receive(spool, queue, "1.2.840.7")
    assert all("1.2" not in path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    content = (tmp_path / "queue.sqlite").read_bytes() + (tmp_path / "queue.sqlite-wal").read_bytes()
    assert STUDY.encode() not in content


def test_what_was_coming_in_when_the_gateway_ended_is_gone_and_the_rest_is_not(spool: Spool, queue: Queue) -> None:
    receive(spool, queue, "1")
    (spool.incoming / "half").write_bytes(b"x")
    again = Spool(spool.folder)
    assert list(again.incoming.iterdir()) == []
    assert again.studies() == [NAME]


def test_what_never_came_whole_goes_after_a_while(spool: Spool) -> None:
    (spool.incoming / "half").write_bytes(b"x")
    now = (spool.incoming / "half").stat().st_mtime
    spool.sweep(now + 3600)
    assert [path.name for path in spool.incoming.iterdir()] == ["half"]
    spool.sweep(now + 3601)
    assert list(spool.incoming.iterdir()) == []


def test_a_study_is_complete_after_quiet_or_patience_and_never_while_it_is_sent(queue: Queue) -> None:
    queue.arrived(NAME, "A", now=100.0)
    assert queue.complete(10, 60, set(), now=159.0) == []  # the association broke off
    assert queue.complete(10, 60, set(), now=160.0) == [NAME]
    queue.arrived(NAME, "A", now=200.0)
    queue.settled({NAME})
    assert queue.complete(10, 60, set(), now=209.0) == []
    assert queue.complete(10, 60, {NAME}, now=500.0) == []
    assert queue.complete(10, 60, set(), now=210.0) == [NAME]
    queue.arrived(NAME, "A", now=300.0)
    assert state(queue) == RECEIVING
    assert queue.request(NAME)
    assert queue.complete(10, 60, {NAME}, now=300.0) == [NAME]
    assert not queue.request(NAME)


def test_a_gateway_that_starts_gives_senders_time_and_finds_what_the_queue_missed(queue: Queue) -> None:
    queue.arrived(NAME, "A", now=0.0)
    queue.settled({NAME})
    queue.began_again([NAME, "e0000000000000000"], now=1000.0)
    assert queue.complete(10, 60, set(), now=1010.0) == []
    assert queue.complete(10, 60, set(), now=1060.0) == ["e0000000000000000", NAME]


def test_places_in_one_database_do_not_see_each_other(queue: Queue, address: str) -> None:
    other = Queue(address, uuid.uuid4().hex)
    queue.arrived(NAME, "A")
    assert other.studies() == []
    assert not other.request(NAME)
    other.arrived(NAME, "B")
    assert [study.sender for study in queue.studies()] == ["A"]
    other.close()


def test_a_study_is_answered_once(spool: Spool, queue: Queue, worker: Worker, hospital: Hospital) -> None:
    receive(spool, queue, "1", "2")
    assert complete(queue) == [NAME]
    worker.step()
    worker.step()
    assert state(queue) == ANSWERED
    receive(spool, queue, "1", "2")  # all of it again
    complete(queue)
    worker.step()
    assert state(queue) == ANSWERED
    assert hospital.asked == [("/classify", 2)]
    assert len(hospital.stored) == 1
    receive(spool, queue, "3")  # and one that came late
    complete(queue)
    worker.step()
    assert hospital.asked == [("/classify", 2), ("/classify", 3)]


def test_what_arrives_while_a_study_is_answered_is_answered_after(
    spool: Spool, queue: Queue, worker: Worker, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive(spool, queue, "1")
    complete(queue)
    deliver = hospital.deliver
    monkeypatch.setattr(hospital, "deliver", lambda file: (deliver(file), receive(spool, queue, "2")))
    worker.step()
    assert state(queue) == RECEIVING
    monkeypatch.setattr(hospital, "deliver", deliver)
    complete(queue)
    worker.step()
    assert hospital.asked == [("/classify", 1), ("/classify", 2)]
    assert state(queue) == ANSWERED


def test_an_answer_that_was_not_delivered_is_not_asked_for_again(
    spool: Spool, queue: Queue, worker: Worker, hospital: Hospital
) -> None:
    receive(spool, queue, "1")
    complete(queue)
    hospital.refusals = [LaterError("PACS: refuses connections", 7.0)]
    assert worker.step() == 7.0
    assert (worker.waits, state(queue)) == ("PACS: refuses connections", COMPLETE)
    worker.step()
    assert (worker.waits, state(queue)) == ("", ANSWERED)
    assert len(hospital.asked) == len(hospital.stored) == 1
    assert list((spool.folder / "results").iterdir()) == []


def test_an_answer_that_the_pacs_lost_is_delivered_again(
    spool: Spool, queue: Queue, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("serving.gateway.working.time.time", lambda: now)
    worker = Worker(spool, queue, hospital, hospital, Times(3600.0, 30.0), threading.Lock())  # type: ignore[arg-type]
    receive(spool, queue, "1")
    complete(queue)
    assert worker.step() == 30.0
    assert state(queue) == COMPLETE
    first = hospital.stored.pop()  # it died, and has lost it
    now = 30.0
    worker.step()
    worker.step()
    assert hospital.stored == [first]
    assert len(hospital.asked) == 1
    now = 60.0
    worker.step()
    assert state(queue) == ANSWERED
    assert list((spool.folder / "results").iterdir()) == []
    receive(spool, queue, "1", "2")  # where it cannot say, it is believed
    hospital.mute = True
    complete(queue)
    worker.step()
    now = 90.0
    worker.step()
    assert state(queue) == ANSWERED
    assert len(hospital.stored) == 2


def test_a_service_that_is_away_costs_no_try(spool: Spool, queue: Queue, worker: Worker, hospital: Hospital) -> None:
    receive(spool, queue, "1")
    complete(queue)
    hospital.troubles = [LaterError("busy", 1.0)] * (3 * MOST_TRIES)
    for _ in range(3 * MOST_TRIES):
        assert worker.step() == 1.0
    worker.step()
    assert state(queue) == ANSWERED


def test_a_failure_is_tried_again_later_and_not_for_ever(
    spool: Spool, queue: Queue, worker: Worker, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive(spool, queue, "1")
    complete(queue)
    hospital.troubles = [BrokenError("failed on it")] * MOST_TRIES
    now = 0.0
    monkeypatch.setattr("serving.gateway.working.time.time", lambda: now)
    waits = []
    for _ in range(MOST_TRIES):
        waits.append(worker.step())
        now += waits[-1]
    assert waits[:3] == [4.0, 8.0, 16.0]
    assert state(queue) == FAILED
    (answer,) = queue.answers(NAME)
    assert (answer.tries, answer.reason) == (MOST_TRIES, "failed on it")
    assert queue.again(NAME)
    worker.step()
    assert state(queue) == ANSWERED


def test_a_series_without_an_answer_is_told_with_its_reason(
    spool: Spool, queue: Queue, worker: Worker, hospital: Hospital
) -> None:
    receive(spool, queue, "1")
    complete(queue)
    hospital.troubles = [NothingError("no CT series in it")]
    worker.step()
    assert state(queue) == NOTHING
    assert [(answer.state, answer.reason) for answer in queue.answers(NAME)] == [(NOTHING, "no CT series in it")]
    assert not hospital.stored


def test_a_rest_that_comes_when_the_images_are_gone_is_not_taken_for_the_series(
    spool: Spool, queue: Queue, worker: Worker, hospital: Hospital
) -> None:
    receive(spool, queue, "1", "2", "3")
    complete(queue)
    worker.step()
    spool.remove(NAME)
    receive(spool, queue, "4")
    complete(queue)
    worker.step()
    assert state(queue) == FAILED
    assert "send the whole series" in queue.answers(NAME)[0].reason
    assert len(hospital.stored) == 1


def test_images_go_when_their_time_is_over_and_not_before(
    spool: Spool, queue: Queue, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive(spool, queue, "1")
    complete(queue)
    worker.step()
    worker.step()
    assert spool.studies() == [NAME]
    monkeypatch.setattr("serving.gateway.working.time.time", lambda: 1e12)
    worker.step()
    assert spool.studies() == []
    assert state(queue) == ANSWERED


def test_a_queue_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    for address in ("nonsense", "oracle://x", "mysql+nothing://x"):
        with pytest.raises(UserError, match="the queue's database"):
            Queue(address, "here")
    (tmp_path / "other.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match="the queue's database"):
        Queue(sqlite_address(tmp_path / "other.sqlite"), "here")


@in_a_file
def test_the_queue_is_on_the_disk_at_each_step(queue: Queue, tmp_path: Path) -> None:
    queue.arrived(NAME, "A")
    with sqlite3.connect(tmp_path / "queue.sqlite") as other:  # as whoever comes after a kill sees it
        assert other.execute("SELECT state FROM ctfoundry_gateway_studies").fetchall() == [(RECEIVING,)]
    assert DUE not in queue.counts()
