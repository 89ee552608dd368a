"""The compose file of a small site: valid, and of settings that there are."""

from __future__ import annotations

import re
import subprocess
import sys

import yaml

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


def test_every_file_that_is_mounted_is_there() -> None:
    text = (SITE / "compose.yaml").read_text()
    files = re.findall(r"- (\.{1,2}/\S+?):/etc/", text)
    assert len(files) == 2
    for file in files:
        assert (SITE / file).is_file(), file
