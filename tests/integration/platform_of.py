"""A platform as a team runs it: a bare repository, a state folder, a DVC remote, server and worker, all temporary."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from checkout import Checkout
from released import free_port
from tiny_graph import wait_until

START_S, RUN_S = 1800.0, 900.0  # on a busy machine
NOT_OURS = ("PYTHONPATH", "DVC_GLOBAL_CONFIG_DIR", "CTFOUNDRY_STATE", "PREFECT_API_AUTH_STRING")


class Platform:
    """``folder`` holds ``checkout`` (somebody's own), ``team.git``, ``state``, ``remote`` and ``tmp``."""

    def __init__(self, folder: Path, checkout: Checkout) -> None:
        self.folder, self.checkout, self.port = folder, checkout, free_port()
        self.state, self.remote, self.tmp = folder / "state", folder / "remote", folder / "tmp"
        self.bare = folder / "team.git"
        self.tmp.mkdir()
        checkout.git("clone", "-q", "--bare", str(checkout.folder), str(self.bare))
        checkout.git("remote", "add", "origin", str(self.bare))
        self.api = f"http://127.0.0.1:{self.port}/api"

    def environment(self, **more: str) -> dict[str, str]:
        """Of the platform's processes and clients."""
        kept = {name: value for name, value in self.checkout.environment().items() if name not in NOT_OURS}
        ours = {
            "CTFOUNDRY_STATE": str(self.state), "CTFOUNDRY_GIT": str(self.bare), "CTFOUNDRY_REMOTE": str(self.remote),
            "TMPDIR": str(self.tmp), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
        }  # fmt: skip
        return kept | ours | more

    @contextmanager
    def up(self, *options: str, **more: str) -> Iterator[subprocess.Popen[str]]:
        """``ctfoundry platform up`` until the block ends; it must then end well, with all that it began. ``more``: of
        its environment."""
        with (self.folder / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", "platform", "up", "--port", str(self.port), *options],
                cwd=self.checkout.folder, env=self.environment(**more), stdout=log, stderr=log, text=True,
                start_new_session=True,
            )  # fmt: skip
        try:
            wait_until(lambda: "platform: http" in self.said() or process.poll() is not None, START_S, "the platform")
            assert process.poll() is None, self.said()
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=120)

    def said(self) -> str:
        return (self.folder / "log").read_text()

    def logs(self) -> str:
        """What its processes have written last."""
        return "\n".join(path.read_text()[-4000:] for path in sorted((self.state / "platform").glob("*.log")))

    def asked(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The server's answer. While its database is busy it answers 503, and Prefect's own client asks again."""
        answers: list[httpx.Response] = []

        def answered() -> bool:
            url = f"{self.api}/{path}"
            answers.append(httpx.request(method, url, json=body, timeout=60, trust_env=False))
            return answers[-1].status_code != httpx.codes.SERVICE_UNAVAILABLE

        wait_until(answered, RUN_S, f"{path} is answered")
        answers[-1].raise_for_status()
        return answers[-1].json()

    def get(self, path: str) -> Any:
        return self.asked("GET", path)

    def begin(self, deployment: str, environment: dict[str, str] | None = None, **parameters: Any) -> str:
        """Start a run of a deployment such as ``retrain/wholebody``; returns its id. ``environment``: of the run."""
        found = self.get(f"deployments/name/{deployment}")
        body = {"parameters": parameters, "job_variables": {"env": environment or {}}, "idempotency_key": str(uuid4())}
        return str(self.asked("POST", f"deployments/{found['id']}/create_flow_run", body)["id"])

    def ended(self, run: str, within: float = RUN_S) -> dict[str, Any]:
        """The state that a run ended in."""
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        wait_until(lambda: self.get(f"flow_runs/{run}")["state"]["type"] in final, within, f"run {run} ends")
        return dict(self.get(f"flow_runs/{run}")["state"])

    def run(self, deployment: str, **parameters: Any) -> dict[str, Any]:
        return self.ended(self.begin(deployment, **parameters))

    def git(self, *arguments: str) -> str:
        """Of the bare repository."""
        done = subprocess.run(["git", *arguments], cwd=self.bare, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def clone(self, name: str) -> Path:
        """What a data scientist does, on another machine."""
        target = self.folder / name
        subprocess.run(["git", "clone", "-q", str(self.bare), str(target)], check=True, env=os.environ)
        return target
