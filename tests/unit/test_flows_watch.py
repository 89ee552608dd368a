"""When a source is said to have changed since a line's last release."""

from __future__ import annotations

import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from components.errors import UserError
from components.settings import read_yaml
from components.sources.tree import tree_digest
from flows import watch
from flows.watch import RINGS, changes, drifted, installed

ROOT = Path(__file__).resolve().parents[2]


def git(*arguments: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *identity, *arguments], check=True)


def released(**cohort: object) -> None:
    """A version of line wholebody whose parameters say this of its source; the checkout's say it, too."""
    content = read_yaml(ROOT / "params.yaml")
    content["wholebody"]["cohort"].update(cohort)
    Path("params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    git("add", "params.yaml")
    git("commit", "-qm", "release")
    git("tag", "-a", "-m", "bundle", "wholebody@v0.0.1")
    git("push", "-q", "origin", "wholebody@v0.0.1")


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    subprocess.run(["git", "init", "-q", "--bare", str(tmp_path / "team.git")], check=True)
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(tmp_path / "checkout")
    git("init", "-q")
    git("remote", "add", "origin", str(tmp_path / "team.git"))
    monkeypatch.setenv("CTFOUNDRY_PSEUDONYM_KEY", "of a test, long enough")
    return tmp_path


def test_the_phantom_does_not_change() -> None:
    released()
    assert changes("wholebody") is None


def test_a_file_more_in_a_tree_is_a_change(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = checkout / "scans"
    tree.mkdir()
    (tree / "one.dcm").write_bytes(b"one")
    monkeypatch.setenv("CTFOUNDRY_ROOT_DICOM", str(tree))
    released(source="dicom", source_digest=tree_digest(tree))
    assert changes("wholebody") is None
    (tree / "two.dcm").write_bytes(b"two")
    found = changes("wholebody")
    assert found is not None
    assert (found.event, found.payload["source"]) == ("source.changed", f"dicom:{tree}")


@pytest.mark.parametrize(
    ("newer", "used", "expected"), [(0, 0, None), (1, 0, 1), (0, 1, 0), (1, None, 1), (0, None, None)]
)
def test_a_new_idc_version_is_one_beyond_the_last_releases(
    monkeypatch: pytest.MonkeyPatch, newer: int, used: int | None, expected: int | None
) -> None:
    """``newer``: than the installed index; ``used``: how far behind it the last release was, None: it took all."""
    monkeypatch.setattr(watch, "_newest_index", lambda: f"{installed() + newer}.0.1")
    idc = read_yaml(ROOT / "params.yaml")["wholebody"]["cohort"]["idc"]
    released(source="idc", idc={**idc, "idc_version": None if used is None else installed() - used})
    found = changes("wholebody")
    assert (None if found is None else found.payload["version"] - installed()) == expected
    if found is not None:
        assert found.event == "idc.version.released"
        assert ("raise its pin first" in found.told) == (newer > 0)


class Prometheus(BaseHTTPRequestHandler):
    """In which the alarm rings for the line ``head``."""

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)["query"]
        found = [{"metric": {"feature": feature}} for feature in ("vendor", "kvp")]
        result = found if asked == [RINGS.format(model="ctfoundry-head")] else []
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"status": "success", "data": {"result": result}}).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the tests' output."""


def test_an_alarm_of_the_lines_own_service_is_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    released()
    monkeypatch.delenv("CTFOUNDRY_PROMETHEUS", raising=False)
    assert drifted("head") is None
    with HTTPServer(("127.0.0.1", 0), Prometheus) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setenv("CTFOUNDRY_PROMETHEUS", address)
        assert drifted("wholebody") is None
        found = drifted("head")
        server.shutdown()
    assert found is not None
    assert (found.event, found.payload["features"]) == ("ctfoundry.service.drifted", ["kvp", "vendor"])
    with pytest.raises(UserError, match=f"^CTFOUNDRY_PROMETHEUS '{address}': no Prometheus answers: ConnectError$"):
        drifted("head")
