"""A real S3 server (moto's), filled over plain HTTP, for tests and benchmarks of transfers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.released import first_answer, free_port

BUCKET = "idc-open-data"
CLOSED = "closed"  # a bucket that gives nothing to strangers
SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"}
PUBLIC = {"x-amz-acl": "public-read"}


class S3:
    """A server that can be stopped; a new one at the same port is empty."""

    def __init__(self, folder: Path, port: int | None = None, host: str = "127.0.0.1") -> None:
        self.port = port or free_port()
        self.url = f"http://{host}:{self.port}"
        log = folder / "moto.log"
        with log.open("wb") as said:
            command = [str(Path(sys.executable).parent / "moto_server"), "-H", host, "-p", str(self.port)]
            self._server = subprocess.Popen(command, stdout=said, stderr=said)
        first_answer(self._server, f"{self.url}/moto-api/", log)
        httpx.put(f"{self.url}/{BUCKET}", headers=SIGNED | PUBLIC).raise_for_status()
        httpx.put(f"{self.url}/{CLOSED}", headers=SIGNED).raise_for_status()

    def put(self, key: str, content: bytes, bucket: str = BUCKET) -> None:
        headers = SIGNED | (PUBLIC if bucket == BUCKET else {})
        httpx.put(f"{self.url}/{bucket}/{key}", content=content, headers=headers).raise_for_status()

    def delete(self, key: str) -> None:
        httpx.delete(f"{self.url}/{BUCKET}/{key}", headers=SIGNED).raise_for_status()

    def store(self, name: str, files: dict[str, bytes], bucket: str = BUCKET) -> dict[str, Any]:
        """Put a series; returns its row of the cohort."""
        for file, content in files.items():
            self.put(f"{name}/{file}", content, bucket)
        return {
            "series": f"s{name}", "patient": f"p{name}", "study": "", "name": name, "location": f"{bucket}/{name}",
            "source": "idc", "set": "", "plan": "", "files": len(files), "bytes": sum(map(len, files.values())),
            "collection": "c", "licence": "CC BY 4.0", "doi": "", "role": "pretrain", "split": "pretrain",
            "retest_of": "", "shard": 0,
        }  # fmt: skip

    def stop(self) -> None:
        self._server.kill()
        self._server.wait()


@contextmanager
def serving(folder: Path) -> Iterator[S3]:
    """A server for the length of a ``with`` block; its log goes to ``folder``."""
    server = S3(folder)
    try:
        yield server
    finally:
        server.stop()
