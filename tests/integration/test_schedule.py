"""A deployment on a cron gets its runs: the pinned packages let Prefect schedule, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from postgres import POSTGRES, postgresql
from released import free_port
from tiny_graph import tiny, wait_until

WITHIN_S = 75.0
CLIENT = ("PREFECT_HOME", "PREFECT_API_URL", "PREFECT_SERVER_ANALYTICS_ENABLED")
START_S = 180.0  # migrations of an empty database, on a busy machine
SCHEDULED = """
import asyncio, sys
from uuid import UUID
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect import flow
import time

@flow
def nothing(): ...

async def main(within):
    scheduled = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])))
    async with get_client() as client:
        flow_id = await client.create_flow(nothing)
        cron = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * *"), active=True)
        await client.create_deployment(flow_id, "nightly", schedules=[cron])
        end = time.monotonic() + within
        while time.monotonic() < end:
            if runs := await client.read_flow_runs(flow_run_filter=scheduled):
                return print("scheduled", len(runs))
            await asyncio.sleep(1)
    print("scheduled 0")

asyncio.run(main(float(sys.argv[1])))
"""


@contextmanager
def prefect_server(home: Path, **variables: str) -> Iterator[dict[str, str]]:
    """A Prefect server of its own; yields the environment of its clients."""
    port = free_port()
    environment = {
        **os.environ,
        **variables,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    log = (home / "server.log").open("w")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + START_S
        while not _answers(f"{environment['PREFECT_API_URL']}/health"):
            assert server.poll() is None, (home / "server.log").read_text()[-2000:]
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.5)
        yield environment
    finally:
        server.terminate()
        server.wait(timeout=60)
        log.close()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _scheduled(environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", SCHEDULED, str(WITHIN_S)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_a_cron_gets_its_runs(tmp_path: Path) -> None:
    with prefect_server(tmp_path) as environment:
        assert _scheduled(environment) not in ("scheduled 0", "")


def test_a_served_deployment_makes_a_release(tmp_path: Path) -> None:
    """The script of infra/README.md. Prefect hands the flow to a process of its own as a copy."""
    (tmp_path / "home").mkdir()
    (tmp_path / "checkout").mkdir()
    checkout = tiny(tmp_path / "checkout")
    text = (checkout.folder / "infra/README.md").read_text()
    (script,) = re.findall(r"```python\n(from flows.release import release\n.*?)```", text, re.DOTALL)
    (checkout.folder / "nightly.py").write_text(script)
    with prefect_server(tmp_path / "home") as environment:
        inside = {**checkout.environment(), **{name: environment[name] for name in CLIENT}}
        log = (tmp_path / "served.log").open("w")
        served = subprocess.Popen(
            [sys.executable, "nightly.py"], cwd=checkout.folder, env=inside, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            wait_until(lambda: "nightly" in (tmp_path / "served.log").read_text(), START_S, "the deployment")
            run = [sys.executable, "-m", "prefect", "deployment", "run", "release/nightly", "--watch"]
            done = subprocess.run(run, cwd=checkout.folder, env=inside, capture_output=True, text=True, timeout=300)
            told = (tmp_path / "served.log").read_text()
            assert "Completed()" in told, told[-3000:] + done.stdout[-1000:]
            assert (checkout.folder / "releases/wholebody/manifest.json").is_file()
        finally:
            os.killpg(served.pid, signal.SIGTERM)
            served.wait(timeout=60)
            log.close()


@pytest.mark.slow
def test_a_cron_gets_its_runs_on_postgresql(tmp_path: Path) -> None:
    if not POSTGRES:
        pytest.skip("no PostgreSQL server on this machine")
    with (
        postgresql(tmp_path / "database") as database,
        prefect_server(tmp_path, PREFECT_SERVER_DATABASE_CONNECTION_URL=database.url) as environment,
    ):
        assert _scheduled(environment) not in ("scheduled 0", "")
