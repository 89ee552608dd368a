"""A body must come at a pace, in every part of its way."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from starlette.requests import ClientDisconnect, Request

from serving.limits import Limits
from serving.pace import Pace, chunks
from serving.sniff import InputError

PACE = Pace(seconds=2.0, bytes_per_second=1000, window_seconds=0.2)


def received(parts: list[tuple[float, bytes]], pace: Pace = PACE, ends: bool = True) -> tuple[bytes, float]:
    """What came of a body whose parts come after so many seconds each, and how long it took.

    Args:
        parts: seconds before, bytes.
        pace: asked for.
        ends: whether the last part says so; else nothing comes any more.
    """
    waiting = list(parts)

    async def receive() -> dict[str, Any]:
        if not waiting:
            await anyio.sleep_forever()
        seconds, body = waiting[0]
        await anyio.sleep(seconds)
        waiting.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(waiting) or not ends}

    async def work() -> tuple[bytes, float]:
        begin, got = anyio.current_time(), b""
        try:
            async for chunk in chunks(Request({"type": "http", "headers": []}, receive), pace):
                got += chunk
        except InputError as error:
            error.seconds = anyio.current_time() - begin  # type: ignore[attr-defined]
            raise
        return got, anyio.current_time() - begin

    return anyio.run(work)


def test_a_body_that_comes_is_read_to_its_end() -> None:
    parts = [(0.0, b"a" * 1000), (0.15, b""), (0.1, b"b" * 500), (0.15, b"c" * 1)]
    assert received(parts)[0] == b"a" * 1000 + b"b" * 500 + b"c"


def test_a_small_file_on_a_slow_link_is_no_slow_upload() -> None:
    assert received([(0.15, b"ab")])[0] == b"ab"


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [(0.0, b"P")],
        [(0.05, b"x")] * 100,
        [(0.0, b"x" * 10**6)],  # half at once, and the rest never
        [(0.01, b"x" * 100)] * 30 + [(0.05, b"x")] * 100,
    ],
    ids=["nothing", "one byte", "drops", "a burst, then nothing", "a stream, then drops"],
)
def test_a_body_that_stalls_is_408(parts: list[tuple[float, bytes]]) -> None:
    with pytest.raises(InputError, match="is too slow: at least 1000 bytes a second") as caught:
        received(parts, ends=False)
    assert caught.value.status == 408
    assert caught.value.seconds < 1.5  # type: ignore[attr-defined]


def test_a_body_that_takes_too_long_is_408_however_steadily_it_comes() -> None:
    pace = Pace(seconds=0.5, bytes_per_second=1, window_seconds=0.2)
    with pytest.raises(InputError, match=r"is not complete after 0.5 s \(CTFOUNDRY_UPLOAD_SECONDS\)") as caught:
        received([(0.02, b"x" * 1000)] * 1000, pace)
    assert caught.value.status == 408
    assert 0.4 < caught.value.seconds < 0.8  # type: ignore[attr-defined]


def test_a_client_that_leaves_is_no_end_of_a_body() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def work() -> None:
        async for _ in chunks(Request({"type": "http", "headers": []}, receive), PACE):
            pass

    with pytest.raises(ClientDisconnect):
        anyio.run(work)


def test_the_service_asks_for_the_pace_of_its_limits() -> None:
    assert Pace.of(Limits(upload_seconds=7, upload_rate=9)) == Pace(7, 9, 10.0)
