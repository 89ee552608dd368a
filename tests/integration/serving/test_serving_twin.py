"""Something from outside ends the program that reads: its twin goes on, at whatever moment, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import psutil
import pytest
from inprocess import APART, Service, alive, run, until
from released import ROOT

from serving import forks
from serving.forks import READ_AGAIN
from serving.program import AGAIN_SECONDS

NEVER = 3600.0  # seconds
MOMENTS_MS = (0, 0.3, 1, 2, 3, 5, 8, 12, 20, 40)


@contextmanager
def no_start(one: Service) -> Iterator[None]:
    """A program that is not there cannot be started anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one.forks, "_command", [sys.executable, "-c", "raise SystemExit(1)"])
        yield


async def followed(one: Service, program: psutil.Process) -> None:
    """The program has ended, and another has its twin."""
    await until(lambda: not program.is_running() or program.status() == psutil.STATUS_ZOMBIE)
    await until(lambda: one.twin() is not None)


def test_its_twin_goes_on_as_often_as_need_be(service: Callable[..., Service]) -> None:
    one, seen = service(1), set()

    async def work() -> None:
        async with one.client() as client:
            for _ in range(4):
                await until(lambda: one.twin() is not None)
                program, twin = one.program(), one.twin()
                program.kill()
                assert (await client.post("/embed", content="ok")).status_code == 200
                await followed(one, program)
                assert one.program() == twin
                seen.add(program.pid)

    with no_start(one):
        run(work)
    assert len(seen) == 4
    assert one.counts.outcomes == ["embedded"] * 4


def test_what_was_in_work_is_done_by_the_twin(service: Callable[..., Service]) -> None:
    one, answers = service(2), list[httpx.Response]()

    async def work() -> None:
        async with one.client() as client, anyio.create_task_group() as group:

            async def send() -> None:
                answers.append(await client.post("/embed", content="wait"))

            for _ in range(2):
                group.start_soon(send)
            for _ in range(READ_AGAIN):
                await until(lambda: len(one.working()) == 2 and one.twin() is not None)
                before, program = one.working(), one.program()
                program.kill()
                await until(lambda before=before: not set(before) & set(one.working()))  # type: ignore[misc]
            await until(lambda: len(one.working()) == 2)
            one.go_on.touch()

    with no_start(one):
        run(work)
    assert [answer.status_code for answer in answers] == [200, 200]


@pytest.mark.parametrize("both", [False, True], ids=["the program", "the program and its twin"])
def test_at_any_moment_of_a_request(service: Callable[..., Service], both: bool) -> None:
    one, statuses = service(2), list[int]()

    async def work() -> None:
        async with one.client() as client:
            for moment in MOMENTS_MS:
                await until(lambda: one.twin() is not None)
                ended = [*([one.twin()] if both else []), one.program()]
                async with anyio.create_task_group() as group:

                    async def send() -> None:
                        statuses.append((await client.post("/embed", content="ok")).status_code)

                    group.start_soon(send)
                    group.start_soon(send)
                    await anyio.sleep(moment / 1000)
                    for process in ended:
                        assert process is not None
                        process.kill()
                assert (await client.post("/embed", content="ok")).status_code == 200

    run(work)
    assert statuses == [200] * 2 * len(MOMENTS_MS)


def test_a_twin_that_was_ended_is_made_again(service: Callable[..., Service]) -> None:
    """While a request is in work, whose end the new one does not hold; and it does nothing but wait."""
    one, statuses = service(1), list[int]()

    async def work() -> None:
        async with one.client() as client:
            await until(lambda: one.twin() is not None)
            twin = one.twin()
            assert twin is not None
            with anyio.fail_after(60):
                async with anyio.create_task_group() as group:

                    async def send() -> None:
                        statuses.append((await client.post("/embed", content="wait")).status_code)

                    group.start_soon(send)
                    await until(lambda: len(one.working()) == 1)
                    twin.kill()
                    await until(lambda: one.twin() not in (None, twin))
                    one.go_on.touch()
            assert statuses == [200]
            await anyio.sleep(AGAIN_SECONDS + 0.5)
            assert set(one.group()) == {one.program(), one.twin()}
            one.program().kill()
            assert (await client.post("/embed", content="ok")).status_code == 200

    with no_start(one):
        run(work)


def test_whatever_ends_twins_has_no_new_one_at_once(tmp_path: Path) -> None:
    """Else a program whose twins end by themselves would do nothing but fork."""
    one = Service(tmp_path, 60, again=NEVER)

    async def work() -> None:
        async with one.client() as client:
            await until(lambda: one.twin() is not None)
            twin, first = one.twin(), one.program()
            assert twin is not None
            twin.kill()
            await until(lambda: not twin.is_running())
            for _ in range(3):
                assert (await client.post("/embed", content="ok")).status_code == 200
                assert one.twin() is None
            first.kill()
            assert (await client.post("/embed", content="ok")).status_code == 200
            assert one.forks._process is not None
            assert one.program().pid == one.forks._process.pid != first.pid

    run(work)
    one.close()


def test_programs_that_end_at_once_follow_each_other_slowly(tmp_path: Path) -> None:
    """Else one that ends by itself, and its twin after it, would fork for ever."""
    one = Service(tmp_path, 60, again=NEVER)

    async def work() -> None:
        await until(lambda: one.twin() is not None)
        program, twin = one.program(), one.twin()
        program.kill()
        await until(lambda: one.program() == twin)
        await anyio.sleep(0.5)
        assert one.group() == [twin]
        one.kill()

    run(work)
    one.close()


def test_a_twin_that_stands_still_holds_nobody_up(tmp_path: Path) -> None:
    """As one does that is being made."""
    one = Service(tmp_path, 60)

    async def work() -> None:
        await until(lambda: one.twin() is not None)
        twin = one.twin()
        assert twin is not None
        twin.suspend()
        async with one.client() as client:
            for _ in range(2):
                assert (await client.post("/embed", content="ok")).status_code == 200
        await anyio.to_thread.run_sync(one.close)

    run(work)


def test_a_program_that_stands_still_is_ended_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Service(tmp_path, 60)
    monkeypatch.setattr(forks, "END_SECONDS", 0.5)
    run(lambda: until(lambda: one.twin() is not None))
    one.program().kill()  # its twin stands still, which nobody started
    run(lambda: until(lambda: one.program().pid != one.forks._process.pid))  # type: ignore[union-attr]
    one.program().suspend()
    one.close()


OWNER = """
import sys, time
from components.confined import Bounds
from serving.forks import Forks
forks = Forks(sys.argv[1:], {"PYTHONPATH": sys.path[-1]}, Bounds())
forks.start()
print(forks._process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("followed", [False, True], ids=["the first program", "its twin"])
def test_nothing_is_left_when_the_service_ends(tmp_path: Path, number: signal.Signals, followed: bool) -> None:
    (marks := tmp_path / "marks").mkdir()
    command = [sys.executable, str(APART), str(marks), "60", "2", "600", "0.1"]
    owner = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.append({str(ROOT)!r}){OWNER}", *command],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert owner.stdout is not None
    group = int(owner.stdout.readline())

    async def work() -> None:
        await until(lambda: len(alive(group)) == 4)  # the program, its twin, and two that wait
        if followed:
            os.kill(group, signal.SIGKILL)
            await until(lambda: len(alive(group)) == 4 and group not in {one.pid for one in alive(group)})
        owner.send_signal(number)
        owner.wait()
        await until(lambda: alive(group) == [])

    try:
        run(work)
    finally:
        owner.kill()
        for one in alive(group):
            one.kill()
    owner.stdout.close()
