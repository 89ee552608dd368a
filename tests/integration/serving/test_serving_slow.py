"""The service under clients that send slowly, as many as it had places for: all others are served."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from client import post
from conftest import running

SLOW = 16
SECONDS = 8  # in which all of what follows is seen, on a busy machine too


@pytest.fixture(scope="module")
def service(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    bounds = {"CTFOUNDRY_UPLOAD_SECONDS": str(SECONDS), "CTFOUNDRY_MAX_UPLOADS": str(SLOW + 1)}
    with running(bundle, tmp_path_factory.mktemp("bentoml"), **bounds) as (url, _):
        yield url


def slow_upload(url: str) -> socket.socket:
    """A client that has sent its header and one byte of a megabyte."""
    host, port = url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), timeout=30)
    client.sendall(f"POST /embed HTTP/1.1\r\nHost: {host}\r\nContent-Length: {2**20}\r\n\r\nP".encode())
    return client


def test_slow_uploads_stop_nobody_and_are_ended_with_408(service: str, good: bytes) -> None:
    clients = [slow_upload(service) for _ in range(SLOW)]
    begin = time.monotonic()
    try:
        while "ctfoundry_uploads 16.0" not in httpx.get(f"{service}/metrics", timeout=5).text:
            assert time.monotonic() < begin + SECONDS, "they were not let in"
        assert post(service, good).status_code == 200
        for path in ("/model", "/", "/docs.json", "/healthz", "/readyz", "/metrics"):
            assert httpx.get(f"{service}{path}", timeout=5).status_code == 200, path
        assert time.monotonic() < begin + SECONDS, "the machine was too slow to see it"
        clients.append(slow_upload(service))
        time.sleep(0.2)
        crowded = post(service, good)
        assert crowded.status_code == 429
        assert int(crowded.headers["retry-after"]) >= 1
        for client in clients[:SLOW]:
            answer = b""
            while not answer.endswith(b"}"):  # header and body come apart
                more = client.recv(65536)
                assert more, answer
                answer += more
            assert answer.startswith(b"HTTP/1.1 408 "), answer
            assert b'{"error":"upload is not complete after 8 s (CTFOUNDRY_UPLOAD_SECONDS)"}' in answer
            assert b"\r\nconnection: close\r\n" in answer
    finally:
        for client in clients:
            client.close()
    assert time.monotonic() < begin + SECONDS + 5
    assert post(service, good).status_code == 200
    text = httpx.get(f"{service}/metrics", timeout=5).text
    assert f'ctfoundry_requests_total{{outcome="refused_408",route="embed"}} {SLOW}.0' in text
