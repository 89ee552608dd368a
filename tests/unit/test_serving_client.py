"""The client's answers are those of the service's schemas; it packs, waits and complains as it says."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from serving.client import Client, Embedding, ServiceError, answers
from serving.client.answers import read
from serving.client.packing import packed
from serving.routes import ROUTES
from serving.schemas import EXAMPLES, SCHEMAS

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"string": "str", "integer": "int", "number": "float", "boolean": "bool"}
CLASSES = {name: kind for name, kind in vars(answers).items() if is_dataclass(kind)}


def of_schema(schema: dict[str, Any]) -> str:
    """What a schema allows, in the words of :func:`of_hint`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "oneOf" in schema:
        (other,) = [each for each in schema["oneOf"] if each != {"type": "null"}]
        return f"{of_schema(other)} or none"
    if "enum" in schema:
        return "str"
    if schema["type"] == "array":
        return f"several {of_schema(schema['items'])}"
    if schema["type"] == "object" and "properties" in schema:
        optional = schema["properties"].keys() - set(schema["required"])
        told = {name: of_schema(of) + " or none" * (name in optional) for name, of in schema["properties"].items()}
        return str(dict(sorted(told.items())))
    if schema["type"] == "object":
        return f"str to {of_schema(schema['additionalProperties'])}"
    return KINDS[schema["type"]]


def of_hint(hint: Any) -> str:
    """What a field of a data class holds."""
    if is_dataclass(hint):
        name = getattr(hint, "__name__", "")
        return name if name in SCHEMAS else of_fields(hint)
    parts = get_args(hint)
    if NoneType in parts:
        return f"{of_hint(parts[0])} or none"
    if get_origin(hint) is tuple:
        assert parts[1] is ...
        return f"several {of_hint(parts[0])}"
    if get_origin(hint) is dict:
        return f"{of_hint(parts[0])} to {of_hint(parts[1])}"
    return str(hint.__name__)


def of_fields(kind: Any) -> str:
    return str({name: of_hint(hint) for name, hint in sorted(get_type_hints(kind).items())})


@pytest.mark.parametrize("name", sorted(SCHEMAS.keys() - {"Error"}))
def test_every_schema_has_its_data_class_with_the_same_fields(name: str) -> None:
    assert of_fields(CLASSES[name]) == of_schema(SCHEMAS[name])


