"""``python -m serving``, the command of an image: the release beside it is served, or run, and only with its keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
from client import nifti
from released import ROOT, first_answer, free_port

from serving.embedding import embed_file, open_release

IMAGE = {"CTFOUNDRY_REQUIRE_SIGNATURE": "1", "CTFOUNDRY_TRUSTED_KEYS": "/keys-that-nobody-mounted"}


def command(bundle: Path, *arguments: str, **variables: str) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CTFOUNDRY_BUNDLE": str(bundle), **variables}
    return [sys.executable, "-m", "serving", *arguments], environment


def run(bundle: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    words, environment = command(bundle, *arguments, **variables)
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_neither_is_served_nor_run_without_keys(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "scan.nii.gz").write_bytes(nifti())
    for arguments in (["serve"], ["run", str(tmp_path / "in"), "--output", str(tmp_path / "out")]):
        done = run(bundle, *arguments, **IMAGE)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line == "ctfoundry: CTFOUNDRY_TRUSTED_KEYS: /keys-that-nobody-mounted: no such file or directory"


def test_a_folder_is_answered_for_without_the_platform(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "scan.nii.gz").write_bytes(nifti())
    done = run(bundle, "run", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert (done.returncode, done.stdout.split(";")[0]) == (0, "1 scan: 1 done")
    (receipt,) = (tmp_path / "out" / "receipts").glob("*.json")
    expected = embed_file(tmp_path / "in" / "scan.nii.gz", open_release(bundle)).to_json()
    assert json.loads(receipt.read_text())["answers"]["embed"]["embedding"] == expected["embedding"]


def test_it_is_served_and_healthy(bundle: Path, tmp_path: Path) -> None:
    port = free_port()
    where = ["--host", "127.0.0.1", "--port", str(port)]
    home = {"BENTOML_HOME": str(tmp_path), "CTFOUNDRY_DRAIN_SECONDS": "1"}
    words, environment = command(bundle, "serve", *where, **home)
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        first_answer(server, f"http://127.0.0.1:{port}/readyz", tmp_path / "log")
        assert httpx.get(f"http://127.0.0.1:{port}/model").json()["line"] == "wholebody"
        assert run(bundle, "healthy", "--port", str(port)).returncode == 0
    finally:
        server.terminate()
        server.wait(timeout=30)
    done = run(bundle, "healthy", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr.startswith(f"ctfoundry: port {port}: ")
    assert len(done.stderr.splitlines()) == 1


def test_what_answers_503_is_not_healthy(bundle: Path) -> None:
    class Ill(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Ill) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert run(bundle, "healthy", "--port", str(server.server_port)).returncode == 1
        server.shutdown()
