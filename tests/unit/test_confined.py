"""Work in a process of its own: whatever becomes of it, the caller gets a result or one line, within the bounds."""

from __future__ import annotations

import ctypes
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from components.confined import Bounds, Result, isolated
from components.ct.apart import volume_of
from components.ct.store import Volume
from components.errors import UserError
from components.isolation import GIB, data_bytes

FAR_TOO_MUCH = 2**31  # more than a process that has run other tests keeps for reuse
BOUNDS = Bounds(memory_bytes=GIB // 2, seconds=60)


def said(work: Callable[[], object], bounds: Bounds = BOUNDS) -> str:
    """The one line in which isolated work ends."""

    def run(_: None) -> Result:
        work()
        return Result({})

    with pytest.raises(UserError) as error:
        isolated(lambda: None, run, bounds, "scan.zip")
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_a_result_comes_back_with_its_bytes() -> None:
    pixels = np.arange(2**20, dtype=np.int16)
    result = isolated(
        lambda: 3, lambda prepared: Result({"a": [prepared]}, memoryview(pixels).cast("B")), BOUNDS, "scan.zip"
    )
    assert result.content == {"a": [3]}
    np.testing.assert_array_equal(np.frombuffer(result.data, np.int16), pixels)


def test_a_crash_is_one_line() -> None:
    assert said(lambda: ctypes.string_at(0)) == (
        "scan.zip: its reader crashed (SIGSEGV): the file is damaged, or not what its header says"
    )
    assert "(SIGABRT)" in said(os.abort)
    assert "(exit code 3)" in said(lambda: os._exit(3))


def test_work_that_never_ends_is_ended_though_it_runs_no_python() -> None:
    libc = ctypes.PyDLL(None)  # holds the interpreter's lock, as a decoder may
    begin = time.monotonic()
    assert "took longer than 1 s" in said(lambda: libc.sleep(60), Bounds(GIB, seconds=1))
    assert time.monotonic() - begin < 20


def test_memory_is_bounded_beyond_what_the_parent_has() -> None:
    bounds = Bounds(memory_bytes=64 * 2**20, seconds=60)
    there = np.ones(2 * bounds.memory_bytes, dtype=np.uint8)  # the parent's own does not count
    assert "needs more than 0.0625 GiB of memory" in said(lambda: np.ones(FAR_TOO_MUCH, np.uint8), bounds)
    isolated(lambda: None, lambda _: Result({"n": int(np.ones(2**25, np.uint8)[0])}), bounds, "scan.zip")
    assert data_bytes() > there.size


def test_errors_of_users_keep_their_words_and_others_show_none() -> None:
    def refuse() -> None:
        raise UserError("zip: no CT series in it")

    def fail() -> None:
        raise KeyError("SECRET^PATIENT")

    assert said(refuse) == "zip: no CT series in it"
    assert said(fail) == "scan.zip: not readable (KeyError)"


def test_a_child_says_no_warning_and_leaves_no_process(capfd: pytest.CaptureFixture[str]) -> None:
    before = psutil.Process().children()
    isolated(lambda: None, lambda _: Result({"x": warnings.warn("SECRET^PATIENT", stacklevel=1)}), BOUNDS, "scan.zip")
    assert "SECRET" not in capfd.readouterr().err
    assert psutil.Process().children() == before


def test_a_volume_is_the_same_read_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hu = np.random.default_rng(0).integers(-1024, 3000, (7, 9, 11)).astype(np.int16)
    affine = np.array([[0, 0.5, 0, 1], [0, 0, 0.25, 2], [3, 0, 0, 1 / 3], [0, 0, 0, 1]])
    read = volume_of(lambda: Volume(hu, affine), "scan")
    np.testing.assert_array_equal(read.hu, hu)
    np.testing.assert_array_equal(read.affine, affine)
    monkeypatch.setenv("CTFOUNDRY_MAX_MEMORY_BYTES", str(2**26))
    with pytest.raises(UserError, match=r"scan: needs more than 0\.0625 GiB of memory \(CTFOUNDRY_MAX_MEMORY_BYTES\)"):
        volume_of(lambda: Volume(np.ones((2**10, 2**10, FAR_TOO_MUCH // 2**21), np.int16), affine), "scan")
    monkeypatch.setenv("CTFOUNDRY_MAX_SECONDS", "soon")
    with pytest.raises(UserError, match="CTFOUNDRY_MAX_SECONDS: 'soon' is not allowed: a positive whole number"):
        volume_of(lambda: Volume(hu, affine), "scan")
