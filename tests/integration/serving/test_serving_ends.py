"""SIGTERM to the whole service, as an orchestrator sends it."""

from __future__ import annotations

import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest
from client import ct_slice, zipped
from conftest import started
from released import first_answer, free_port

from tests.served import served

DRAIN = 3


def figure(url: str, name: str) -> float:
    text = httpx.get(f"{url}/metrics", timeout=5).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"ctfoundry_{name} "))


def test_what_is_in_work_is_answered_and_probes_see_the_end_coming(bundle: Path, tmp_path: Path, good: bytes) -> None:
    port = free_port()
    server, url = started(bundle, tmp_path, port, CTFOUNDRY_DRAIN_SECONDS=str(DRAIN)), f"http://127.0.0.1:{port}"
    many, answers = zipped({f"{i:04d}": ct_slice(i, "5.5") for i in range(150)}), list[httpx.Response]()
    try:
        first_answer(server, f"{url}/readyz", tmp_path / "log")
        kept = httpx.Client(timeout=30)  # a balancer's connection, open before
        assert kept.get(f"{url}/readyz").status_code == 200
        senders = [
            threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/embed", content=many, timeout=60)))
            for _ in range(3)
        ]
        for sender in senders:
            sender.start()
        while figure(url, "working") + figure(url, "waiting") < 3:
            assert server.poll() is None
        server.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        not_ready = until_not_ready(url, begin)
        assert not_ready.headers["retry-after"] == str(DRAIN)
        assert httpx.get(f"{url}/livez", timeout=5).status_code == 200
        seen = kept.get(f"{url}/readyz")
        assert (seen.status_code, seen.headers["connection"]) == (503, "close")
        refused = httpx.post(f"{url}/embed", content=good, timeout=5)
        assert (refused.status_code, refused.headers["connection"]) == (503, "close")
        assert refused.json() == {"error": "the service is ending and takes no more files"}
        assert refused.headers["retry-after"] == str(DRAIN)
        assert figure(url, "ready") == 0
        for sender in senders:
            sender.join()
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert server.wait(timeout=30) == 0
        assert time.monotonic() > begin + DRAIN
    finally:
        server.kill()
    assert gone(url)
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log, log


def until_not_ready(url: str, begin: float) -> httpx.Response:
    while (answer := httpx.get(f"{url}/readyz", timeout=5)).status_code == 200:
        assert time.monotonic() < begin + 2
    assert answer.status_code == 503
    return answer


def gone(url: str) -> bool:
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/livez", timeout=5)
    return True


def test_an_idle_service_ends_by_itself_though_clients_keep_their_connections(bundle: Path, tmp_path: Path) -> None:
    port = free_port()
    server, url = started(bundle, tmp_path, port), f"http://127.0.0.1:{port}"
    try:
        first_answer(server, f"{url}/readyz", tmp_path / "log")
        with httpx.Client() as kept, socket.create_connection(("127.0.0.1", port)) as unfinished:
            assert kept.get(f"{url}/livez").status_code == 200
            unfinished.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n")
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=15) == 0
    finally:
        server.kill()


def test_a_service_whose_supervisor_is_killed_ends_too(bundle: Path, tmp_path: Path, good: bytes) -> None:
    """Else it would serve on, with nobody to start it again or to end it, and hold the port from the next one."""
    port = free_port()
    server, url = started(bundle, tmp_path, port), f"http://127.0.0.1:{port}"
    first_answer(server, f"{url}/readyz", tmp_path / "log")
    family = psutil.Process(server.pid).children(recursive=True)
    assert len(family) >= 2
    many, answers = zipped({f"{i:04d}": ct_slice(i, "5.5") for i in range(150)}), list[httpx.Response]()
    sender = threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/embed", content=many, timeout=60)))
    sender.start()
    while figure(url, "working") < 1:
        assert server.poll() is None
    server.kill()
    server.wait()
    sender.join()
    assert [answer.status_code for answer in answers] == [200], "what was in work is answered all the same"
    _, left = psutil.wait_procs(family, timeout=30)
    for process in left:
        process.kill()
    assert left == []
    assert gone(url)


def test_a_server_that_is_killed_is_started_again_and_what_it_left_is_removed(bundle: Path, tmp_path: Path) -> None:
    """Its folders hold patients' scans."""
    with served(bundle) as service:
        many = zipped({f"{i:04d}": ct_slice(i, "5.5") for i in range(150)})
        sender = threading.Thread(target=lambda: _broken(service.url, many))
        sender.start()
        while figure(service.url, "working") < 1:
            assert service.process.poll() is None
        (reader,) = service.readers()
        server = reader.parent()
        assert server is not None
        server.kill()
        sender.join()
        assert len(service.left()) == 1
        first_answer(service.process, f"{service.url}/readyz", service.log)
        assert service.left() == []
        assert httpx.post(f"{service.url}/embed", content=many, timeout=60).status_code == 200
        assert [one.pid for one in service.readers()] != [reader.pid]
        psutil.wait_procs([reader], timeout=10)
        assert not reader.is_running()


def _broken(url: str, content: bytes) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.post(f"{url}/embed", content=content, timeout=60)
