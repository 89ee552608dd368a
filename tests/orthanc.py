"""A real PACS for tests: Debian's Orthanc with its DICOMweb plugin."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import requests

from components.files import write_json
from tests.released import free_port

PLUGINS = Path("/usr/share/orthanc/plugins")
USER, PASSWORD, TITLE = "reader", "opensesame", "ORTHANC"


def require_orthanc() -> None:
    """Skip where there is none."""
    if shutil.which("Orthanc") is None or not (PLUGINS / "libOrthancDicomWeb.so").exists():
        pytest.skip("Orthanc not found: apt-get install orthanc orthanc-dicomweb")


class Orthanc:
    """A PACS on 127.0.0.1 that can be killed and started again with the same port and storage."""

    def __init__(self, folder: Path, nodes: dict[str, tuple[str, int]] | None = None) -> None:
        """``nodes``: DICOM nodes that it knows, by AE title; with any, it is one itself, see ``dicom_port``."""
        port, self.dicom_port = free_port(), free_port()
        self.root = f"http://127.0.0.1:{port}"
        self._config, self._log = folder / "orthanc.json", folder / "log"
        write_json(self._config, {
            "StorageDirectory": str(folder), "IndexDirectory": str(folder), "Plugins": [str(PLUGINS)],
            "HttpPort": port, "RemoteAccessAllowed": False, "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "DicomServerEnabled": nodes is not None, "DicomPort": self.dicom_port, "DicomAet": TITLE,
            "DicomModalities": {title: [title, *where] for title, where in (nodes or {}).items()},
            "DicomAlwaysAllowStore": True, "OrthancExplorerEnabled": False,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        })  # fmt: skip
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(["Orthanc", str(self._config)], stdout=log, stderr=log)
        for _ in range(600):
            try:
                if requests.get(f"{self.root}/system", auth=(USER, PASSWORD), timeout=2).status_code == 200:
                    return
            except requests.ConnectionError:
                time.sleep(0.05)
        raise AssertionError(self._log.read_text()[-4000:])

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def store(self, files: Sequence[bytes]) -> None:
        for content in files:
            self._ask("POST", "instances", data=content)

    def api(self, path: str) -> Any:
        """What its REST API answers to a GET."""
        return self._ask("GET", path).json()

    def instance(self, uid: str) -> bytes:
        """A file, by its SOPInstanceUID."""
        (name,) = self._find("Instance", SOPInstanceUID=uid)
        return self._ask("GET", f"instances/{name}/file").content

    def delete(self, patient_id: str = "*") -> None:
        for patient in self._find("Patient", PatientID=patient_id):
            self._ask("DELETE", f"patients/{patient}")

    def _find(self, level: str, **query: str) -> list[str]:
        found: list[str] = self._ask("POST", "tools/find", json={"Level": level, "Query": query}).json()
        return found

    def _ask(self, method: str, path: str, **body: Any) -> requests.Response:
        # Not httpx: tests of the service hold all its answers to the service's document.
        answer = requests.request(method, f"{self.root}/{path}", auth=(USER, PASSWORD), timeout=60, **body)
        answer.raise_for_status()
        return answer
