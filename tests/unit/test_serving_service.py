"""What BentoML does for each request, and what of it is left out."""

from __future__ import annotations

import asyncio
from typing import Any

import serving.service  # noqa: F401


def test_no_timer_outlives_its_request() -> None:
    from bentoml._internal.server.http.traffic import TimeoutMiddleware

    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message["status"])

    async def work() -> int:
        before = len(asyncio.get_running_loop()._scheduled)  # type: ignore[attr-defined]
        for _ in range(3):
            await TimeoutMiddleware(app, 300)({"type": "http"}, receive, send)
        return len(asyncio.get_running_loop()._scheduled) - before  # type: ignore[attr-defined]

    assert asyncio.run(work()) == 0
    assert sent == [200] * 3
