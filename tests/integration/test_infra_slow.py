"""Monitoring and backup as a site runs them: Prefect on PostgreSQL, the exporter, Prometheus, the service."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from released import ROOT, free_port
from served import served
from test_schedule import POSTGRES, postgresql, prefect_server

MONITORING = ROOT / "infra" / "monitoring"
BUNDLE = ROOT / "tests" / "assets" / "bundles" / "0.1.0" / "wholebody"
TOOLS = ("prometheus", "prometheus-postgres-exporter", "prometheus-node-exporter")
AUTH, TOKEN = "team:a-password-of-tests", "a-token-of-tests-of-prometheus"
WITHIN_S = 600.0  # on a busy machine
# Runs as they are after a bad night, by Prefect's own API.
NIGHT = """
import asyncio
from datetime import datetime, timedelta, timezone
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.states import Completed, Crashed, Failed, Running, Scheduled, Suspended

@flow(name="retrain")
def retrain(line: str): ...

@flow(name="promote")
def promote(line: str): ...

async def main():
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name="cpu", type="process"))
        made = await client.create_flow(retrain)
        cron = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * *"), active=True)
        nightly = await client.create_deployment(made, "nightly", schedules=[cron], work_pool_name="cpu")
        ends = [(retrain, "wholebody", Failed(name="GateFailed")), (retrain, "head", Crashed()),
                (promote, "wholebody", Suspended(timeout_seconds=9999)), (promote, "head", Completed())]
        for of, line, end in ends:
            run = await client.create_flow_run(of, parameters={"line": line})
            await client.set_flow_run_state(run.id, Running(), force=True)
            await client.set_flow_run_state(run.id, end, force=True)
        run = await client.create_flow_run(retrain, parameters={"line": "lungs"})
        await client.set_flow_run_state(run.id, Running(), force=True)
        due = Scheduled(scheduled_time=datetime.now(timezone.utc) - timedelta(hours=1))
        await client.create_flow_run_from_deployment(nightly, parameters={"line": "wholebody"}, state=due)

asyncio.run(main())
"""


@dataclass(frozen=True)
class Platform:
    """Prefect's API with what its clients are told, and its database."""

    environment: dict[str, str]
    database: str

    @property
    def api(self) -> str:
        return self.environment["PREFECT_API_URL"]

    def runs(self) -> dict[str, Any]:
        """State names of the server's runs, by id."""
        return runs_of(self.api)


def runs_of(api: str) -> dict[str, Any]:
    answer = httpx.post(f"{api}/flow_runs/filter", json={}, auth=tuple(AUTH.split(":")), timeout=60)
    return {run["id"]: run["state_name"] for run in answer.raise_for_status().json()}


