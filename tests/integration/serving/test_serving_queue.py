"""Who is let in, who is sent away and until when, and what becomes of all when the service ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from documented import conforms
from inprocess import Service, run, until

from serving.draining import LAST_SECONDS
from serving.forks import READ_AGAIN


def refused(answer: httpx.Response, status: int, says: str) -> int:
    """Seconds of Retry-After; 0 where there is none."""
    assert answer.status_code == status, answer.text
    conforms(answer.json(), {"$ref": "#/components/schemas/Error"})
    assert says in answer.json()["error"]
    assert (status in (429, 503)) == ("retry-after" in answer.headers)
    return int(answer.headers.get("retry-after", 0))


def test_beyond_the_queue_the_answer_is_429_and_says_when_to_come_again(service: Callable[..., Service]) -> None:
    one = service(1, queue=3)

    async def work() -> None:
        async with one.client() as client, anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(lambda: client.post("/embed", content="wait"))
            await until(lambda: one.app.load.queued == 3)
            one.app.load._worked.extend([8.0] * 16)
            answer = await client.post("/embed", content="ok")
            says = "files that wait or are worked on: 3, at most 3 (CTFOUNDRY_MAX_QUEUE); send it again later"
            assert refused(answer, 429, says) == 12  # half of three, at 8 s each
            assert one.app.load.uploads == 0
            assert (await client.get("/model")).status_code == 200
            one.go_on.touch()

    run(work)
    assert sorted(one.counts.outcomes) == ["answered", "busy_queue", *["embedded"] * 3]
    assert one.counts.steps.count("wait") == one.counts.steps.count("work") == 3


def test_a_client_that_leaves_while_it_waits_gives_its_place_up_at_once(service: Callable[..., Service]) -> None:
    one = service(1, queue=2)

    async def work() -> None:
        async with one.client() as client, anyio.create_task_group() as group:
            group.start_soon(lambda: client.post("/embed", content="wait"))
            await until(lambda: len(one.working()) == 1)
            gone = anyio.Event()
            group.start_soon(leaver, one, gone)
            await until(lambda: one.app.load.waiting == 1)
            refused(await client.post("/embed", content="ok"), 429, "CTFOUNDRY_MAX_QUEUE")
            gone.set()
            await until(lambda: one.app.load.waiting == 0)
            assert len(one.working()) == 1, "the one before is still at work"
            one.go_on.touch()
            assert (await client.post("/embed", content="ok")).status_code == 200

    run(work)
    assert sorted(one.counts.outcomes) == ["busy_queue", "disconnected", "embedded", "embedded"]


async def leaver(one: Service, gone: anyio.Event) -> None:
    body = [{"type": "http.request", "body": b"ok", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if body:
            return body.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": "/embed", "headers": [], "query_string": b""}
    await one.guarded(scope, receive, send)  # type: ignore[arg-type]


def test_uploads_have_places_of_their_own(service: Callable[..., Service]) -> None:
    """As many slow ones as may be sent: those who wait are served, /model answers, one more is sent away."""
    one, slow = service(1, uploads=2), anyio.Event()

    async def work() -> None:
        async with one.client() as client, anyio.create_task_group() as group:
            group.start_soon(lambda: client.post("/embed", content="wait"))
            await until(lambda: len(one.working()) == 1)
            for _ in range(2):
                group.start_soon(upload, one, slow)
            await until(lambda: one.app.load.uploads == 2)
            refused(await client.post("/embed", content="ok"), 429, "files being sent: 2, at most 2")
            assert (await client.get("/model")).status_code == 200
            assert one.app.load.queued == 1
            one.go_on.touch()
            slow.set()

    run(work)
    assert sorted(one.counts.outcomes) == ["answered", "busy_uploads", *["embedded"] * 3]


async def upload(one: Service, slow: anyio.Event) -> None:
    """A client whose last byte comes late."""
    sent: list[Any] = []
    parts = [(b"o", True), (b"k", False)]

    async def receive() -> dict[str, Any]:
        if not parts:
            await anyio.sleep_forever()
        if len(parts) == 1:
            await slow.wait()
        body, more = parts.pop(0)
        return {"type": "http.request", "body": body, "more_body": more}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/embed", "headers": [], "query_string": b""}
    await one.guarded(scope, receive, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 200


def test_a_service_that_ends_takes_no_more_and_answers_what_it_has(service: Callable[..., Service]) -> None:
    one, statuses, handed = service(1, drain_seconds=1, grace_seconds=30), list[int](), list[float]()

    async def work() -> None:
        async with one.client() as client, anyio.create_task_group() as group:

            async def send() -> None:
                statuses.append((await client.post("/embed", content="wait")).status_code)

            for _ in range(3):
                group.start_soon(send)
            await until(lambda: one.app.load.queued == 3)
            begin = time.monotonic()
            group.start_soon(one.app.drain.end, one.app.limits, lambda: handed.append(time.monotonic() - begin))
            await until(lambda: one.app.drain.begun)
            answer = await client.post("/embed", content="ok")
            assert refused(answer, 503, "the service is ending and takes no more files") == 1
            assert answer.headers["connection"] == "close"
            assert refused(await client.get("/readyz"), 503, "the service is ending") == 1
            told = await client.get("/model")
            assert (told.status_code, told.headers["connection"]) == (200, "close")
            await anyio.sleep(1.5)
            assert handed == [], "it ends with work in it"
            one.go_on.touch()

    run(work)
    assert statuses == [200, 200, 200]
    assert handed[0] > 1.5
    assert sorted(one.counts.outcomes) == ["answered", "draining", "draining", *["embedded"] * 3]


def test_what_is_not_done_within_the_grace_is_told_so(service: Callable[..., Service]) -> None:
    one, handed = service(1, drain_seconds=1, grace_seconds=1), list[float]()

    async def work() -> None:
        async with one.client() as client, anyio.create_task_group() as group:

            async def send() -> None:
                answer = await client.post("/embed", content="wait")
                refused(answer, 503, "the service is ending before this file was done; send it again")

            for _ in range(2):
                group.start_soon(send)
            await until(lambda: one.app.load.queued == 2)
            begin = time.monotonic()
            group.start_soon(one.app.drain.end, one.app.limits, lambda: handed.append(time.monotonic() - begin))

    run(work)
    assert one.counts.outcomes == ["cut_short"] * 2
    assert 1 <= handed[0] < 1 + LAST_SECONDS


@pytest.mark.parametrize("times", [1, READ_AGAIN, READ_AGAIN + 1])
def test_a_reader_that_is_ended_from_outside_costs_its_clients_nothing_but_not_for_ever(
    service: Callable[..., Service], times: int
) -> None:
    """The program and its twin die, and a child goes with them: nobody would see its end. The file is read again, and
    at last no more: it could be what ends them."""
    one = service(1)

    async def work() -> None:
        async with one.client() as client, anyio.create_task_group() as group:

            async def send() -> None:
                answer = await client.post("/embed", content="wait")
                if times <= READ_AGAIN:
                    assert (answer.status_code, answer.json()["task"]) == (200, "wait")
                else:
                    refused(answer, 503, "the process that reads scans has ended")

            group.start_soon(send)
            for _ in range(times):
                await until(lambda: len(one.working()) == 1)
                child = Path("/proc", one.working()[0])
                one.kill()
                await until(lambda child=child: not child.exists())  # type: ignore[misc]
            one.go_on.touch()

    run(work)
    assert one.counts.outcomes == ["embedded" if times <= READ_AGAIN else "reader_gone"]


def killed(one: Service) -> subprocess.Popen[bytes]:
    """The program that reads, ended from outside with its twin."""
    program = one.forks._process
    assert program is not None
    one.kill()
    return program


def test_a_reader_whose_end_the_system_tells_late_is_started_anew(
    service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket is closed a moment before its state can be asked for; a file that came just then was answered 500."""
    one = service(1)
    ended = killed(one)
    monkeypatch.setattr(ended, "poll", lambda: None)

    async def work() -> None:
        async with one.client() as client:
            assert (await client.post("/embed", content="ok")).status_code == 200

    run(work)
    assert one.forks._process is not ended
    assert one.counts.outcomes == ["embedded"]


