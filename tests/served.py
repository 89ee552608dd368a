"""The service as a process: started on a release folder as it is in production, and the processes that it has."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests.released import ROOT, first_answer, free_port

READER = "serving.worker"  # the program that has the release, as a command line names it


@dataclass(frozen=True)
class Served:
    """A service on a port of 127.0.0.1; ``scratch`` is its folder for temporary files."""

    url: str
    process: subprocess.Popen[bytes]
    scratch: Path
    log: Path
    bundle: Path

    def family(self) -> dict[int, int]:
        """Resident bytes of each of its processes, by id; a program that followed another is none of its children."""
        found = family(self.process.pid)
        for reader in self.readers():
            found |= family(reader.pid)
        return found

    def readers(self) -> list[psutil.Process]:
        """The program that has the release, without its twin and the children that it forks."""
        found = {}
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess):
                if READER in (command := one.cmdline()) and str(self.bundle.absolute()) in command:
                    found[one.pid] = one, one.ppid()
        return [one for one, parent in found.values() if parent not in found]

    def figures(self) -> dict[str, float]:
        """What ``/metrics`` says, by name and labels."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def left(self) -> list[str]:
        """Names of temporary files of requests."""
        return sorted(path.name for path in self.scratch.iterdir() if path.name.startswith("ctfoundry-"))


def family(process: int) -> dict[int, int]:
    """Resident bytes of a process and all that descend from it, by id."""
    found = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process)
        for one in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                found[one.pid] = one.memory_info().rss
    return found


def start(
    bundle: Path, home: Path, port: int, options: tuple[str, ...] = (), **variables: str
) -> subprocess.Popen[bytes]:
    """The service's process; what it says goes to ``home / "log"``."""
    environment = {
        **os.environ,
        "BENTOML_HOME": str(home),
        "BENTOML_DO_NOT_TRACK": "True",
        "CTFOUNDRY_BUNDLE": str(bundle.absolute()),
        **variables,
    }
    where = ["--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-m", "bentoml", "serve", "serving.service:CTEmbed", *where, *options]
    with (home / "log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


@contextmanager
def served(bundle: Path, **variables: str) -> Iterator[Served]:
    """The service of a release folder, ready; it has ended, and its folders are gone, afterwards."""
    with tempfile.TemporaryDirectory(prefix="served-") as temporary:
        home, scratch, port = Path(temporary) / "home", Path(temporary) / "tmp", free_port()
        home.mkdir()
        scratch.mkdir()
        server = start(bundle, home, port, **{"CTFOUNDRY_DRAIN_SECONDS": "1", **variables, "TMPDIR": str(scratch)})
        try:
            first_answer(server, f"http://127.0.0.1:{port}/readyz", home / "log")
            yield Served(f"http://127.0.0.1:{port}", server, scratch, home / "log", bundle)
        finally:
            server.terminate()
            server.wait(timeout=330)
