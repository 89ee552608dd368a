"""Deployed runs, by a real Prefect server and worker: each in a workspace of its own, published, and nothing left."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import psutil
import pytest
from platform_of import RUN_S, Platform
from tiny_graph import tiny, wait_until


class People(BaseHTTPRequestHandler):
    """Who is told of failures."""

    heard: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the tests' output."""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("platform")
    (folder / "checkout").mkdir()
    of = Platform(folder, tiny(folder / "checkout"))
    with ThreadingHTTPServer(("127.0.0.1", 0), People) as people:
        threading.Thread(target=people.serve_forever, daemon=True).start()
        with of.up(CTFOUNDRY_WEBHOOK=f"http://127.0.0.1:{people.server_port}/") as process:
            yield of
            below = psutil.Process(process.pid).children(recursive=True)
        people.shutdown()
    # Stopped, it leaves no process.
    assert (process.returncode, [child for child in below if child.is_running()]) == (0, []), of.said()
    assert len(below) >= 2, "server and worker"


def test_a_deployed_run_is_released_and_published_and_leaves_nothing(platform: Platform) -> None:
    before = platform.checkout.git("status", "--porcelain"), platform.checkout.git("rev-parse", "HEAD")
    state = platform.run("retrain/wholebody")
    assert state["type"] == "COMPLETED", f"{state}\n{platform.logs()}"
    assert state["message"].startswith("wholebody@v0.0.1: bundle ")
    assert platform.git("cat-file", "-t", "wholebody@v0.0.1") == "tag"
    branch = platform.git("rev-parse", "release/wholebody/v0.0.1")
    assert platform.git("rev-parse", "wholebody@v0.0.1^{}") == branch
    assert platform.git("rev-parse", f"{branch}~") == before[1].strip(), "the commit that the run worked at"
    assert set(platform.git("diff", "--name-only", f"{branch}~", branch).splitlines()) <= {
        "params.yaml", "dvc.lock", "infra/made_on.json",
    }  # fmt: skip
    wait_until(lambda: not list(platform.tmp.glob("tmp*prefect")), RUN_S, "the workspace goes")
    assert before == (platform.checkout.git("status", "--porcelain"), platform.checkout.git("rev-parse", "HEAD"))
    assert not (platform.checkout.folder / "releases").exists()
    assert len(list((platform.state / "bentoml" / "bentos").glob("ctfoundry-wholebody/*/bento.yaml"))) == 1
    assert (platform.state / "published" / "wholebody" / "v0.0.1").is_dir()


def test_what_is_published_already_is_nothing_to_do(platform: Platform) -> None:
    state = platform.run("retrain/wholebody")
    assert (state["type"], state["name"]) == ("COMPLETED", "NothingToDo"), f"{state}\n{platform.logs()}"
    assert "wholebody@v0.0.1" in state["message"]
    assert platform.git("tag", "--list") == "wholebody@v0.0.1"


def test_a_clone_elsewhere_pulls_it_and_has_nothing_to_do(platform: Platform) -> None:
    clone = platform.clone("scientist")
    environment = platform.environment() | {"PYTHONPATH": str(clone)}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("git", "checkout", "-q", "wholebody@v0.0.1")
    run("dvc", "remote", "add", "--local", "--default", "store", str(platform.remote))
    run("dvc", "pull")
    assert (clone / "releases/wholebody/manifest.json").is_file()
    said = run("dvc", "repro")
    assert "up to date" in said
    assert "Running stage" not in said


@pytest.mark.slow
def test_a_published_version_is_computed_again_with_the_same_bytes(platform: Platform) -> None:
    state = platform.run("verify/release")
    assert state["type"] == "COMPLETED", f"{state}\n{platform.logs()}"
    assert state["message"] == "wholebody@v0.0.1: 6 of 6 outputs identical"


@pytest.mark.slow
def test_a_sweep_takes_nothing_that_a_version_needs(platform: Platform) -> None:
    unused = platform.state / "cache" / "files" / "md5" / "00" / "0123456789abcdef0123456789abcd"
    unused.parent.mkdir(exist_ok=True)
    unused.write_text("of no commit")
    before = {path for path in (platform.state / "cache" / "files").rglob("*") if path.is_file() and path != unused}
    state = platform.run("sweep/machine")
    assert state["type"] == "COMPLETED", f"{state}\n{platform.logs()}"
    assert not unused.exists(), state
    assert before == {path for path in (platform.state / "cache" / "files").rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_stage_that_fails_is_told_by_name(platform: Platform) -> None:
    clone = platform.clone("breaks")
    script = (clone / "tiny_stage.py").read_text()
    (clone / "tiny_stage.py").write_text(script + '\nif name == "curate":\n    sys.exit("curate: data/x: not found")\n')
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *identity, "commit", "-qam", "breaks"], cwd=clone, check=True)
    subprocess.run(["git", "push", "-q"], cwd=clone, check=True)
    state = platform.run("retrain/wholebody")
    assert (state["type"], state["name"]) == ("FAILED", "StageFailed"), f"{state}\n{platform.logs()}"
    assert "stage curate@wholebody failed" in state["message"]
    told = "retrain wholebody: StageFailed: stage curate@wholebody failed"
    wait_until(lambda: any(text.startswith(told) for text in People.heard), RUN_S, f"people hear {told!r}")
    assert platform.git("tag", "--list") == "wholebody@v0.0.1"
    wait_until(lambda: not list(platform.tmp.glob("tmp*prefect")), RUN_S, "the workspace goes")


@pytest.mark.slow
def test_a_line_that_is_not_there_is_refused(platform: Platform) -> None:
    state = platform.run("retrain/wholebody", line="none_such")
    assert (state["type"], state["name"]) == ("FAILED", "Refused"), f"{state}\n{platform.logs()}"
    assert "none_such" in state["message"]
