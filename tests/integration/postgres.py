"""A PostgreSQL server of the tests' own, that may be killed and started again."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from released import free_port

START_S = 180.0  # on a busy machine
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


class Postgres:
    """A database in ``folder``, which is made. PostgreSQL refuses to run as root: then it runs as its own user."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.port, self._as_owner = folder, free_port(), list[str]()
        if os.geteuid() == 0:
            temporary = Path(os.environ.get("TMPDIR", "/tmp"))
            for parent in (folder, *folder.parents):
                if temporary in parent.parents:  # itself stays everybody's
                    parent.chmod(0o755)
            shutil.chown(folder, "postgres")
            self._as_owner = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        self._run("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "prefect")
        self.url = f"postgresql+asyncpg://prefect@127.0.0.1:{self.port}/postgres"

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_owner, str(POSTGRES[-1] / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder)

    def start(self) -> None:
        """Until it answers."""
        options = ["-D", str(self.folder / "data"), f"-p{self.port}", "-h127.0.0.1", f"-k{self.folder}"]
        with (self.folder.parent / "database.log").open("a") as log:
            command = [*self._as_owner, str(POSTGRES[-1] / "postgres"), *options]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        ready = [str(POSTGRES[-1] / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port), "-q"]
        end = time.monotonic() + START_S
        while subprocess.run(ready).returncode:
            assert self.process.poll() is None, (self.folder.parent / "database.log").read_text()[-2000:]
            assert time.monotonic() < end, "PostgreSQL does not answer"
            time.sleep(0.2)

    def kill(self) -> None:
        """All of its processes at once, as when its machine goes."""
        own = psutil.Process(self.process.pid)
        below = own.children(recursive=True)
        for process in (own, *below):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(timeout=60)
        psutil.wait_procs(below, timeout=60)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)


@contextmanager
def postgresql(folder: Path) -> Iterator[Postgres]:
    """A PostgreSQL server in a new folder, until the block ends."""
    database = Postgres(folder)
    database.start()
    try:
        yield database
    finally:
        database.stop()
