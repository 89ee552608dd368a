"""The compose file of a small site, and its alarms: valid, and of figures and settings that there are."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from serving.gateway.queue import Queue, sqlite_address
from serving.gateway.running import Figures
from serving.limits import Limits
from serving.load import Load
from serving.metrics import Metrics
from tests.released import ROOT

SITE = ROOT / "infra" / "site"


def test_the_compose_file_is_one() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(SITE / "compose.yaml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ours_run_without_root_and_only_dicom_can_be_opened() -> None:
    services = yaml.safe_load((SITE / "compose.yaml").read_text())["services"]
    for name in ("service", "gateway"):
        one = services[name]
        assert (one["read_only"], one["cap_drop"], one["user"]) == (True, ["ALL"], "10001:10001")
    ports = {name: one.get("ports", []) for name, one in services.items()}
    opened = {name: [port for port in of if not port.startswith("127.0.0.1:")] for name, of in ports.items()}
    assert {name: of for name, of in opened.items() if of} == {
        "gateway": ["${DICOM_ADDRESS:-127.0.0.1}:11112:11112"],
        "orthanc": ["${DICOM_ADDRESS:-127.0.0.1}:4242:4242"],
    }


def test_every_setting_is_one_that_the_readme_tells_of() -> None:
    told = (ROOT / "serving" / "README.md").read_text()
    names = set(re.findall(r"^ +(CTFOUNDRY_\w+):", (SITE / "compose.yaml").read_text(), re.MULTILINE))
    assert len(names) > 6
    for name in names:
        assert name in told or f"_{name.split('_', 2)[2].split('_', 1)[-1]}" in told, name


def test_alarms_go_by_figures_that_there_are(tmp_path: Path) -> None:
    queue = Queue(sqlite_address(tmp_path / "queue.sqlite"), "here")
    shown = {sample.name for family in Figures(queue, None, None).collect() for sample in family.samples}
    bins = {"vendor": {"GE": 1}}
    text = Metrics("m", "d", bins).text(Load(Limits()), True).decode()
    shown |= set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    asked = set(re.findall(r"\bctfoundry_\w+", (SITE / "rules.yml").read_text()))
    assert len(asked) >= 5
    assert asked <= shown
    queue.close()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool not found: apt-get install prometheus")
def test_alarms_ring_when_they_should() -> None:
    done = subprocess.run(["promtool", "test", "rules", "rules_test.yml"], cwd=SITE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