def sql(database: str, *options: str) -> None:
    subprocess.run(["psql", "--quiet", "-v", "ON_ERROR_STOP=1", database, *options], check=True, capture_output=True)


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    if not POSTGRES:
        pytest.skip("no PostgreSQL server on this machine: apt-get install postgresql")
    told = dict.fromkeys(("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"), AUTH)
    told["PREFECT_SERVER_METRICS_ENABLED"] = "true"
    # pytest shuts its own folder, whenever one begins, to the user of PostgreSQL
    with tempfile.TemporaryDirectory(prefix="platform-") as temporary:
        folder = Path(temporary)
        with postgresql(folder / "database") as url:
            plain = url.replace("+asyncpg", "")
            sql(plain, "-c", "CREATE DATABASE prefect")
            database, asked = (text.removesuffix("/postgres") + "/prefect" for text in (plain, url))
            told["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = asked
            with prefect_server(folder, **told) as environment:
                subprocess.run([sys.executable, "-c", NIGHT], env=environment, check=True)
                yield Platform(environment, database)


@contextlib.contextmanager
def program(*command: str, cwd: Path, **variables: str) -> Iterator[None]:
    with (cwd / f"{Path(command[0]).name}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=cwd, env={**os.environ, **variables}, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def site_config(folder: Path, targets: dict[str, int]) -> None:
    """The repository's own files for Prometheus, with these ports, and no waiting."""
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "2s", "evaluation_interval": "2s"}
    config["alerting"] = {}
    config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] in targets]
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [f"127.0.0.1:{targets[job['job_name']]}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "rules.yml").write_text((MONITORING / "rules.yml").read_text().replace("interval: 5m", "interval: 2s"))
    (folder / "secrets").mkdir()
    (folder / "secrets" / "prefect_password").write_text(AUTH.split(":")[1])
    (folder / "secrets" / "prometheus_token").write_text(TOKEN)


def expressions() -> list[str]:
    boards = [json.loads(path.read_text()) for path in sorted((MONITORING / "dashboards").glob("*.json"))]
    return [target["expr"] for board in boards for panel in board["panels"] for target in panel["targets"]]


@pytest.mark.slow
def test_every_panel_is_answered_and_the_alarms_of_a_bad_night_ring(platform: Platform, tmp_path: Path) -> None:
    for tool in TOOLS:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} not found: apt-get install {tool}")
    sql(platform.database, "-v", "password='seen'", "-f", str(MONITORING / "exporter.sql"))
    ports = {name: free_port() for name in ("runs", "machine")}
    server, api = free_port(), int(platform.api.split(":")[2].split("/")[0])
    reader = platform.database.replace("prefect@", "exporter:seen@") + "?sslmode=disable"
    (tmp_path / "tokens").write_text(f"prometheus:{TOKEN}\n")
    exporter = [
        "prometheus-postgres-exporter", f"--extend.query-path={MONITORING / 'queries.yml'}",
        "--disable-settings-metrics", f"--web.listen-address=127.0.0.1:{ports['runs']}",
    ]  # fmt: skip
    with (
        served(BUNDLE / "bundle", CTFOUNDRY_TOKENS_FILE=str(tmp_path / "tokens")) as service,
        program(*exporter, cwd=tmp_path, DATA_SOURCE_NAME=reader),
        program("prometheus-node-exporter", f"--web.listen-address=127.0.0.1:{ports['machine']}", cwd=tmp_path),
    ):
        site_config(tmp_path, {**ports, "prefect": api, "service": int(service.url.rpartition(":")[2])})
        listen = f"--web.listen-address=127.0.0.1:{server}"
        with program("prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data", listen, cwd=tmp_path):
            _wait_for_all(f"http://127.0.0.1:{server}/api/v1", service.url, phantom(tmp_path))


def phantom(folder: Path) -> bytes:
    """A zip of one series of the phantom scanner."""
    made = [sys.executable, "-m", "components.sources.phantom", "--out", str(folder / "phantoms"), "--patients", "1"]
    subprocess.run(made, cwd=ROOT, check=True, capture_output=True)
    series = next(path for path in sorted((folder / "phantoms").iterdir()) if path.is_dir())
    return Path(shutil.make_archive(str(folder / "series"), "zip", series)).read_bytes()


def _wait_for_all(prometheus: str, service: str, scan: bytes) -> None:
    """Ask until every panel has an answer and every alarm that should ring rings, or may after its time."""
    left, missing = set(expressions()), {("GateFailed", "wholebody"), ("RunCrashed", "head"), ("RunLate", "wholebody")}
    assert len(left) > 20
    end = time.monotonic() + WITHIN_S
    while left or missing:
        assert time.monotonic() < end, (sorted(left), missing)
        httpx.post(
            f"{service}/embed",
            files={"file": ("a.zip", scan)},
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=60,
        )
        with contextlib.suppress(httpx.TransportError):
            for expression in list(left):
                asked = {"query": expression.replace("$__rate_interval", "30s")}
                if httpx.get(f"{prometheus}/query", params=asked, timeout=30).json()["data"]["result"]:
                    left.remove(expression)
            rings = httpx.get(f"{prometheus}/alerts", timeout=30).json()["data"]["alerts"]
            missing -= {(one["labels"]["alertname"], one["labels"].get("line")) for one in rings}
        time.sleep(2)


def git(folder: Path, *command: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", *who, *command], cwd=folder, check=True, capture_output=True, text=True).stdout


def dvc(folder: Path, *command: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *command, "--quiet"], cwd=folder, check=True, capture_output=True)


