"""Gateway, service and PACS, each killed at random twenty times while studies come in: every one is answered once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from client import PATIENT, ct_slice
from conftest import started
from hospital import GATEWAY, STORESCU, Gateway, results_in, send, to_pacs, until, written
from released import first_answer, free_port, write_segmenter

from components.bundle.manifest import write_manifest
from tests.orthanc import Orthanc, require_orthanc
from tests.unit.test_serving_classifying import head

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STORESCU, reason="storescu not found: apt-get install dcmtk"),
]
KILLS, STUDIES, IMAGES = 20, 30, 26
LONGEST_MINUTES = 30


class Service:
    """The service, whose every process can be killed at once; it starts anew with the same port."""

    def __init__(self, release: Path, home: Path, environment: dict[str, str]) -> None:
        self._release, self._home, self._port, self._environment = release, home, free_port(), environment
        self.address = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        self.process = started(self._release, self._home, self._port, **self._environment)

    def kill(self) -> None:
        for pid in [self.process.pid, *_below(self.process.pid)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def _below(parent: int) -> list[int]:
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    children = [int(text) for text in done.stdout.split()]
    return children + [pid for child in children for pid in _below(child)]


def test_every_study_is_answered_once_whatever_is_killed(bundle: Path, tmp_path: Path) -> None:
    require_orthanc()
    release = Path(shutil.copytree(bundle, tmp_path / "wholebody"))
    write_segmenter(release, "organs_segmented", ("liver", "kidney_left"))
    head(release, "findings/ich", "scan")
    write_manifest(release, "wholebody", "ctfoundry-wholebody", {"code": "0" * 64})
    for name in ("orthanc", "bentoml", "gateway"):
        (tmp_path / name).mkdir()
    pacs = Orthanc(tmp_path / "orthanc", {GATEWAY: ("127.0.0.1", 1)})
    service = Service(release, tmp_path / "bentoml", {})
    first_answer(service.process, f"{service.address}/readyz", tmp_path / "bentoml" / "log")
    options = ("--quiet", "3", "--patience", "10", "--confirm", "20")
    gateway = Gateway(tmp_path / "gateway", service.address, "dicomweb", to_pacs(pacs), *options)
    killed = dict.fromkeys(("gateway", "service", "pacs"), 0)
    sent, chance = threading.Event(), random.Random(21)

    def sender() -> None:
        for number in range(STUDIES):
            study = f"1.2.30.{number}"
            images = [
                ct_slice(n, f"{study}.1", StudyInstanceUID=study, FrameOfReferenceUID=f"{study}.9")
                for n in range(IMAGES)
            ]
            folder = written(tmp_path / "sent" / str(number), images)
            while send(gateway.port, folder).returncode != 0:  # as a modality does: again, until it is taken
                time.sleep(0.2)
        sent.set()

    threading.Thread(target=sender, daemon=True).start()
    try:
        order = [name for name in killed for _ in range(KILLS)]
        chance.shuffle(order)
        for name in order:
            time.sleep(chance.uniform(0.2, 6.0))
            one = {"gateway": gateway, "service": service, "pacs": pacs}[name]
            one.kill()
            time.sleep(chance.uniform(0.0, 2.0))
            one.start()
            killed[name] += 1
        until(sent.is_set, 60 * LONGEST_MINUTES, gateway.log.read_text)

        def ended() -> bool:
            rows = [row.split() for row in gateway.ask("list").stdout.splitlines()[1:]]
            return len(rows) == STUDIES and all(row[1] in ("answered", "nothing", "failed") for row in rows)

        until(ended, 60 * LONGEST_MINUTES, gateway.log.read_text)
        assert killed == {"gateway": KILLS, "service": KILLS, "pacs": KILLS}
        assert results_in(pacs) == {f"1.2.30.{number}": ["SEG", "SR"] for number in range(STUDIES)}
        listed = [row.split() for row in gateway.ask("list").stdout.splitlines()[1:]]
        assert {(row[1], row[4], row[5]) for row in listed} == {("answered", str(IMAGES), "2")}
        assert list((gateway.state / "results").iterdir()) == []
        assert list((gateway.state / "incoming").iterdir()) == []
        assert PATIENT not in gateway.log.read_text() + gateway.audit.read_text()
    finally:
        for each in (gateway, service, pacs):
            each.kill()
