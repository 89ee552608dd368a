"""Where the gateway meets others: what it makes of a service's answers, of options, and of files that are no images."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from components.errors import UserError
from serving.gateway.asking import BrokenError, LaterError, NothingError, Service
from serving.gateway.commands import add_options
from serving.gateway.delivery import Dicomweb, Node, delivery_to
from serving.gateway.listener import identifiers_of
from serving.gateway.running import alone
from serving.gateway.spool import Images
from tests.unit.small_pacs import as_file, make_series

MODEL = '{"digest": "d", "heads": {"a": "point"}, "segments": {"organs": ["liver"], "vessels": ["aorta"]}}'


class Answers:
    """What the service says next, and what it was asked."""

    status, body, headers = 200, b"", dict[str, str]()
    asked: list[tuple[str, str, int]]


@pytest.fixture
def answers() -> Iterator[tuple[Answers, Service]]:
    said = Answers()
    said.asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            said.asked.append((self.path, self.headers.get("Authorization", ""), len(content)))
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(said.body)))
            self.end_headers()
            self.wfile.write(said.body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    service = Service(f"http://127.0.0.1:{server.server_address[1]}")
    yield said, service
    service.close()
    server.shutdown()
    server.server_close()


@pytest.fixture
def images(tmp_path: Path) -> Images:
    (tmp_path / "f.dcm").write_bytes(b"x" * 1000)
    return Images("e", "u", (tmp_path / "f.dcm",))


def test_a_service_is_asked_what_its_heads_can_answer(answers: tuple[Answers, Service]) -> None:
    said, service = answers
    said.body = MODEL.encode()
    assert dict(service.model().asks) == {
        "segment organs": ("/segment", {"head": "organs", "form": "dicom"}),
        "segment vessels": ("/segment", {"head": "vessels", "form": "dicom"}),
    }
    said.body = MODEL.replace("point", "scan").encode()
    assert "classify" in service.model().asks


def test_the_series_goes_as_one_tar(answers: tuple[Answers, Service], images: Images) -> None:
    said, service = answers
    said.body = b"DICM"
    assert service.ask(images, "/segment", {"head": "a b"}) == b"DICM"
    assert said.asked == [("/segment?head=a+b", "", images.tar_bytes())]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(422, NothingError), (413, NothingError), (415, NothingError), (429, LaterError), (503, LaterError),
     (408, LaterError), (401, LaterError), (500, BrokenError), (504, BrokenError), (404, BrokenError)],
)  # fmt: skip
def test_statuses_say_whether_to_come_again(
    answers: tuple[Answers, Service], images: Images, status: int, kind: type[Exception]
) -> None:
    said, service = answers
    said.status, said.body, said.headers = status, b'{"error": "one line"}', {"Retry-After": "17"}
    if kind is NothingError:
        said.headers = {}
    with pytest.raises(kind, match="one line") as caught:
        service.ask(images, "/classify", {})
    if isinstance(caught.value, LaterError):
        assert caught.value.seconds == 17.0


def test_a_reader_that_was_ended_is_another_try_and_no_answer(answers: tuple[Answers, Service], images: Images) -> None:
    said, service = answers
    said.status, said.body = 422, b'{"error": "its reader was killed"}'
    with pytest.raises(NothingError):
        service.ask(images, "/classify", {})
    said.headers = {"Retry-After": "3"}
    with pytest.raises(BrokenError):
        service.ask(images, "/classify", {})


def test_a_service_that_is_not_there_is_waited_for(images: Images) -> None:
    with pytest.raises(LaterError):
        Service("http://127.0.0.1:1").ask(images, "/classify", {})
    with pytest.raises(LaterError):
        Service("http://127.0.0.1:1").model()


def test_the_token_is_that_of_the_file(
    answers: tuple[Answers, Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, service = answers
    said.body = MODEL.encode()
    (tmp_path / "token").write_text("0123456789abcdef\n")
    monkeypatch.setenv("CTFOUNDRY_SERVICE_TOKEN_FILE", str(tmp_path / "token"))
    Service(str(service._client.base_url)).model()
    assert said.asked[-1][1] == "Bearer 0123456789abcdef"
    monkeypatch.setenv("CTFOUNDRY_SERVICE_TOKEN_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match="CTFOUNDRY_SERVICE_TOKEN_FILE"):
        Service("http://127.0.0.1:3000")


def test_answers_go_where_they_are_said_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(delivery_to("PACS@10.0.0.9:104", "US"), Node)
    monkeypatch.setenv("CTFOUNDRY_DICOMWEB_URL", "http://127.0.0.1:1/dicom-web")
    assert isinstance(delivery_to("dicomweb", "US"), Dicomweb)
    for text in ("PACS", "PACS@host", "PACS@host:0", "PACS@host:99999", "A_TITLE_TOO_LONG_@host:104", "http://x", ""):
        with pytest.raises(UserError, match="--results"):
            delivery_to(text, "US")
    monkeypatch.delenv("CTFOUNDRY_DICOMWEB_URL")
    with pytest.raises(UserError, match="CTFOUNDRY_DICOMWEB_URL: not set"):
        delivery_to("dicomweb", "US")


def test_a_pacs_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CTFOUNDRY_DICOMWEB_URL", "http://127.0.0.1:1/dicom-web")
    file = tmp_path / "made.dcm"
    file.write_bytes(as_file(make_series(1, 1)[0]))
    with pytest.raises(LaterError, match="PACS: refuses connections"):
        Dicomweb().deliver(file)
    with pytest.raises(LaterError, match="DICOM node PACS: does not answer"):
        Node("PACS", "127.0.0.1", 1, "US").deliver(file)


def test_an_image_is_known_by_its_three_uids(tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(as_file(make_series(4, 1)[0]))
    assert identifiers_of(file) == ("1.2.826.5.4", "1.2.826.6.4", "1.2.826.7.4.0")
    file.write_bytes(as_file(make_series(4, 1, StudyInstanceUID="")[0]))
    assert identifiers_of(file) is None
    file.write_bytes(b"no DICOM" * 100)
    assert identifiers_of(file) is None
    file.write_bytes(b"")
    assert identifiers_of(file) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("dance", "gateway 'dance' is not allowed: run, list, complete, retry"),
        ("complete", "gateway complete: names a STUDY"),
        ("list 1.2", "gateway list: takes no STUDY"),
        ("list", "no gateway has run with this folder"),
        ("run", "--results is missing"),
        ("run --results A@b:1", "--listen HOST:PORT or --poll SECONDS is missing"),
        ("run --results A@b:1 --listen nowhere", "--listen 'nowhere' is not allowed: host:port"),
        ("run --results A@b:1 --listen 127.0.0.1:99999", "is not allowed: host:port"),
        ("run --results A@b:1 --listen 127.0.0.1:0 --title A_TITLE_TOO_LONG_", "--title 'A_TITLE_TOO_LONG_'"),
        ("run --results A@b:1 --listen 127.0.0.1:0 --callers A,A_TITLE_TOO_LONG_", "--callers 'A_TITLE_TOO_LONG_'"),
        ("run --results A@b:1 --listen 127.0.0.1:0 --quiet soon", "--quiet 'soon' is not allowed: a number from 1"),
        ("run --results A@b:1 --listen 127.0.0.1:0 --service ftp://x", "--service 'ftp://x' is not allowed"),
        ("run --results A@b:1 --poll 0", "--poll '0' is not allowed"),
    ],
)
def test_what_is_not_allowed_is_one_line(options: str, says: str, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    arguments = parser.parse_args([*options.split(), "--state", str(tmp_path / "state")])
    with pytest.raises(UserError) as caught:
        arguments.run(arguments)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_has_one_gateway(tmp_path: Path) -> None:
    with (
        alone(tmp_path / "state"),
        pytest.raises(UserError, match="in use by another gateway"),
        alone(tmp_path / "state"),
    ):
        pass
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0, "others may read patients' images"
