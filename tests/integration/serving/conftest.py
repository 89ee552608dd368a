"""The real service, started as people start it, against a bundle with a small untrained encoder."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from client import MAX_BODY, PATIENT, ct_series, zipped
from documented import require_documented
from inprocess import Service, run, until
from released import first_answer, free_port, write_release

from components.bundle.manifest import write_manifest
from tests.served import start


@pytest.fixture(scope="module", autouse=True)
def _documented() -> Iterator[None]:
    """Whatever these tests are answered is held to the OpenAPI document."""
    send = httpx.Client.send

    def checked(client: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        response = send(client, request, **options)
        response.read()
        require_documented(response)
        return response

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx.Client, "send", checked)
        yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with a small untrained encoder and the whole-body line's own preprocessing and thresholds."""
    folder = tmp_path_factory.mktemp("releases") / "wholebody"
    write_release(folder)
    write_manifest(folder, "wholebody", "ctfoundry-wholebody", {"code": "0" * 64})
    return folder


def started(
    bundle: Path, home: Path, port: int, options: tuple[str, ...] = (), **variables: str
) -> subprocess.Popen[bytes]:
    """The service's process; what it says goes to ``home / "log"``."""
    bounds = {"CTFOUNDRY_MAX_BODY_BYTES": str(MAX_BODY), "CTFOUNDRY_DRAIN_SECONDS": "1"}
    return start(bundle, home, port, options, **{**bounds, **variables})


@contextmanager
def running(bundle: Path, home: Path, **variables: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The service on a free port of 127.0.0.1: its address and its process."""
    port = free_port()
    server = started(bundle, home, port, **variables)
    try:
        first_answer(server, f"http://127.0.0.1:{port}/readyz", home / "log")
        yield f"http://127.0.0.1:{port}", server
        assert server.poll() is None, "the service has ended by itself"
        assert PATIENT.encode() not in (home / "log").read_bytes(), "the log names the patient"
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture(scope="module")
def url(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The service's address."""
    with running(bundle, tmp_path_factory.mktemp("bentoml")) as (address, _):
        yield address


@pytest.fixture(scope="module")
def good() -> bytes:
    return zipped({**ct_series(), "README.txt": b"hello", "DICOMDIR.zip": zipped({"a": b"b"})})


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Its children have a minute; a test starts no program of its own."""
    made = Service(tmp_path_factory.mktemp("service"), 60)
    yield made
    made.forks.close()


@pytest.fixture
def service(patient: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Service]]:
    def make(at_once: int, **limits: int) -> Service:
        patient.renew(at_once=at_once, **limits)
        monkeypatch.setattr(tempfile, "tempdir", str(patient.scratch))
        return patient

    yield make
    assert list(patient.scratch.iterdir()) == [], "temporary files are left"
    run(lambda: until(lambda: patient.working() == []))  # a child ends a moment after a program that was killed