def test_a_reader_that_is_ended_while_it_starts_costs_nobody_anything(
    service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files want the new program while it loads, and it is ended too."""
    one = service(2)
    first = killed(one)
    slow = "import os, sys, time; time.sleep(1); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    monkeypatch.setattr(one.forks, "_command", [sys.executable, "-c", slow, *one.forks._command[1:]])
    statuses: list[int] = []

    async def work() -> None:
        async with one.client() as client, anyio.create_task_group() as group:

            async def send() -> None:
                statuses.append((await client.post("/embed", content="ok")).status_code)

            group.start_soon(send)
            await until(lambda: one.forks._process not in (None, first))
            group.start_soon(send)
            await anyio.sleep(0.3)
            assert one.forks._process is not None
            one.forks._process.kill()

    run(work)
    assert statuses == [200, 200]
    assert one.counts.outcomes == ["embedded", "embedded"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_ends_the_service_ends_no_reader(service: Callable[..., Service], number: signal.Signals) -> None:
    """BentoML's supervisor sends it to the service's children; a service manager sends it to theirs, too."""
    one, statuses = service(1), []

    async def work() -> None:
        async with one.client() as client, anyio.create_task_group() as group:

            async def send() -> None:
                statuses.append((await client.post("/embed", content="wait")).status_code)

            group.start_soon(send)
            await until(lambda: len(one.working()) == 1)
            await until(lambda: one.twin() is not None)
            group = one.group()
            assert len(group) == 3
            for process in group:
                process.send_signal(number)
            await anyio.sleep(0.3)
            assert one.group() == group
            one.go_on.touch()

    run(work)
    assert statuses == [200]
