"""Connections of uvicorn that never finish a header are ended, and certificates of clients are named."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from serving.connections import refusal, subject, watch_connections

HEADERS = {b"x-frame-options": b"DENY"}


async def app(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def closed_after(parts: list[tuple[float, bytes]], header_seconds: float = 0.3) -> tuple[bytes, float]:
    """What a server sends to a client that sends these parts, each after so many seconds, and when it hangs up."""
    config = uvicorn.Config(app, port=0, lifespan="off", log_config=None, timeout_keep_alive=1)
    server = uvicorn.Server(config)
    config.load()
    assert watch_connections(server, HEADERS, header_seconds)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begin = time.monotonic()
    for seconds, part in parts:
        await asyncio.sleep(seconds)
        writer.write(part)
    got = await asyncio.wait_for(reader.read(), 10)
    seconds = time.monotonic() - begin
    writer.close()
    server.should_exit = True
    await serving
    return got, seconds


@pytest.mark.parametrize(
    "parts",
    [[], [(0.0, b"GET / HTTP/1.1\r\nHost: a\r\n")], [(0.1, b"G"), (0.1, b"E")]],
    ids=["nothing", "half a header", "drops"],
)
def test_a_header_that_does_not_come_ends_its_connection(parts: list[tuple[float, bytes]]) -> None:
    got, seconds = asyncio.run(closed_after(parts))
    assert got == b""
    assert 0.25 < seconds < 0.9


def test_a_second_header_that_does_not_come_does_too() -> None:
    whole = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    got, seconds = asyncio.run(closed_after([(0.0, whole), (0.2, b"GET / HT")]))
    assert got.count(b"HTTP/1.1 200") == 1
    assert 0.45 < seconds < 0.95


def test_requests_that_come_are_answered_and_a_connection_is_kept() -> None:
    whole = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    got, seconds = asyncio.run(closed_after([(0.1, whole), (0.4, whole), (0.4, whole)]))
    assert got.count(b"HTTP/1.1 200") == 3
    assert seconds > 1.5, "uvicorn's own time between requests"


def test_another_server_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    for other in (None, SimpleNamespace(), SimpleNamespace(config=SimpleNamespace(http_protocol_class=object))):
        assert not watch_connections(other, HEADERS)
    assert caplog.text.count("cannot be watched") == 3


CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


WRONG = {
    "a hello of TLS": b"\x16\x03\x01\x02\0",
    "no version": b"GET /\x00 HTTP/9.9\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "a chunk without its size": CHUNKED + b"no number\r\n",
}


@pytest.mark.parametrize("sent", WRONG.values(), ids=WRONG)
def test_what_is_no_http_is_refused_as_all_else_is(sent: bytes) -> None:
    got, _ = asyncio.run(closed_after([(0.0, sent)]))
    assert got == refusal(HEADERS)
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    for line in (b"content-type: application/json", b"connection: close", b"x-frame-options: DENY"):
        assert line in head.split(b"\r\n")
    assert json.loads(body) == {"error": "the request is not valid HTTP/1.1; see RFC 9112"}


def test_what_is_no_http_behind_a_request_takes_nothing_from_its_answer() -> None:
    whole = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    got, _ = asyncio.run(closed_after([(0.0, whole), (0.2, b"\0\0\r\n\r\n")]))
    assert got.startswith(b"HTTP/1.1 200")
    assert got.endswith(refusal(HEADERS))


def test_a_subject_is_one_text() -> None:
    told = {"subject": ((("organizationName", "St. Mary, Ltd"),), (("commonName", "gateway"),))}
    assert subject(told) == "CN=gateway,O=St. Mary\\, Ltd"
    assert subject(None) is None
    assert subject({}) is None
