"""The real service, started as people start it, against a bundle with a small untrained encoder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from client import MAX_BODY, PATIENT, ROOT, ct_series, zipped

from components.bundle.manifest import write_manifest
from components.files import write_json
from components.params import read_yaml
from components.pretrain.config import InputConfig, SegResConfig
from components.pretrain.embed import EmbedConfig, Embedder
from components.pretrain.models import build_encoder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with a small untrained encoder and the whole-body line's own preprocessing and thresholds."""
    folder = tmp_path_factory.mktemp("releases") / "wholebody"
    parameters = read_yaml(ROOT / "params.yaml")["wholebody"]
    view = InputConfig(orientation="SPL", spacing_mm=(3.0, 1.0, 1.0), size_vox=(16, 64, 64), windows=((0.0, 2000.0),))
    config = SegResConfig(kind="segres", init_filters=4, blocks_down=(1, 1, 1))
    encoder = build_encoder(config, view, seed=1)
    Embedder.from_encoder(encoder, EmbedConfig(line="wholebody", encoder=config, input=view)).save(folder)
    write_json(folder / "preprocess.json", parameters["preprocess"])
    write_json(folder / "quality.json", {"headers": parameters["screen"], "volumes": parameters["curate"]})
    write_manifest(folder, "wholebody", "ctfoundry-wholebody", {"code": "0" * 64})
    return folder


@pytest.fixture(scope="module")
def url(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The service on a free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tmp_path_factory.mktemp("bentoml")
    environment = {
        **os.environ,
        "BENTOML_HOME": str(home),
        "BENTOML_DO_NOT_TRACK": "True",
        "CTFOUNDRY_BUNDLE": str(bundle),
        "CTFOUNDRY_MAX_BODY_BYTES": str(MAX_BODY),
    }
    command = [sys.executable, "-m", "bentoml", "serve", "serving.service:CTEmbed", "--host", "127.0.0.1"]
    log = (home / "log").open("w+b")
    server = subprocess.Popen([*command, "--port", str(port)], cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        _wait_until_ready(server, f"http://127.0.0.1:{port}", home / "log")
        yield f"http://127.0.0.1:{port}"
        assert server.poll() is None, "the service has ended by itself"
        assert PATIENT.encode() not in (home / "log").read_bytes(), "the log names the patient"
    finally:
        server.terminate()
        server.wait(timeout=30)
        log.close()


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
        if server.poll() is not None:
            break
    raise AssertionError(f"the service did not start:\n{log.read_text()[-4000:]}")


@pytest.fixture(scope="module")
def good() -> bytes:
    return zipped({**ct_series(), "README.txt": b"hello", "DICOMDIR.zip": zipped({"a": b"b"})})
