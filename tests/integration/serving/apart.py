"""A program as the service starts it, whose children do what the request says; each leaves a mark while it runs."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from components.confined import Bounds, Result
from components.errors import UserError
from components.isolation import GIB
from serving import program
from serving.program import Warm, Work, serve_forks

MARKS, SECONDS, WARM = Path(sys.argv[1]), int(sys.argv[2]), Warm(int(sys.argv[3]), float(sys.argv[4]))
GO_ON = MARKS.with_name("go_on")  # a file that ends all waiting
PREPARED = MARKS.with_name("prepared")  # the processes that have prepared, one a line
SHUT = MARKS.with_name("shut")  # a file while which nothing can be prepared
BOUND = GIB  # bytes
VALUE = "-".join(("SECRET", "PATIENT"))  # of a header; its source line may be logged


class ShutError(UserError):
    status = 503


def prepare() -> Work:
    """Takes more memory than a request may."""
    with PREPARED.open("a") as prepared:
        prepared.write(f"{os.getpid()}\n")
    if SHUT.exists():
        raise ShutError("nothing can be prepared; send it again later")
    held.append(mmap.mmap(-1, BOUND + GIB // 2, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    return work


held: list[mmap.mmap] = []


def work(request: dict[str, Any]) -> Result:
    task, scratch = Path(request["paths"]["scan"]).read_text(), Path(request["scratch"])
    mark = MARKS / str(os.getpid())
    mark.touch()
    with MARKS.with_name("begun").open("a") as begun:
        begun.write(f"{task}\n")
    (scratch / "unpacked").write_text(task)
    begin = time.monotonic()
    while task == "wait" and time.monotonic() < begin + 60 and not GO_ON.exists():
        (scratch / "unpacked").read_text()  # fails where the folder goes before the work does
        time.sleep(0.01)
    if task == "crash":
        ctypes.string_at(0)
    if task == "sleep":
        ctypes.PyDLL(None).sleep(60)  # C code that never lets go
    if task == "memory":
        bytearray(2 * GIB)
    if task == "key":
        raise KeyError(VALUE)
    if task == "refuse":
        raise UserError("not a CT")
    mark.unlink()
    return Result({"embedding": [1.0], "task": task, "process": os.getpid()})


if __name__ == "__main__":
    program.AGAIN_SECONDS = float(sys.argv[5])
    control = socket.socket(fileno=int(sys.argv[6]))
    manifest = {"name": "ctfoundry-wholebody", "digest": "0" * 64}
    control.send(json.dumps({"ready": {**manifest, "line": "wholebody", "inputs": {}}}).encode())
    serve_forks(control, prepare, Bounds(memory_bytes=BOUND, seconds=SECONDS), WARM)
