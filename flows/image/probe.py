"""Run within a container by the image's own Python, which has the standard library only for this.

``python3 probe.py PLAN OUT`` starts the image's command, asks what the plan says and writes down what came: the
container has no way in from outside.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BOUNDARY = "ctfoundry-probe"


def main() -> None:
    plan, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    begin = time.monotonic()
    server = subprocess.Popen(plan["command"])
    try:
        _wait(server, plan["port"], begin + plan["seconds"])
        ready = time.monotonic() - begin
        healthy = subprocess.run(plan["healthy"], check=False).returncode
        answers = {path: _ask(plan["port"], path, Path(plan["scan"])) for path in plan["paths"]}
        server.terminate()
        ended = server.wait(timeout=plan["seconds"])
    finally:
        server.kill()
    told = {"ready_seconds": ready, "healthy": healthy, "answers": answers, "ended": ended, **_privileges()}
    out.write_text(json.dumps(told))


def _wait(server: subprocess.Popen[bytes], port: int, deadline: float) -> None:
    while time.monotonic() < deadline:
        if server.poll() is not None:
            sys.exit(f"the service has ended with {server.returncode}")
        try:
            if _request(port, "GET", "/readyz", b"", {})[0] == 200:
                return
        except OSError:
            time.sleep(0.1)
    sys.exit("the service is not ready in time")


def _ask(port: int, path: str, scan: Path) -> dict[str, Any]:
    """Status and JSON of an answer; of any other kind its SHA-256."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="scan"\r\n\r\n'.encode()
    body = head + scan.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    status, answered, content = _request(port, "POST", path, body, kind)
    if "json" in answered:
        return {"status": status, "json": json.loads(content)}
    return {"status": status, "sha256": hashlib.sha256(content).hexdigest()}


def _request(port: int, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers.get("Content-Type", ""), response.read()
    finally:
        connection.close()


def _privileges() -> dict[str, Any]:
    """What the kernel lets this process do, so that the test knows that it was as in production."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    links = [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
    return {
        "uid": int(status["Uid"].split()[0]),
        "capabilities": sorted({status[name].strip() for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")}),
        "no_new_privileges": status["NoNewPrivs"].strip() == "1",
        "read_only": bool(os.statvfs("/").f_flag & os.ST_RDONLY),
        "links": links,
    }


if __name__ == "__main__":
    main()
