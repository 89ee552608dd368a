"""The idc source against a real S3 server on 127.0.0.1: all bytes right, and every fault told in one line."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from components.errors import UserError
from components.files import DiskFullError
from components.settings import read_yaml
from components.sources import raw
from components.sources.config import IdcConfig, TransferConfig
from components.sources.idc import IdcSource
from components.sources.transfer import Bucket
from tests.released import ROOT, free_port
from tests.s3 import CLOSED, S3, serving

LIDC = "af9e2c1c-a1d4-4069-b7e9-4a3e835b3aad"  # its real name in the IDC
QUICK = TransferConfig(attempts=1, backoff_s=0.0, stall_s=3.0, slowest_mb_s=0.1, connections=8)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with serving(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture
def mirror(s3: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    monkeypatch.setenv("CTFOUNDRY_IDC_ENDPOINT", s3.url)
    return s3


@pytest.fixture(scope="module")
def instances(ct_root: Path) -> dict[str, bytes]:
    """Forty slices of the real LIDC chest, under names such as the bucket has."""
    with zipfile.ZipFile(ct_root / "dicom" / "lidc_idri_0314.zip") as archive:
        names = sorted(n for n in archive.namelist() if not n.endswith("/"))[:40]
        return {f"{index:08d}.dcm": archive.read(name) for index, name in enumerate(names)}


def source() -> IdcSource:
    block = read_yaml(ROOT / "params.yaml")["wholebody"]["cohort"]["idc"]
    return IdcSource(IdcConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in block.items()}))


def fetch(row: dict[str, Any], folder: Path, transfer: TransferConfig = QUICK) -> dict[str, str]:
    return raw.fetch(source(), row, [], folder / row["series"], transfer)


def refused(row: dict[str, Any], folder: Path, said: str) -> None:
    """The series fails with one line, and nothing of it stays."""
    with pytest.raises(UserError, match=said) as caught:
        fetch(row, folder)
    assert "\n" not in str(caught.value)
    assert list(folder.iterdir()) == []


def test_a_real_series_arrives_with_the_right_bytes(mirror: S3, instances: dict[str, bytes], tmp_path: Path) -> None:
    row = mirror.store(LIDC, instances)
    fetch(row, tmp_path)
    paths = raw.data_files(tmp_path / row["series"])
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
    assert found == {name: hashlib.sha256(content).hexdigest() for name, content in instances.items()}


def test_a_finished_series_is_not_fetched_again(mirror: S3, tmp_path: Path) -> None:
    row = mirror.store("finished", {"a.dcm": b"1" * 1000})
    fetch(row, tmp_path)
    mirror.delete("finished/a.dcm")
    fetch(row, tmp_path)  # would fail now, if it asked


def test_a_byte_that_flipped_on_the_disk_is_seen_and_the_series_fetched_again(
    mirror: S3, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = mirror.store("flipped", {"a.dcm": b"1" * 1000, "b.dcm": b"2" * 1000})
    hashes = fetch(row, tmp_path)
    with (tmp_path / "sflipped" / "b.dcm").open("r+b") as stream:
        stream.seek(500)
        stream.write(b"3")
    assert fetch(row, tmp_path) == hashes
    assert (tmp_path / "sflipped" / "b.dcm").read_bytes() == b"2" * 1000
    assert "series sflipped: its raw files on this disk have changed since they arrived" in caplog.text


def test_a_missing_object_is_told(mirror: S3, tmp_path: Path) -> None:
    row = mirror.store("missing", {"a.dcm": b"1" * 1000, "b.dcm": b"2" * 1000})
    mirror.delete("missing/b.dcm")
    refused(row, tmp_path, "1 of 2 objects are in the bucket")
    mirror.delete("missing/a.dcm")
    refused(row, tmp_path, "no such object in the bucket")


def test_a_truncated_object_is_told(mirror: S3, tmp_path: Path) -> None:
    row = mirror.store("short", {"a.dcm": b"1" * 1000, "b.dcm": b"2" * 1000})
    mirror.put("short/b.dcm", b"2" * 400)
    refused(row, tmp_path, "1400 of 2000 bytes; an object is not what the index says")


def test_a_forbidden_object_is_told(mirror: S3, tmp_path: Path) -> None:
    refused(mirror.store("private", {"a.dcm": b"1" * 1000}, CLOSED), tmp_path, r"access denied \(403\)")


def test_a_dead_endpoint_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTFOUNDRY_IDC_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    begin = time.monotonic()
    with pytest.raises(UserError, match="not reachable within 10 s"):
        source().check()
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CTFOUNDRY_IDC_CLOUD", "azure", "'azure' is not allowed: aws or gcs"),
        ("CTFOUNDRY_IDC_ENDPOINT", "s3.local", "'s3.local' is not allowed: http"),
    ],
)
def test_a_wrong_setting_is_one_line(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=said):
        Bucket.configured()


def test_gcs_names_its_buckets_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTFOUNDRY_IDC_CLOUD", "gcs")
    assert Bucket.configured().url("idc-open-data-two/x") == "s3://idc-open-idc1/x/*"
    assert Bucket.configured().endpoint == "https://storage.googleapis.com"


class _Stalls(http.server.BaseHTTPRequestHandler):
    """Lists one object of 2 MB, sends 64 KB of it, and then nothing more."""

    def do_GET(self) -> None:
        if "list-type" in self.path or "prefix" in self.path:
            body = (
                b'<?xml version="1.0"?><ListBucketResult><Name>idc-open-data</Name><IsTruncated>false</IsTruncated>'
                b"<Contents><Key>stall/a.dcm</Key><Size>2000000</Size><ETag>x</ETag>"
                b"<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents></ListBucketResult>"
            )
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_response(200)
        self.send_header("Content-Length", "2000000")
        self.end_headers()
        self.wfile.write(bytes(65536))
        self.wfile.flush()
        time.sleep(60)

    def log_message(self, *_: object) -> None:
        pass


def running(word: str) -> list[int]:
    """Processes that have ``word`` in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if word.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def test_a_stalled_connection_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Stalls)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("CTFOUNDRY_IDC_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    row = {"series": "sstall", "location": "idc-open-data/stall", "files": 1, "bytes": 2_000_000}
    begin = time.monotonic()
    refused(row, tmp_path, r"transfer stalled: no byte for 3 s after \d+ of 2000000 bytes")
    assert time.monotonic() - begin < 20
    assert not running(str(tmp_path)), "s5cmd is not left behind, writing"
    server.shutdown()


def test_a_missing_s5cmd_is_told(mirror: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "raw").mkdir()
    refused({**mirror.store("any", {"a.dcm": b"1"})}, tmp_path / "raw", "s5cmd: not found")


def test_a_full_disk_stops_the_stage(mirror: S3, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no right to mount a small disk here")
    try:
        row = mirror.store("large", {"a.dcm": bytes(3 << 20)})
        with pytest.raises(DiskFullError, match="the disk is full"):
            fetch(row, small)
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_credentials_of_the_site_are_not_used(mirror: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "secret")
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    fetch(mirror.store("public", {"a.dcm": b"1"}), tmp_path)


KILLED = """
import sys
from pathlib import Path
import pandas as pd
sys.path.insert(0, {tests!r})
import test_idc_source as t
from components.sources import raw
table = pd.read_parquet("rows.parquet")
for row in table.to_dict("records"):
    raw.fetch(t.source(), row, [], raw.RAW / "wholebody" / row["series"], t.QUICK)
    print(row["series"], flush=True)
"""


def test_killed_midway_and_resumed_keeps_what_is_finished(mirror: S3, tmp_path: Path) -> None:
    rows = [mirror.store(f"kill{i}", {f"{j}.dcm": os.urandom(300_000) for j in range(20)}) for i in range(4)]
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    command = [sys.executable, "-c", KILLED.format(tests=str(Path(__file__).parent))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    done = first.stdout.readline().strip()
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    cache = tmp_path / raw.RAW / "wholebody"
    kept = {p: p.stat().st_ino for p in (cache / done).iterdir()}
    assert len(list(cache.glob("s*"))) < 4
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert {p: p.stat().st_ino for p in (cache / done).iterdir()} == kept
    assert all(len(raw.data_files(cache / row["series"])) == 20 for row in rows)
