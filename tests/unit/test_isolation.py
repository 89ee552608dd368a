"""One item costs itself, whatever it does to the process that works on it."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from components.confined import Bounds, Result, isolated
from components.errors import UserError
from components.files import DiskFullError
from components.isolation import GIB, Deadline, Lost, check_unexpected, guarded, out_of_memory, untimed
from components.processes import map_all, map_isolated

ROOT = Path(__file__).resolve().parents[2]


def work(item: str) -> str:
    """Does what its name says."""
    if item == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "endless":
        ctypes.PyDLL(None).sleep(600)  # C code that holds the interpreter's lock, as a decoder may
    if item == "slow transfer":
        with untimed():
            time.sleep(5)
    if item == "too large":
        return str(np.ones(2 << 30).sum())  # 16 GiB
    if item == "odd":
        raise TypeError("PatientName is DOE^JANE")
    if item == "opencv":
        raise cv2_error(-4)
    if item == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if item == "gone":
        raise UserError("the source is gone")
    return item.upper()


def cv2_error(code: int) -> Exception:
    error = cv2.error("OpenCV: Failed in a function")
    error.code = code
    return error


def told(items: list[str], **bounds: Any) -> list[str]:
    """Results, and why there is none."""
    found = map_isolated(work, items, "try", size=len, **bounds)
    return [f"{item}: {f.detail}" if isinstance(f, Lost) else f for item, f in zip(items, found, strict=True)]


def test_what_happens_to_a_series_happens_to_no_other() -> None:
    items = ["a", "killed", "b", "odd", "c", "too large", "d", "e", "killed", "f"]
    found = told(items, workers=2, max_memory=GIB)
    assert found == [
        "A",
        "killed: its worker process died, twice",
        "B",
        "odd: an error that nobody foresaw (TypeError)",
        "C",
        "too large: needs more than 1 GiB of memory",
        "D",
        "E",
        "killed: its worker process died, twice",
        "F",
    ]


def test_a_users_mistake_ends_the_run() -> None:
    with pytest.raises(UserError, match="the source is gone"):
        told(["a", "gone"], workers=1, max_memory=GIB)
    with pytest.raises(DiskFullError):
        told(["full", "a"], workers=1, max_memory=GIB)


def test_where_every_item_counts_a_dead_worker_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^try: its worker process died, twice$"):
        map_all(work, ["a", "killed"], "try", workers=2)


def test_an_item_that_never_ends_is_ended_and_the_others_go_on() -> None:
    items = ["a", "endless", "b", "slow transfer", "c", "killed", "endless", "d"]
    begin = time.monotonic()
    found = told(items, workers=2, max_memory=GIB, max_seconds=3)
    assert found == [
        "A",
        "endless: took longer than 3 s",
        "B",
        "SLOW TRANSFER",
        "C",
        "killed: its worker process died, twice",
        "endless: took longer than 3 s",
        "D",
    ]
    assert time.monotonic() - begin < 120


def test_behind_a_transfer_the_deadline_holds_again(tmp_path: Path) -> None:
    deadline = Deadline(tmp_path / "mark", 1)
    child = os.fork()
    if child == 0:

        def endless(_: str) -> None:
            with untimed():
                time.sleep(2)
            time.sleep(30)

        guarded(endless, "item", GIB, deadline)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert "in endless" in deadline.mark.read_text(), "where it was"
    assert guarded(work, "a", GIB, deadline) == Lost("took longer than 1 s"), "not tried for as long again"


def test_an_item_in_time_leaves_no_deadline_behind(tmp_path: Path) -> None:
    deadline = Deadline(tmp_path / "mark", 0.5)
    for item, expected in (("a", "A"), ("odd", Lost("an error that nobody foresaw (TypeError)")), ("b", "B")):
        assert guarded(work, item, GIB, deadline) == expected
    time.sleep(1)  # this process is still there
    assert not deadline.missed


def test_memory_that_opencv_does_not_get_is_the_items_loss() -> None:
    assert guarded(work, "opencv", GIB) == Lost("needs more than 1 GiB of memory")


def test_memory_is_refused_in_many_words() -> None:
    torch = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    for error in (MemoryError(), cv2_error(-4), torch, RuntimeError("std::bad_alloc")):
        assert out_of_memory(error)

        def refused(_: object, error: BaseException = error) -> Result:
            raise error

        assert guarded(refused, "item", GIB) == Lost("needs more than 1 GiB of memory")
        with pytest.raises(UserError, match=r"^a\.zip: needs more than 1 GiB of memory"):
            isolated(lambda: None, refused, Bounds(memory_bytes=GIB), "a.zip")
    assert not out_of_memory(cv2_error(-2))


def test_the_log_says_where_and_not_what(caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(guarded(work, "odd", GIB), Lost)
    assert "TypeError in" in caplog.text
    assert Path(__file__).name in caplog.text
    assert "DOE" not in caplog.text


def test_too_many_are_told_and_counted() -> None:
    details = ["an error that nobody foresaw (TypeError)"] * 3 + ["its worker process died, twice"]
    check_unexpected("acquire", details, 4)
    said = "acquire: 4 series of the shard gave no result (3 x an error that nobody foresaw (TypeError), 1 x its worker"
    with pytest.raises(UserError, match=re.escape(said)):
        check_unexpected("acquire", details, 3)


UNDER_A_HARD_LIMIT = """
import resource
import cv2
from components.confined import Bounds, Result, isolated
from components.isolation import GIB, data_bytes, guarded
hard = data_bytes() + GIB
resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
limits = lambda _: resource.getrlimit(resource.RLIMIT_DATA)
told = isolated(lambda: None, lambda _: Result({"limits": limits(_)}), Bounds(memory_bytes=8 * GIB), "a.zip")
before = limits(None)
print(guarded(limits, "item", 8 * GIB) == before == (hard, hard), max(told.content["limits"]) <= hard)
"""


def test_a_machine_that_allows_less_memory_than_we_do_is_worked_on_within_its_limit() -> None:
    ran = subprocess.run([sys.executable, "-c", UNDER_A_HARD_LIMIT], capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout == "True True\n", ran.stderr