def published(folder: Path) -> Path:
    """A bare repository with two tagged versions, whose data are in the remote ``store`` beside it. Its lock file names
    another line, too, as that of a repository that a team has begun from; nobody here has made it."""
    clone, bare = folder / "clone", folder / "bare.git"
    clone.mkdir()
    git(clone, "init", "--initial-branch=main")
    dvc(clone, "init")
    dvc(clone, "remote", "add", "--default", "store", str(folder / "store"))
    made = {"cmd": "mkdir -p releases/${item} && cp made releases/${item}/weights", "deps": ["made"]}
    lines = {"foreach": ["wholebody", "head"], "do": {**made, "outs": ["releases/${item}"]}}
    (clone / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"bundle": lines}}))
    (clone / "made").write_text("elsewhere")
    dvc(clone, "repro", "bundle@head")
    shutil.rmtree(clone / ".dvc" / "cache")
    for version in ("one", "two"):
        (clone / "made").write_text(version)
        dvc(clone, "repro", "bundle@wholebody")
        git(clone, "add", "--all")
        git(clone, "commit", "--message", version)
        git(clone, "tag", "--annotate", f"wholebody@v{version}", "--message", version)
    git(clone, "tag", "--annotate", "wholebody#champion#1", "--message", "why", "wholebody@vone^{}")
    dvc(clone, "push", "--all-tags", "bundle@wholebody")
    git(folder, "clone", "--bare", str(clone), str(bare))
    return bare


@pytest.mark.slow
def test_what_is_backed_up_comes_back(platform: Platform, tmp_path: Path) -> None:
    """The commands of infra/backup/README.md, and a second server on what they restore."""
    bare = published(tmp_path)
    variables = {
        "PREFECT_DATABASE": platform.database, "REPOSITORY": str(bare), "STORE": str(tmp_path / "store"),
        "COPY": str(tmp_path / "copy"), "TEXTFILE": str(tmp_path / "backup.prom"),
        "PATH": f"{Path(sys.executable).parent}:{POSTGRES[-1]}:{os.environ['PATH']}",
    }  # fmt: skip
    backup = ["sh", str(ROOT / "infra" / "backup" / "backup.sh"), str(tmp_path / "backup")]
    told = {**os.environ, **variables}
    subprocess.run(backup, env=told, check=True)
    assert (tmp_path / "backup.prom").read_text().startswith("ctfoundry_backup_time_seconds ")
    before, tags = platform.runs(), git(bare, "show-ref", "--tags")
    shutil.rmtree(tmp_path / "store")  # the disaster
    shutil.rmtree(bare)
    lines = (ROOT / "infra" / "backup" / "README.md").read_text().splitlines()
    start = lines.index("```sh", lines.index("## Restore")) + 1
    commands = "\n".join(lines[start : lines.index("```", start)])
    new = {"RESTORED": platform.database.removesuffix("/prefect") + "/restored", "BACKUP": str(tmp_path / "backup")}
    done = subprocess.run(["sh", "-exc", commands], env={**told, **new}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert git(bare, "show-ref", "--tags") == tags
    fresh = tmp_path / "fresh"
    for tag, text in (("wholebody@vtwo", "two"), ("wholebody#champion#1", "one")):
        git(tmp_path, "clone", "--branch", tag, str(bare), str(fresh))
        dvc(fresh, "pull", "bundle@wholebody")
        assert (fresh / "releases" / "wholebody" / "weights").read_text() == text
        shutil.rmtree(fresh)
    (tmp_path / "home").mkdir()
    database = new["RESTORED"].replace("postgresql:", "postgresql+asyncpg:")
    asked = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database, "PREFECT_SERVER_API_AUTH_STRING": AUTH}
    with prefect_server(tmp_path / "home", **asked) as environment:
        after = runs_of(environment["PREFECT_API_URL"])
    assert {run: after.get(run) for run in before} == before


@pytest.mark.slow
@pytest.mark.parametrize("lost", [".dir", ""])
def test_a_backup_that_would_lack_an_object_fails_and_leaves_the_last_one(
    platform: Platform, tmp_path: Path, lost: str
) -> None:
    """``lost``: suffix of the list of a folder, or of a file in one."""
    bare = published(tmp_path)
    variables = {
        "PREFECT_DATABASE": platform.database, "REPOSITORY": str(bare), "STORE": str(tmp_path / "store"),
        "COPY": str(tmp_path / "copy"), "PATH": f"{Path(sys.executable).parent}:{POSTGRES[-1]}:{os.environ['PATH']}",
    }  # fmt: skip
    backup = ["sh", str(ROOT / "infra" / "backup" / "backup.sh"), str(tmp_path / "backup")]
    subprocess.run(backup, env={**os.environ, **variables}, check=True)
    last = (tmp_path / "backup" / "SHA256SUMS").read_text()
    shutil.rmtree(tmp_path / "copy")
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    next(path for path in files if path.suffix == lost).unlink()
    done = subprocess.run(backup, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "not all that wholebody@v" in done.stderr
    assert (tmp_path / "backup" / "SHA256SUMS").read_text() == last
    assert not (tmp_path / "backup.new").exists()
