"""What goes past the guard, what it counts, and what it adds to each answer."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from serving.account import account_of, audit_log
from serving.app import EmbedApp
from serving.guard import HEADERS, Guard
from serving.routes import ROUTES, Told
from serving.tokens import Tokens

KNOWING = ("/model", "/about", "/docs.json", "/metrics")  # they tell of the release
TOKEN = "abcdefghijklmnop"


class Counts:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def count(self, route: str, outcome: str) -> None:
        self.seen.append((route, outcome))


class Behind:
    """An application that is asked, or not."""

    def __init__(self, outcome: str = "", error: Exception | None = None, status: int = 200) -> None:
        self.asked: list[str] = []
        self._outcome, self._error, self._status = outcome, error, status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(scope["path"])
        account_of(scope).outcome = self._outcome
        if self._error is not None:
            raise self._error
        headers = {"cache-control": "public", "x-other": "kept"}
        await JSONResponse({}, status_code=self._status, headers=headers)(scope, receive, send)


class Door:
    def __init__(self, behind: Behind, tokens: Tokens | None = None) -> None:
        self.application, self.counts, self.behind = EmbedApp(), Counts(), behind
        self.application.metrics = self.counts  # type: ignore[assignment]
        self.application.tokens, self.application.model = tokens, {"digest": "d" * 64}
        self.guard = Guard(behind, self.application)

    def ask(self, path: str, method: str = "GET", **headers: str) -> httpx.Response:
        async def work() -> httpx.Response:
            transport = httpx.ASGITransport(self.guard)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                return await client.request(method, path, headers=headers)

        return anyio.run(work)


@pytest.fixture
def audited(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, audit_log.name)
    return caplog


def test_only_what_is_listed_is_asked_for_and_the_rest_is_counted_as_one() -> None:
    door = Door(Behind())
    for path in ("/nothing", "/schema.json", "/embed/", "/embed//", "/docs", "/static_content/x.js", "/%2e%2e/etc"):
        answer = door.ask(path)
        assert (answer.status_code, list(answer.json())) == (404, ["error"])
    assert door.behind.asked == []
    assert set(door.counts.seen) == {("other", "refused_404")}
    for told in ROUTES:
        assert door.ask(told.path, told.methods[0]).status_code == 200
        other = door.ask(told.path, "DELETE")
        assert (other.status_code, other.headers["allow"]) == (405, ", ".join(told.methods))
    assert door.behind.asked == [told.path for told in ROUTES]


def test_every_answer_has_our_headers_once_and_keeps_the_others() -> None:
    for door in (Door(Behind()), Door(Behind(error=KeyError())), Door(Behind(status=500))):
        for path in ("/model", "/nothing"):
            answer = door.ask(path)
            for name, value in HEADERS.items():
                assert answer.headers.get_list(name.decode()) == [value.decode()]
            assert "strict-transport-security" not in answer.headers
    assert Door(Behind()).ask("/model").headers["x-other"] == "kept"


@pytest.mark.parametrize("told", ROUTES, ids=lambda told: told.name)
def test_a_browser_may_keep_the_files_of_the_page_and_nothing_else(told: Told) -> None:
    answer = Door(Behind()).ask(told.path, told.methods[0])
    assert answer.headers.get_list("cache-control") == ["no-cache" if told.public else "no-store"]


def test_a_failure_behind_it_is_one_line_and_quotes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    door = Door(Behind(error=KeyError("SECRET-PATIENT")))
    answer = door.ask("/model")
    assert (answer.status_code, answer.json()) == (500, {"error": "the service failed; the failure is in its log"})
    assert "model failed with KeyError" in caplog.text
    assert "SECRET-PATIENT" not in caplog.text
    assert door.counts.seen == [("model", "failed")]


@pytest.mark.parametrize(
    ("behind", "outcome"),
    [(Behind(), "answered"), (Behind(status=404), "refused_404"), (Behind(status=503), "failed"),
     (Behind("timed_out", status=504), "timed_out")],
)  # fmt: skip
def test_each_request_is_counted_once(behind: Behind, outcome: str) -> None:
    door = Door(behind)
    door.ask("/model")
    assert door.counts.seen == [("model", outcome)]


def test_an_ending_service_is_not_ready_and_closes_its_connections() -> None:
    door = Door(Behind())
    assert "connection" not in door.ask("/model").headers
    door.application.drain.begun = True
    answer = door.ask("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"error": "the service is ending"})
    assert answer.headers["retry-after"] == "5"
    for path in ("/livez", "/healthz", "/model", "/metrics"):
        assert (door.ask(path).status_code, door.ask(path).headers["connection"]) == (200, "close")
    assert door.counts.seen[1] == ("readyz", "draining")


def test_strangers_get_401_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"alice:{TOKEN}")
    door = Door(Behind(), Tokens(tmp_path / "tokens"))
    for told in ROUTES:
        assert door.ask(told.path, told.methods[0]).status_code == (200 if told.probe or told.public else 401)
        assert door.ask(told.path, told.methods[0], authorization=f"Bearer {TOKEN}").status_code == 200
    assert [told.path for told in ROUTES if told.public and (told.takes_scan or told.path in KNOWING)] == []
    assert door.ask("/nothing").status_code == 401
    assert door.ask("/nothing", authorization=f"Bearer {TOKEN}").status_code == 404
    assert door.ask("/model").headers["www-authenticate"] == 'Bearer realm="ctfoundry"'
    wrong = door.ask("/model", authorization="Bearer wrong").headers["www-authenticate"]
    assert wrong == 'Bearer realm="ctfoundry", error="invalid_token"'
    assert ("embed", "refused_401") in door.counts.seen


def test_the_audit_log_has_a_line_for_each_request_about_a_scan(
    tmp_path: Path, audited: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tokens").write_text(f"alice:{TOKEN}")
    door = Door(Behind("embedded"), Tokens(tmp_path / "tokens"))
    door.ask("/embed?name=SECRET", "POST", authorization=f"Bearer {TOKEN}", referer="SECRET")
    door.ask("/classify", "POST")
    door.ask("/model", authorization=f"Bearer {TOKEN}")
    lines = [json.loads(record.getMessage()) for record in audited.records if record.name == audit_log.name]
    seen = [(line["who"], line["series"], line["route"], line["outcome"], line["digest"]) for line in lines]
    assert seen == [
        ("alice", None, "embed", "embedded", "d" * 64),
        (None, None, "classify", "refused_401", "d" * 64),
    ]
    assert all(0 <= line["seconds"] < 5 for line in lines)
    assert "SECRET" not in audited.text
    assert TOKEN not in audited.text


def test_a_request_without_an_answer_is_counted_too(audited: pytest.LogCaptureFixture) -> None:
    class Silent:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await anyio.sleep_forever()

    door = Door(Behind())
    guard = Guard(Silent(), door.application)

    async def work() -> None:
        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/embed", "headers": []}
        with anyio.move_on_after(0.05):
            await guard(scope, None, None)  # type: ignore[arg-type]

    anyio.run(work)
    assert door.counts.seen == [("embed", "cancelled")]
    assert '"outcome": "cancelled"' in audited.text


def test_a_web_socket_is_closed() -> None:
    sent: list[Any] = []

    async def work() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        await Door(Behind()).guard({"type": "websocket", "path": "/embed"}, None, send)  # type: ignore[arg-type]

    anyio.run(work)
    assert sent == [{"type": "websocket.close", "code": 1008}]
