"""What ends a run ends all of it; what is lost beside it costs itself; two runs do not meet."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from checkout import Checkout
from tiny_graph import PAGE, tiny, wait_until

from components.files import write_json

RELEASE = ("ctfoundry", "release", "--line", "wholebody")
START_SECONDS = 240  # of Prefect's server, on a busy machine
PATIENCE = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(START_SECONDS)}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return tiny(tmp_path_factory.mktemp("tiny"))


def start(checkout: Checkout, **variables: str) -> subprocess.Popen[str]:
    """A release that is in the stage named by SLOW, with a worker that has left the stage's session."""
    (checkout.folder / "under_way").unlink(missing_ok=True)
    log = (checkout.folder / "log").open("w")
    environment = checkout.environment() | PATIENCE | variables
    process = subprocess.Popen(
        RELEASE, cwd=checkout.folder, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
    )
    under_way = (checkout.folder / "under_way").is_file
    wait_until(lambda: under_way() or process.poll() is not None, START_SECONDS, "the slow stage")
    assert process.poll() is None, said(checkout)
    return process


def said(checkout: Checkout) -> str:
    return (checkout.folder / "log").read_text()


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_everything_within_seconds(checkout: Checkout, number: signal.Signals) -> None:
    process = start(checkout, SLOW="acquire")
    commands = [" ".join(child.cmdline()) for child in processes_of(checkout.folder)]
    assert any("sleep 1000" in command for command in commands)
    assert any("uvicorn" in command for command in commands)
    begin = time.monotonic()
    if number == signal.SIGINT:  # as Ctrl-C: all of the group hear it, Prefect's server too
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    code = process.wait(timeout=60)
    assert time.monotonic() - begin < 20
    assert code == 128 + number, said(checkout)
    assert processes_of(checkout.folder) == []
    assert f"ctfoundry: ended by {number.name}" in said(checkout)
    assert runs_of("acquire", said(checkout)) == 1  # which is tried again where it fails by itself
    assert "Traceback" not in said(checkout)


def test_a_second_command_in_the_checkout_is_told_who_holds_it(checkout: Checkout) -> None:
    process = start(checkout, SLOW="acquire")
    before = (checkout.folder / "params.yaml").read_bytes()
    for command in (("release", "--source", "idc", "--privacy", "warning"), ("verify",), ("promote", "--none")):
        second = checkout.run("ctfoundry", *command)
        assert second.returncode == 1
        (line,) = second.stderr.splitlines()
        assert f"process {process.pid} on " in line
        assert "release --line wholebody" in line
    assert (checkout.folder / "params.yaml").read_bytes() == before
    process.send_signal(signal.SIGKILL)  # the kernel gives the lock back, whatever ended its holder
    process.wait()
    for child in processes_of(checkout.folder):
        child.kill()
    assert checkout.run("ctfoundry", "promote", "--none").returncode == 0


def test_a_prefect_server_that_is_killed_costs_its_page_and_not_the_release(checkout: Checkout) -> None:
    process = start(checkout, SLOW="acquire")
    (server,) = (child for child in processes_of(checkout.folder) if "uvicorn" in child.cmdline())
    server.kill()
    for child in processes_of(checkout.folder):  # the stage goes on to its end
        if child != server and child.cmdline()[:1] == ["python"] and "tiny_stage.py" in child.cmdline():
            child.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=START_SECONDS) == 0, said(checkout)
    log = said(checkout)
    assert log.count("warning: Prefect's server does not answer") == 1, log
    for noise in ("prefect.events.clients", "EventsWorker", "Error logging to API"):
        assert noise not in log
    assert "ctfoundry-wholebody:" in said(checkout)


@pytest.mark.slow
def test_a_prefect_server_that_does_not_start_costs_its_page_and_not_the_release(checkout: Checkout) -> None:
    process = subprocess.run(
        RELEASE, cwd=checkout.folder, capture_output=True, text=True,
        env=checkout.environment() | {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "1"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("warning: Prefect's server does not answer") == 1
    assert "ctfoundry-wholebody:" in process.stdout
    assert processes_of(checkout.folder) == []


@pytest.mark.slow
def test_a_failed_run_shows_nothing_of_an_earlier_one(checkout: Checkout) -> None:
    data = checkout.folder / "data" / "wholebody"
    write_json(data / "curate" / "funnel.json", PAGE)
    gate = {"gate": "gate gate", "figure": 0.9, "bound": 0.8, "verdict": "pass", "detail": ""}
    write_json(data / "gate" / "decision.json", {"verdict": "pass", "gates": [gate]})
    stage = checkout.folder / "tiny_stage.py"
    before = stage.read_text()
    stage.write_text(before + "\n# changed\n")
    log = run_failing(checkout, "cohort")
    assert "cohort: data/none: not found" in log
    for word in ("series in", "gate gate", "│ pass", "report.html", "releases/wholebody"):
        assert word not in log, word
    stage.write_text(before + "\n# changed again\n")
    log = run_failing(checkout, "gate")
    assert "series in" in log
    assert "gate gate" not in log
    stage.write_text(before)


def run_failing(checkout: Checkout, stage: str) -> str:
    """The release's output where ``stage`` fails; a mistake of the user is tried once."""
    environment = checkout.environment() | PATIENCE | {"FAILS": stage}
    process = subprocess.run(RELEASE, cwd=checkout.folder, env=environment, capture_output=True, text=True)
    log = process.stdout + process.stderr
    assert process.returncode == 1, log
    assert runs_of(stage, log) == 1
    return log


def runs_of(stage: str, log: str) -> int:
    return sum(line.endswith(f"> python tiny_stage.py {stage}") for line in log.splitlines())


def processes_of(folder: Path) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if is_in(process, folder)]


def is_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(folder)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
