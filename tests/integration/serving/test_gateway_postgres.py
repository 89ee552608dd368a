"""The gateway's queue in PostgreSQL: whatever its tests promise of SQLite holds there too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from released import ROOT, free_port

from components.errors import UserError
from serving.gateway.queue import Queue

PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path("/nowhere"))
OWNER = ["runuser", "-u", "nobody", "--"] if os.geteuid() == 0 else []  # it does not run as root

pytestmark = pytest.mark.skipif(
    not (PROGRAMS / "initdb").is_file(), reason="initdb not found: apt-get install postgresql"
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a database of its own, on 127.0.0.1."""
    port, folder = free_port(), Path(f"/tmp/ctfoundry-postgres-{os.getpid()}")
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)  # for whoever it runs as
    made = subprocess.run([*OWNER, str(PROGRAMS / "initdb"), "-D", str(folder / "data"), "-U", "ct", "-A", "trust"],
                          cwd="/", capture_output=True, text=True, check=False)  # fmt: skip
    assert made.returncode == 0, made.stderr
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    control = [*OWNER, str(PROGRAMS / "pg_ctl"), "-D", str(folder / "data"), "-w", "-l", str(folder / "log")]
    subprocess.run([*control, "-o", options, "start"], cwd="/", check=True, stdout=subprocess.DEVNULL)
    yield f"postgresql+pg8000://ct@127.0.0.1:{port}/postgres"
    subprocess.run([*control, "-m", "immediate", "stop"], cwd="/", check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(folder)


def test_the_queue_keeps_its_promises(address: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/test_serving_gateway.py"]
    environment = {**os.environ, "CTFOUNDRY_TEST_QUEUE": address}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "2 skipped" in done.stdout


def test_a_database_that_is_away_is_one_line(address: str) -> None:
    away = address.replace(address.rsplit(":", 1)[1].split("/")[0], "1")
    with pytest.raises(UserError, match="the queue's database: ") as caught:
        Queue(away, "here")
    assert "\n" not in str(caught.value)
