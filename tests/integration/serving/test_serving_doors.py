"""Who is let in: TLS with certificates of clients, bearer tokens, and the audit log of what they asked for."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from client import PATIENT
from conftest import started
from released import free_port

from serving.guard import SECURE
from serving.routes import ROUTES
from serving.tls import Tls
from tests.certificates import Authority

ALICE, ROBOT = "alice-0123456789abcdef", "robot-fedcba9876543210"


@dataclass(frozen=True)
class Doors:
    """A service behind TLS that asks for a certificate and a token."""

    url: str
    trusted: ssl.SSLContext
    authority: Authority
    tokens: Path
    log: Path

    def ask(self, method: str, path: str, token: str | None = ALICE, content: bytes = b"") -> httpx.Response:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        with httpx.Client(verify=self.trusted, timeout=60) as client:
            return client.request(method, f"{self.url}{path}", headers=headers, content=content)

    def audited(self) -> list[dict[str, object]]:
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith('{"time"')]


@pytest.fixture(scope="module")
def doors(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    home = tmp_path_factory.mktemp("bentoml")
    authority = Authority(home)
    server, client = authority.pair("server"), authority.pair("client")
    tokens = home / "tokens"
    tokens.write_text(f"# of the tests\nalice:{ALICE}\n")
    options = Tls(server.certificate, server.key, authority.certificate).arguments()
    port = free_port()
    process = started(bundle, home, port, tuple(options), CTFOUNDRY_TOKENS_FILE=str(tokens))
    trusted = ssl.create_default_context(cafile=authority.certificate)
    trusted.load_cert_chain(client.certificate, client.key)
    made = Doors(f"https://127.0.0.1:{port}", trusted, authority, tokens, home / "log")
    try:
        _wait(process, made)
        yield made
        assert PATIENT not in made.log.read_text()
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait(process: subprocess.Popen[bytes], doors: Doors) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if doors.ask("GET", "/readyz", token=None).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(f"the service did not start:\n{doors.log.read_text()[-4000:]}")


def test_a_client_without_a_certificate_is_not_even_heard(doors: Doors, tmp_path: Path) -> None:
    strangers = [ssl.create_default_context(cafile=doors.authority.certificate) for _ in range(2)]
    other = Authority(tmp_path).pair("stranger")
    strangers[1].load_cert_chain(other.certificate, other.key)
    for stranger in strangers:
        with pytest.raises(httpx.TransportError), httpx.Client(verify=stranger, timeout=5) as client:
            client.get(f"{doors.url}/readyz")


# All of the page, which has a field for the token: its own list, so that no answer becomes public unnoticed.
PAGE = (
    "/",
    "/style.css",
    "/page.js",
    "/sending.js",
    "/viewer.js",
    "/answers.js",
    "/controls.js",
    "/niivue.umd.js",
    "/LICENSES.txt",
)


@pytest.mark.parametrize("told", ROUTES, ids=lambda told: told.name)
def test_every_route_but_the_probes_and_the_pages_files_asks_for_a_token(doors: Doors, told: object) -> None:
    path, method = told.path, told.methods[0]  # type: ignore[attr-defined]
    without = doors.ask(method, path, token=None)
    assert without.headers["strict-transport-security"] == SECURE[b"strict-transport-security"].decode()
    if told.probe or told.path in PAGE:  # type: ignore[attr-defined]
        assert without.status_code == 200
        return
    assert (without.status_code, without.headers["www-authenticate"]) == (401, 'Bearer realm="ctfoundry"')
    wrong = doors.ask(method, path, token=ALICE + "0")
    assert wrong.status_code == 401
    assert wrong.headers["www-authenticate"] == 'Bearer realm="ctfoundry", error="invalid_token"'
    assert doors.ask(method, path).status_code in (200, 400, 404, 409)
    assert doors.ask("GET", "/nothing", token=None).status_code == 401, "a stranger learns no path"


def test_a_file_of_tokens_is_read_again_when_it_changes(doors: Doors) -> None:
    before = doors.tokens.read_text()
    assert doors.ask("GET", "/model", token=ROBOT).status_code == 401
    try:
        _replace(doors.tokens, f"robot:{ROBOT}\n")
        assert doors.ask("GET", "/model", token=ROBOT).status_code == 200
        assert doors.ask("GET", "/model").status_code == 401
        _replace(doors.tokens, "short\n")
        assert doors.ask("GET", "/model", token=ROBOT).status_code == 401
        assert "nobody is let in: CTFOUNDRY_TOKENS_FILE: " in doors.log.read_text()
    finally:
        _replace(doors.tokens, before)
    assert doors.ask("GET", "/model").status_code == 200


def _replace(path: Path, content: str) -> None:
    beside = path.with_name("new")
    beside.write_text(content)
    os.replace(beside, path)  # noqa: PTH105


def test_each_request_about_a_scan_is_one_line_that_names_no_patient(doors: Doors, good: bytes) -> None:
    count = len(doors.audited())
    answer = doors.ask("POST", "/embed", content=good).json()
    doors.ask("POST", "/embed", content=b"no scan")
    doors.ask("POST", "/classify?point_mm=secret", token=None, content=good)
    doors.ask("GET", "/embed")
    doors.ask("GET", "/model")
    lines = doors.audited()[count:]
    series, digest = answer["found"]["series"], answer["model"]["digest"]
    names = ("who", "series", "digest", "route", "outcome")
    assert [tuple(line[name] for name in names) for line in lines] == [
        ("alice", series, digest, "embed", "embedded"),
        ("alice", None, digest, "embed", "refused_415"),
        ("CN=client", None, digest, "classify", "refused_401"),
        ("alice", None, digest, "embed", "refused_405"),
    ]
    for line in lines:
        assert list(line) == ["time", *names, "seconds"]
        assert str(line["time"]).endswith("+00:00")
    assert float(str(lines[0]["seconds"])) > 0.01
    text = doors.log.read_text()
    assert ALICE not in text
    assert "1.2.3.4" not in text
