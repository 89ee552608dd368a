"""What a request costs ends with it: at most so many work at once, whoever leaves, whatever crashes, whoever waits."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from inprocess import Service, run, until

from components.confined import Bounds
from components.errors import UserError
from serving.forks import Forks, ReaderGoneError

BOTH = ["disconnected", "embedded"]
ENDS = {
    "crash": ("killed_crash", "its reader crashed (SIGSEGV)"),
    "memory": ("killed_memory", "needs more than 1 GiB of memory"),
    "sleep": ("killed_deadline", "took longer than 3 s"),
    "key": ("unreadable", "not readable (KeyError)"),
    "refuse": ("refused_422", "not a CT"),
}


def test_what_a_file_does_to_its_reader_is_422_and_the_next_is_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = Service(tmp_path, seconds=3)

    async def work() -> None:
        async with one.client() as client:
            for task, (_, says) in ENDS.items():
                answer = await client.post("/embed", content=task)
                assert (answer.status_code, list(answer.json())) == (422, ["error"]), task
                assert says in answer.json()["error"]
                assert (await client.post("/embed", content="ok")).json()["task"] == "ok"

    run(work)
    one.forks.close()
    assert one.counts.outcomes[::2] == [outcome for outcome, _ in ENDS.values()]
    assert set(one.counts.outcomes[1::2]) == {"embedded"}
    assert "SECRET-PATIENT" not in caplog.text
    assert one.working() == []


def test_a_request_whose_time_is_over_stops_its_work_and_only_then_gives_its_turn_away(
    service: Callable[..., Service],
) -> None:
    one, most, statuses = service(1, request_seconds=1), 0, []

    async def work() -> None:
        nonlocal most
        async with one.client() as client, anyio.create_task_group() as group:

            async def send() -> None:
                answer = await client.post("/embed", content="wait")
                statuses.append(answer.status_code)
                said = "took longer than 1 s, its upload and its waiting included (CTFOUNDRY_REQUEST_SECONDS)"
                assert answer.json() == {"error": said}

            for _ in range(3):
                group.start_soon(send)
            while len(statuses) < 3:
                most = max(most, len(one.working()))
                await anyio.sleep(0.02)
        async with one.client() as client:
            assert (await client.post("/embed", content="ok")).status_code == 200

    run(work)
    assert statuses == [504, 504, 504]
    assert most == 1
    assert one.counts.outcomes == ["timed_out"] * 3 + ["embedded"]


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "killed"])
def test_a_turn_is_given_only_when_the_work_before_has_ended(service: Callable[..., Service], finished: bool) -> None:
    """However long that takes: here the program that ends a child, and sees its end, stands still meanwhile."""
    one, statuses = service(1), []
    program = one.program()

    async def work() -> None:
        async with one.client() as client, anyio.create_task_group() as group, anyio.create_task_group() as first:

            async def second() -> None:
                statuses.append((await client.post("/embed", content="ok")).status_code)

            first.start_soon(lambda: client.post("/embed", content="wait"))
            await until(lambda: len(one.working()) == 1)
            group.start_soon(second)
            await until(lambda: one.turns().tasks_waiting == 1)
            program.suspend()
            try:
                if finished:
                    one.go_on.touch()
                else:
                    first.cancel_scope.cancel()
                with anyio.CancelScope(shield=True), anyio.move_on_after(1):
                    await until(lambda: one.turns().tasks_waiting == 0)
                assert one.turns().tasks_waiting == 1, "the next one has its turn, and the work before it goes on"
            finally:
                program.resume()

    run(work)
    assert statuses == [200]
    assert one.counts.outcomes == ["embedded" if finished else "cancelled", "embedded"]


def test_at_most_so_many_work_at_once(service: Callable[..., Service]) -> None:
    one, most = service(2, request_seconds=2), 0

    async def work() -> None:
        nonlocal most
        async with one.client() as client, anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(lambda: client.post("/embed", content="wait"))
            deadline = time.monotonic() + 60
            while len(one.counts.outcomes) < 5 and time.monotonic() < deadline:
                most = max(most, len(one.working()))
                await anyio.sleep(0.02)

    run(work)
    assert most == 2


@pytest.mark.parametrize("working", [True, False], ids=["while it is worked on", "while it waits"])
def test_work_for_a_client_that_has_left_is_not_done(service: Callable[..., Service], working: bool) -> None:
    """Of two clients, one leaves; what it asked for ends, or never begins."""
    one, gone = service(1), anyio.Event()
    sent: list[dict[str, Any]] = []

    async def leaver() -> None:
        body = [{"type": "http.request", "body": b"wait", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if body:
                return body.pop()
            if not gone.is_set():  # as uvicorn: whoever asks without waiting is told, too
                await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/embed", "headers": [], "query_string": b""}
        await one.guarded(scope, receive, send)  # type: ignore[arg-type]

    async def work() -> None:
        async with one.client() as client, anyio.create_task_group() as group:
            if not working:
                group.start_soon(lambda: client.post("/embed", content="wait"))
                await until(lambda: len(one.working()) == 1)
            group.start_soon(leaver)
            if working:
                await until(lambda: len(one.working()) == 1)
            else:
                await anyio.sleep(0.2)
            before = one.begun.read_text()
            gone.set()
            if not working:
                await anyio.sleep(0.2)
                one.go_on.touch()  # the other's work is done, and it would be this one's turn
            await until(lambda: sorted(one.counts.outcomes) == (["disconnected"] if working else BOTH))
            assert one.begun.read_text() == before, "its work was begun"
            await until(lambda: one.working() == [])

    run(work)


def test_the_program_that_reads_is_started_anew_where_it_and_its_twin_were_killed(
    service: Callable[..., Service],
) -> None:
    one = service(1)
    one.kill()

    async def work() -> None:
        async with one.client() as client:
            assert (await client.post("/embed", content="ok")).status_code == 200

    run(work)


def test_a_program_that_cannot_be_started_anew_is_503(
    service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no fault of the file: its client is to come again, and does not hear that the file is unreadable."""
    one = service(1)
    one.kill()

    async def work() -> None:
        async with one.client() as client:
            with monkeypatch.context() as patch:
                patch.setattr(one.forks, "_command", [sys.executable, "-c", "raise SystemExit(1)"])
                answer = await client.post("/embed", content="ok")
                assert answer.status_code == 503
                says = {"error": "the process that reads scans cannot be started anew; see the log"}
                assert answer.json() == says
                assert int(answer.headers["retry-after"]) >= 1
            assert (await client.post("/embed", content="ok")).status_code == 200

    run(work)
    assert one.counts.outcomes == ["reader_gone", "embedded"]


def test_a_program_that_does_not_start_is_one_line(tmp_path: Path) -> None:
    from serving import worker

    forks = Forks(worker.command(tmp_path), worker.environment(), Bounds())
    with pytest.raises(UserError, match="this is no release folder"):
        forks.start()


def test_children_end_with_the_service(service: Callable[..., Service]) -> None:
    one = service(1)
    task = one.marks.parent / "task"
    task.write_text("sleep")

    async def asks() -> None:
        with pytest.raises(ReaderGoneError):
            await one.forks.run({"paths": {"scan": str(task)}, "scratch": str(one.scratch)})

    async def work() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(asks)
            await until(lambda: len(one.working()) == 1)
            await anyio.to_thread.run_sync(one.forks.close)
            assert one.working() == []

    run(work)
    (one.scratch / "unpacked").unlink()
    one.forks.start()
