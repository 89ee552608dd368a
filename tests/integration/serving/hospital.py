"""A hospital for tests: its PACS (Orthanc), a service that knows it, and a gateway, each of which can be killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from released import ROOT, free_port

from tests.orthanc import PASSWORD, USER, Orthanc

SECRET = "of this hospital alone"
GATEWAY = "GATEWAY"
# DCMTK's: pynetdicom brings programs of the same names, of which storescu ends with 0 when it was cut off.
STORESCU, ECHOSCU = (shutil.which(name, path="/usr/bin:/usr/local/bin") or "" for name in ("storescu", "echoscu"))


def to_pacs(orthanc: Orthanc) -> dict[str, str]:
    """The environment of whoever uses the PACS."""
    return {
        "CTFOUNDRY_DICOMWEB_URL": f"{orthanc.root}/dicom-web",
        "CTFOUNDRY_DICOMWEB_USER": USER,
        "CTFOUNDRY_DICOMWEB_PASSWORD": PASSWORD,
        "CTFOUNDRY_PSEUDONYM_KEY": SECRET,
    }


class Gateway:
    """``ctfoundry gateway`` on 127.0.0.1, that can be killed and started again with the same port and folder."""

    def __init__(self, folder: Path, service: str, results: str, environment: Mapping[str, str], *options: str) -> None:
        self.state, self.port, self.log, self.audit = folder / "state", free_port(), folder / "log", folder / "audit"
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        where = ["--state", str(self.state)]
        listen = ["--listen", f"127.0.0.1:{self.port}", "--title", GATEWAY]
        options = options if "--confirm" in options else (*options, "--confirm", "1")
        self._command = [*where, "--service", service, "--results", results, *listen, *options]
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log, self.audit.open("ab") as audit:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serving.gateway", "run", *self._command],
                env=self._environment, stdout=audit, stderr=log, cwd=self.state.parent,
            )  # fmt: skip
        until(self._answers, 60, lambda: self.log.read_text()[-3000:])

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        return echo(self.port).returncode == 0

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=30)

    def ask(self, *what: str) -> subprocess.CompletedProcess[str]:
        """Another command on its folder."""
        return subprocess.run(
            [sys.executable, "-m", "serving.gateway", *what, "--state", str(self.state)],
            env=self._environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def audited(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


def echo(port: int, called: str = GATEWAY) -> subprocess.CompletedProcess[bytes]:
    """C-ECHO by DCMTK."""
    return subprocess.run([ECHOSCU, "-aec", called, "127.0.0.1", str(port)], capture_output=True, timeout=30)


def send(port: int, folder: Path, called: str = GATEWAY) -> subprocess.CompletedProcess[bytes]:
    """C-STORE of a folder's files by DCMTK, in one association."""
    command = [STORESCU, "-aec", called, "127.0.0.1", str(port), "+sd", str(folder)]
    return subprocess.run(command, capture_output=True, timeout=120)


def until(holds: Callable[[], Any], seconds: float, why: Callable[[], str] = lambda: "") -> None:
    """Wait until it holds; fails where it does not."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, why()
        time.sleep(0.1)


def written(folder: Path, images: Sequence[bytes]) -> Path:
    """A folder of files."""
    folder.mkdir(parents=True)
    for number, content in enumerate(images):
        (folder / f"{number:03d}.dcm").write_bytes(content)
    return folder


def results_in(orthanc: Orthanc) -> dict[str, list[str]]:
    """StudyInstanceUID to the modalities of what is no CT, sorted, one for each instance."""
    found: dict[str, list[str]] = {}
    for study in orthanc.api("studies?expand"):
        series = [orthanc.api(f"series/{name}") for name in study["Series"]]
        kinds = [(each["MainDicomTags"]["Modality"], len(each["Instances"])) for each in series]
        uid = study["MainDicomTags"]["StudyInstanceUID"]
        found[uid] = sorted(kind for kind, number in kinds for _ in range(number) if kind != "CT")
    return found
