"""Children that wait for a request, with what takes long done already, as on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from inprocess import Service, run, until

from serving.program import Warm

NUMBER = 2


@pytest.fixture
def warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    one = Service(tmp_path, 60, Warm(NUMBER, 3600), again=0.1)
    yield one
    one.close()


async def filled(one: Service, before: set[int] | None = None) -> set[int]:
    """As many wait as are to, none of them of those ``before``."""
    await until(lambda: len(one.waiting()) == NUMBER and not one.waiting() & (before or set()))
    return one.waiting()


def test_each_answers_one_request_and_is_replaced(warm: Service) -> None:
    async def work() -> None:
        async with warm.client() as client:
            for _ in range(3):
                waiting = await filled(warm)
                answer = await client.post("/embed", content="ok")
                assert answer.json()["process"] in waiting
                await until(lambda: answer.json()["process"] not in warm.waiting())  # noqa: B023
                assert len(waiting & await filled(warm)) == NUMBER - 1

    run(work)


def test_more_requests_than_wait_are_answered(warm: Service) -> None:
    warm.renew(at_once=NUMBER + 2)
    processes = []

    async def work() -> None:
        waiting = await filled(warm)
        async with warm.client() as client, anyio.create_task_group() as group:

            async def send() -> None:
                answer = await client.post("/embed", content="wait")
                processes.append(answer.json()["process"])

            for _ in range(NUMBER + 2):
                group.start_soon(send)
            await until(lambda: len(warm.working()) == NUMBER + 2)
            warm.go_on.touch()
        assert waiting < set(processes)

    run(work)
    assert len(set(processes)) == NUMBER + 2


def test_what_is_prepared_and_the_waiting_count_against_no_request(tmp_path: Path) -> None:
    """A child takes half a GiB more than a request may have, and waits for longer than one may work."""
    one = Service(tmp_path, 4, Warm(NUMBER, 3600))

    async def work() -> None:
        async with one.client() as client:
            await filled(one)
            await anyio.sleep(5)
            assert (await client.post("/embed", content="ok")).status_code == 200
            for task, says in (("memory", "needs more than 1 GiB of memory"), ("sleep", "took longer than 4 s")):
                answer = await client.post("/embed", content=task)
                assert answer.status_code == 422
                assert says in answer.json()["error"]

    run(work)
    one.close()


def test_those_that_nobody_asks_end_until_somebody_does(tmp_path: Path) -> None:
    one = Service(tmp_path, 60, Warm(NUMBER, 1.0), again=0.1)

    async def work() -> None:
        async with one.client() as client:
            await until(lambda: len(one.prepared()) >= NUMBER)
            await until(lambda: one.waiting() == set())
            before = one.prepared()
            assert (await client.post("/embed", content="ok")).status_code == 200
            await until(lambda: len(one.prepared() - before) == 1 + NUMBER)
            await until(lambda: one.waiting() == set())

    run(work)
    one.close()


def test_they_end_with_the_program_and_its_twin_has_its_own(warm: Service) -> None:
    async def work() -> None:
        async with warm.client() as client:
            waiting = await filled(warm)
            await until(lambda: warm.twin() is not None)
            warm.program().kill()
            assert not waiting & await filled(warm, waiting)
            assert (await client.post("/embed", content="ok")).status_code == 200

    run(work)


def test_one_that_is_ended_while_it_waits_is_replaced_and_costs_nobody_anything(warm: Service) -> None:
    async def work() -> None:
        async with warm.client() as client:
            waiting = await filled(warm)
            for one in warm.group():
                if one.pid in waiting:
                    one.kill()
            assert (await client.post("/embed", content="ok")).status_code == 200
            await filled(warm, waiting)

    run(work)


def test_what_cannot_be_prepared_is_told_to_a_request_and_tried_again_for_it(tmp_path: Path) -> None:
    (tmp_path / "shut").touch()
    one = Service(tmp_path, 60, Warm(NUMBER, 3600))

    async def work() -> None:
        async with one.client() as client:
            await filled(one)
            answer = await client.post("/embed", content="ok")
            assert answer.status_code == 503
            assert answer.json() == {"error": "nothing can be prepared; send it again later"}
            assert int(answer.headers["retry-after"]) >= 1
            waiting = await filled(one)
            one.shut.unlink()
            answer = await client.post("/embed", content="ok")
            assert (answer.status_code, answer.json()["process"] in waiting) == (200, True)

    run(work)
    assert one.counts.outcomes == ["gpu", "embedded"]
    one.close()
