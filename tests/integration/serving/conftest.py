"""The real service, started as people start it, against a bundle with a small untrained encoder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from client import MAX_BODY, PATIENT, ct_series, zipped
from released import ROOT, first_answer, free_port, write_release

from components.bundle.manifest import write_manifest


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with a small untrained encoder and the whole-body line's own preprocessing and thresholds."""
    folder = tmp_path_factory.mktemp("releases") / "wholebody"
    write_release(folder)
    write_manifest(folder, "wholebody", "ctfoundry-wholebody", {"code": "0" * 64})
    return folder


def started(bundle: Path, home: Path, port: int, **variables: str) -> subprocess.Popen[bytes]:
    """The service's process; what it says goes to ``home / "log"``."""
    environment = {
        **os.environ,
        "BENTOML_HOME": str(home),
        "BENTOML_DO_NOT_TRACK": "True",
        "CTFOUNDRY_BUNDLE": str(bundle),
        "CTFOUNDRY_MAX_BODY_BYTES": str(MAX_BODY),
        **variables,
    }
    command = [sys.executable, "-m", "bentoml", "serve", "serving.service:CTEmbed", "--host", "127.0.0.1"]
    with (home / "log").open("wb") as log:
        return subprocess.Popen([*command, "--port", str(port)], cwd=ROOT, env=environment, stdout=log, stderr=log)


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
