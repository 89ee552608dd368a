"""Nothing that a run has started outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from components.bundle.signing import KEY_FILE_VARIABLE, KEY_VARIABLE, PASSWORD_VARIABLE
from flows.processes import started

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import subprocess, time
from flows.processes import Stopped, ending_with_us, leave

try:
    with ending_with_us():
        subprocess.run(["sh", "-c", "sleep 1001 &"])  # its parent ends at once, as that of a daemon
        subprocess.Popen(["sleep", "1001"], start_new_session=True)
        subprocess.Popen(["sh", "-c", "trap '' TERM; while true; do sleep 1001; done"])  # deaf to the polite signal
        print("ready", flush=True)
        time.sleep(1000)
except Stopped as stopped:
    leave(128 + stopped.number)
"""


def left(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_every_process_below_wherever_it_has_gone(tmp_path: Path, number: signal.Signals) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", RUN], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stdout is not None
    try:
        assert run.stdout.readline() == "ready\n"
        assert len(left(tmp_path)) >= 4
        begin = time.monotonic()
        run.send_signal(number)
        assert run.wait(timeout=60) == 128 + number
        assert time.monotonic() - begin < 15
        assert left(tmp_path) == []
    finally:
        for process in left(tmp_path):
            process.kill()


BESIDE = """
import subprocess
from flows.processes import ending_with_us, started

with ending_with_us():
    beside = subprocess.Popen(["sleep", "1001"])
    try:
        with started(["sh", "-c", "sleep 1002 & echo begun; sleep 1003"]) as (process, lines):
            for text in lines:
                raise ValueError(text)
    except ValueError as error:
        print(error, process.poll() is not None, beside.poll() is None, flush=True)
"""


def test_what_ends_one_stage_leaves_the_one_beside_it_alone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BESIDE], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "begun True True\n"
    assert left(tmp_path) == []


def test_the_key_that_signs_releases_is_no_stages_to_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages read the files of others; a reader that one of these has taken over finds no key to take."""
    for variable in (KEY_VARIABLE, KEY_FILE_VARIABLE, PASSWORD_VARIABLE):
        monkeypatch.setenv(variable, "secret")
    for environment in (None, {**os.environ, "OF_THE_STAGE": "1"}):
        with started(["env"], environment=environment) as (_, lines):
            told = list(lines)
        assert any(line.startswith("PATH=") for line in told)
        assert ("OF_THE_STAGE=1" in told) == (environment is not None)
        assert not any("secret" in line for line in told)