def test_there_is_no_other_data_class_and_a_method_for_every_route() -> None:
    assert CLASSES.keys() - SCHEMAS.keys() == {"Interval"}
    for told in ROUTES:
        if told.takes_scan or told.name == "model":
            assert callable(getattr(Client, told.name))


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - {"Error"}))
def test_the_examples_are_read_whole(name: str) -> None:
    found = read(CLASSES[name], EXAMPLES[name])

    def back(value: Any) -> Any:
        if is_dataclass(value):
            told = {field.name: getattr(value, field.name) for field in fields(value)}
            left_out = {field.name for field in fields(value) if field.default is None and told[field.name] is None}
            return {name: back(each) for name, each in told.items() if name not in left_out}
        if isinstance(value, dict):
            return {key: back(each) for key, each in value.items()}
        return [back(each) for each in value] if isinstance(value, tuple) else value

    assert back(found) == EXAMPLES[name]
    assert read(CLASSES[name], {**EXAMPLES[name], "told since": 1}) == found
    with pytest.raises(ValueError, match=rf"^{name}: lacks "):
        read(CLASSES[name], dict(list(EXAMPLES[name].items())[1:]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dim": "3"}, "Embedding.dim: '3' is not allowed: int"),
        ({"embedding": [0.5, None]}, "Embedding.embedding[1]: 'None' is not allowed: float"),
        ({"dim": True}, "Embedding.dim: 'True' is not allowed: int"),
        ({"model": ["x"]}, "Embedding.model: "),
    ],
)
def test_an_answer_of_another_kind_is_told(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as raised:
        read(Embedding, EXAMPLES["Embedding"] | change)
    assert str(raised.value).startswith(says)


def test_it_is_imported_without_what_computes() -> None:
    program = (
        "import sys, serving.client\n"
        "found = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not found & {'components', 'torch', 'bentoml', 'numpy', 'pydantic'}, found\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    assert (ROOT / "serving" / "py.typed").is_file()


def test_a_folder_is_a_zip_of_its_files_without_their_names(tmp_path: Path) -> None:
    (tmp_path / "DOE^JANE" / "deep").mkdir(parents=True)
    (tmp_path / "DOE^JANE" / "a.dcm").write_bytes(b"first")
    (tmp_path / "DOE^JANE" / "deep" / "b.dcm").write_bytes(b"second")
    with packed(tmp_path) as stream, zipfile.ZipFile(stream) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {"000000": b"first", "000001": b"second"}
    with packed(tmp_path / "DOE^JANE" / "a.dcm") as stream:
        assert stream.read() == b"first"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^empty: an empty folder is no scan"), packed(tmp_path / "empty"):
        pass


class Busy:
    """A service that answers as it is told, one after the other, and keeps what came."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.bodies: list[bytes] = []
        self.tokens: list[str | None] = []
        busy = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                busy.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                busy.tokens.append(self.headers.get("authorization"))
                status, headers, content = busy.answers.pop(0)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def busy() -> Iterator[Busy]:
    made = Busy()
    threading.Thread(target=made.server.serve_forever, daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


GOOD = (200, {"Content-Type": "application/json"}, json.dumps(EXAMPLES["Embedding"]).encode())


def later(status: int, seconds: str) -> tuple[int, dict[str, str], bytes]:
    return status, {"Retry-After": seconds}, b'{"error": "too many files"}'


def test_it_comes_again_when_the_service_says_and_sends_the_whole_file_again(busy: Busy, tmp_path: Path) -> None:
    (tmp_path / "scan.nii").write_bytes(b"voxels")
    busy.answers, slept = [later(429, "7"), later(503, "2"), GOOD], list[float]()
    with Client(busy.url, token="a token of ours", sleep=slept.append) as client:
        assert client.embed(tmp_path / "scan.nii").dim == 3
    assert slept == [7, 2]
    assert [body.count(b"voxels") for body in busy.bodies] == [1, 1, 1]
    assert not any(b"scan.nii" in body for body in busy.bodies), "names of files stay here"
    assert busy.tokens == ["Bearer a token of ours"] * 3


def test_it_comes_no_oftener_than_it_is_allowed_and_no_later(busy: Busy, tmp_path: Path) -> None:
    (tmp_path / "scan").write_bytes(b"voxels")
    slept = list[float]()
    for answers_, waits in (
        ([later(429, "1")] * 3, [1, 1]), ([later(429, "61")], []), ([(429, {}, b"{}")], []), ([later(422, "1")], []),
    ):  # fmt: skip
        busy.answers, busy.bodies = list(answers_), []
        slept.clear()
        with Client(busy.url, tries=3, longest_wait_s=60, sleep=slept.append) as client, pytest.raises(ServiceError):
            client.embed(tmp_path / "scan")
        assert (slept, len(busy.bodies)) == (waits, len(answers_))


def test_every_failure_is_one_exception_with_one_line(busy: Busy, tmp_path: Path) -> None:
    scan = tmp_path / "scan"
    scan.write_bytes(b"voxels")
    with Client(busy.url) as client:
        for answer, status, says in (
            ((422, {}, b'{"error": "no CT series"}'), 422, "no CT series"),
            ((502, {}, b"<html>a proxy</html>"), 502, "HTTP 502"),
            ((500, {}, b'["odd"]'), 500, "HTTP 500"),
            ((200, {}, b"<html>"), 200, "an answer that this client does not know: "),
            ((200, {}, b'{"embedding": []}'), 200, "an answer that this client does not know: Embedding: lacks "),
        ):
            busy.answers = [answer]
            with pytest.raises(ServiceError) as raised:
                client.embed(scan)
            assert raised.value.status == status
            assert str(raised.value).startswith(says)
            assert "\n" not in str(raised.value)
        with pytest.raises(ServiceError, match="No such file") as raised:
            client.embed(tmp_path / "none")
        assert raised.value.status == 0
    for url in ("http://127.0.0.1:9", "no address"):
        with Client(url) as client, pytest.raises(ServiceError, match="no answer: "):
            client.embed(scan)
    (tmp_path / "ca.pem").write_text("no certificate\n")
    with pytest.raises(ServiceError, match=r"ca\.pem.*: not readable as PEM"):
        Client("https://127.0.0.1", ca=tmp_path / "ca.pem")
