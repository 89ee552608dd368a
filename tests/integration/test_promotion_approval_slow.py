"""A promotion waits for a person at a real Prefect server: approved, rejected, not answered, restarted in between."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from chromium import CHROMIUM, SECONDS, WHY, chromium
from published import LINE, Team, git
from released import ROOT, free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen not found"),
]
SERVE = """
from prefect.deployments.runner import EntrypointType
from flows.promotion.approval import promote_release, timed_out
timed_out().create() if __import__("sys").argv[1] == "first" else None
promote_release.serve(name="promote", entrypoint_type=EntrypointType.MODULE_PATH, pause_on_shutdown=False)
"""


class Platform:
    """A server with SQLite, and a process that runs the flow in the clone of one who may sign."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.team = Team(folder)
        self.first = self.team.publish("v1.0.0", 0.8).digest
        self.second = self.team.publish("v1.1.0", 0.9, steps=2).digest
        self.third = self.team.publish("v1.2.0", 0.95).digest
        self.worker = self.team.signer("worker")
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start("first")

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PREFECT_HOME": str(self.folder / "prefect"), "PREFECT_API_URL": self.api,
                "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_LOOP_SECONDS": "1", "PREFECT_RUNNER_POLL_FREQUENCY": "1",
                "PYTHONPATH": str(ROOT)}  # fmt: skip

    def begin(self, *command: str) -> None:
        log = (self.folder / "platform.log").open("ab")
        self.processes.append(
            subprocess.Popen(
                command, cwd=self.worker, env=self.environment(), stdout=log, stderr=log, start_new_session=True
            )
        )

    def start(self, which: str) -> None:
        self.begin(sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        self.wait(lambda: httpx.get(f"{self.api}/health", timeout=2).status_code == 200, "the server")
        self.begin(sys.executable, "-c", SERVE, which)
        self.wait(lambda: bool(self.deployment()), "the deployment")

    def stop(self) -> None:
        for process in reversed(self.processes):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        self.processes.clear()

    def wait(self, holds: object, what: str, seconds: float = 600) -> None:
        assert callable(holds)
        deadline = time.monotonic() + seconds
        while True:
            try:
                if holds():
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, f"{what}: {(self.folder / 'platform.log').read_text()[-3000:]}"
            time.sleep(0.5)

    def deployment(self) -> str:
        found = httpx.get(f"{self.api}/deployments/name/promote/promote", timeout=10)
        return str(found.json()["id"]) if found.status_code == 200 else ""

    def run(self, version: str, hours: float = 1.0) -> UUID:
        """A run that waits for a person."""
        body = {"parameters": {"line": LINE, "version": version, "hours": hours}}
        made = httpx.post(f"{self.api}/deployments/{self.deployment()}/create_flow_run", json=body, timeout=30)
        number = UUID(made.json()["id"])
        self.until(number, "Suspended")
        return number

    def state(self, number: UUID) -> dict[str, str]:
        return dict(httpx.get(f"{self.api}/flow_runs/{number}", timeout=10).json()["state"])

    def until(self, number: UUID, name: str) -> dict[str, str]:
        ends = ("Completed", "Failed", "Rejected", "Refused", "Crashed", "Cancelled", "TimedOut")
        self.wait(lambda: self.state(number)["name"] in (name, *(() if name == "TimedOut" else ends)), name)
        state = self.state(number)
        assert state["name"] == name, state
        return state

    def ctfoundry(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli", *arguments]
        return subprocess.run(command, cwd=self.worker, env=self.environment(), capture_output=True, text=True)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    platform = Platform(tmp_path_factory.mktemp("platform"))
    try:
        yield platform
    finally:
        platform.stop()


def test_what_was_judged_is_promoted_though_server_and_branch_moved_on_meanwhile(platform: Platform) -> None:
    number = platform.run("v1.0.0")
    page = httpx.post(f"{platform.api}/artifacts/filter", json={}, timeout=30).json()[0]["data"]
    for told in (platform.first, "floor organs linear_auc", "0.8000", "# Card"):
        assert told in page, told
    platform.stop()
    git(platform.team.publisher, "pull", "-q", "origin", "main")
    git(platform.team.publisher, "commit", "-q", "--allow-empty", "-m", "moved on")
    git(platform.team.publisher, "push", "-q", "origin", "HEAD:main")
    platform.start("again")
    assert platform.state(number)["name"] == "Suspended"
    wrong = platform.ctfoundry("approve", str(number), "--reason", "good", "--digest", platform.second)
    assert (wrong.returncode, platform.state(number)["name"]) == (1, "Suspended"), wrong.stderr
    done = platform.ctfoundry("approve", str(number), "--reason", "good", "--digest", platform.first)
    assert done.returncode == 0, done.stderr
    assert "head@v1.0.0" in platform.until(number, "Completed")["message"]
    assert platform.team.champion()["bundle"] == platform.first
    (tag,) = platform.team.tags()
    assert "good (approved by worker <worker@localhost>)" in git(platform.team.origin, "cat-file", "tag", tag)
    again = platform.ctfoundry("reject", str(number), "--reason", "changed my mind")
    assert again.returncode == 1
    assert again.stderr == f"ctfoundry: run {number}: waits for nobody; its state is Completed\n"


def test_no_an_empty_answer_and_none_in_time_promote_nothing(platform: Platform) -> None:
    before = platform.team.tags()
    number = platform.run("v1.1.0")
    assert platform.ctfoundry("reject", str(number), "--reason", "worse on lesions").returncode == 0
    message = platform.until(number, "Rejected")["message"]
    assert message.endswith("rejected by worker <worker@localhost>: worse on lesions")
    number = platform.run("v1.1.0")
    httpx.post(f"{platform.api}/flow_runs/{number}/resume", json={}, timeout=30).raise_for_status()
    platform.until(number, "Rejected")
    number = platform.run("v1.1.0")
    yes = {"run_input": {"approve": True}}
    httpx.post(f"{platform.api}/flow_runs/{number}/resume", json=yes, timeout=30).raise_for_status()
    assert "without a name" in platform.until(number, "Rejected")["message"]
    number = platform.run("v1.1.0", hours=1 / 3600)
    assert platform.until(number, "TimedOut")["type"] == "FAILED"
    late = platform.ctfoundry("approve", str(number), "--reason", "late")
    assert late.returncode == 1
    assert platform.team.tags() == before


def test_a_version_that_moved_after_it_was_judged_is_refused(platform: Platform) -> None:
    before = platform.team.tags()
    number = platform.run("v1.2.0")
    clone, message = platform.team.publisher, f"v1.2.0\n\nbundle {platform.second}\n"
    git(clone, "tag", "-f", "-a", "-m", message, "head@v1.2.0", "head@v1.1.0^{}")
    git(clone, "push", "-q", "-f", "origin", "head@v1.2.0")
    git(platform.worker, "tag", "--delete", "head@v1.2.0")  # as in a fresh clone, which never saw the first
    assert platform.ctfoundry("approve", str(number), "--reason", "good").returncode == 0
    assert "approved was " + platform.third[:16] in platform.until(number, "Refused")["message"]
    assert platform.team.tags() == before


@pytest.mark.skipif(CHROMIUM is None, reason=WHY)
def test_a_person_approves_on_prefects_page(platform: Platform) -> None:
    number = platform.run("v1.1.0")
    with chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(SECONDS)
        page.goto(f"http://127.0.0.1:{platform.port}/runs/flow-run/{number}")
        page.get_by_role("button", name="Resume").click()
        form = page.locator(".p-modal__card")
        for told in (platform.second, "floor organs linear_auc", "0.9000"):  # what was judged stands above the form
            form.get_by_text(told).first.wait_for()
        assert form.get_by_role("switch").get_attribute("aria-checked") == "false", "the default is no"
        form.get_by_role("switch").click()
        by, reason = form.locator("textarea").all()
        by.fill("anna")
        reason.fill("better on organs")
        form.get_by_role("button", name="Submit").click()
        message = platform.until(number, "Completed")["message"]
    assert message.endswith("approved by anna")
    assert platform.team.champion()["bundle"] == platform.second
    tag = platform.team.tags()[-1]
    assert "better on organs (approved by anna)" in git(platform.team.origin, "cat-file", "tag", tag)
