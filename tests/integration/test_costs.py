"""What a stage and a release are said to have taken, beside what the operating system counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import psutil
import pytest
from checkout import Checkout
from tiny_graph import DAEMON_MIB, DAEMON_SECONDS, OWN_SECONDS, tiny, wait_until

from flows.costs.members import MARK, Cgroup, own_cgroup
from flows.costs.meter import Meter
from flows.costs.usage import records_of
from flows.processes import started

# The stages of a release and its account, as the flow does them; without Prefect's server, which is slow.
RUN = """
from flows.environment import prepare
prepare()
from flows.processes import ending_with_us
from flows.run import COST, Run
run = Run("wholebody", jobs=1)
with ending_with_us():
    run.begin(lambda line: None)
    for step in run.steps:
        if "@" in step.name or step.name == COST:
            print(step.name, run.do(step, print), flush=True)
"""
RELEASE = (sys.executable, "-c", RUN)
START_SECONDS = 300  # until a stage is under way, on a busy machine
WITHIN = 0.1
# A daemon that has left its parent, its group and its session; it tells what the kernel says of it. Then a child that
# its parent, as Ray's does, lets go without waiting.
STAGE = f"""
import json, os, signal, time
def burn(seconds):
    while time.process_time() < seconds:
        pass
reads, writes = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        block = bytearray({DAEMON_MIB} << 20)
        block[::4096] = b"x" * len(block[::4096])
        begin = time.monotonic()
        burn({DAEMON_SECONDS})
        for number in (0, 1, 2):
            os.close(number)
        os.write(writes, json.dumps([time.process_time(), {DAEMON_MIB} / 1024 * (time.monotonic() - begin)]).encode())
        time.sleep(1000)
    os._exit(0)
os.wait()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if (worker := os.fork()) == 0:
    burn({OWN_SECONDS})
    time.sleep(1.5)  # it is looked at once a second
    os._exit(0)
daemon = json.loads(os.read(reads, 100))
while os.path.exists(f"/proc/{{worker}}"):
    time.sleep(0.1)
print(json.dumps(daemon))
"""


@pytest.mark.parametrize("way", ["cgroup", "samples"])
def test_what_leaves_its_parent_is_counted(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if way == "samples":
        monkeypatch.setattr(Cgroup, "of", lambda pid: None)
    elif own_cgroup() is None:
        pytest.skip("no control groups of version 2 are mounted here")
    mark, said = uuid.uuid4().hex, list[str]()
    environment = {**os.environ, MARK: mark}
    with (
        started([sys.executable, "-c", STAGE], environment=environment) as (process, lines),
        Meter("stage@line", process.pid, mark) as meter,
    ):
        if way == "cgroup" and meter.counted_by != way:
            pytest.skip("this machine lets us make no control group")
        said = list(lines)
        leftover = [one for one in psutil.process_iter() if mark in _mark_of(one)]
    meter.close("made")
    for one in leftover:
        one.kill()
    cpu_s, gib_s = json.loads(said[-1])
    assert meter.counted_by == way
    assert meter.usage.cpu_s == pytest.approx(cpu_s + OWN_SECONDS, rel=WITHIN)
    assert meter.usage.memory_gib_s == pytest.approx(gib_s, rel=WITHIN)
    assert meter.usage.peak_gib == pytest.approx(DAEMON_MIB / 1024, rel=WITHIN)
    own = own_cgroup()
    assert own is None or not list(own.glob(f"ctfoundry-{os.getpid()}-*"))
    (record,) = records_of("stage@line")
    assert record.usage == meter.usage


def _mark_of(process: psutil.Process) -> str:
    try:
        return str(process.environ().get(MARK, ""))
    except psutil.Error:
        return ""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return tiny(tmp_path_factory.mktemp("tiny"))


def test_a_release_tells_what_it_took_and_what_was_lost(checkout: Checkout) -> None:
    killed_at_once(checkout)
    done = subprocess.run(
        RELEASE, cwd=checkout.folder, env=checkout.environment() | {"BURNS": "curate"},
        capture_output=True, text=True,
    )  # fmt: skip
    for daemon in below(checkout.folder):
        daemon.kill()
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    account = json.loads((checkout.folder / "releases" / "wholebody.cost.json").read_text())
    rows = {row["stage"].partition("@")[0]: row for row in account["stages"]}
    used = json.loads((checkout.folder / "used.json").read_text())
    overhead = rows["drift"]  # dvc and Python of a stage that does nothing
    curate = rows["curate"]
    assert (curate["cpu_h"] - overhead["cpu_h"]) * 3600 == pytest.approx(used["cpu_s"], rel=WITHIN)
    idle = overhead["memory_gib_h"] / overhead["wall_h"] * curate["wall_h"]
    assert (curate["memory_gib_h"] - idle) * 3600 == pytest.approx(used["gib_s"], rel=WITHIN)
    assert curate["made"]["this_run"]
    assert [run["outcome"] for run in rows["acquire"]["lost_runs"]] == ["cut short"]
    assert account["lost"]["runs"] == 1
    assert account["lost"]["cpu_h"] > 0
    assert account["total"]["cpu_h"] == pytest.approx(sum(row["cpu_h"] for row in rows.values()))
    assert account["total"]["cost"] > 0
    assert account["total"]["kwh"] > 0
    assert "cost reports/wholebody/cost.html" in done.stdout
    assert "data:image/png" in (checkout.folder / "reports" / "wholebody" / "cost.html").read_text()
    card = (checkout.folder / "releases" / "wholebody" / "manifest.json").read_text()
    assert "cost" not in card  # a bundle is the same bytes, whatever it took


def test_a_changed_price_is_told_and_makes_nothing_again(checkout: Checkout) -> None:
    before = json.loads((checkout.folder / "releases" / "wholebody.cost.json").read_text())

    def dearer(content: dict[str, Any]) -> None:
        for name in ("cpu_hour", "memory_gib_hour", "gpu_hour"):
            content["costs"][name] *= 2

    checkout.edit(dearer)
    done = checkout.run("ctfoundry", "cost")
    assert done.returncode == 0, done.stderr
    assert "EUR" in done.stdout
    after = json.loads((checkout.folder / "reports" / "wholebody" / "cost.json").read_text())
    assert after["total"]["cost"] == pytest.approx(2 * before["total"]["cost"])
    assert after["total"]["cpu_h"] == before["total"]["cpu_h"]
    again = checkout.run("dvc", "repro", "bundle@wholebody")
    assert "Data and pipelines are up to date" in again.stdout, again.stdout + again.stderr


def test_a_bad_price_is_one_line(checkout: Checkout) -> None:
    text = (checkout.folder / "params.yaml").read_text()
    try:
        checkout.edit(lambda content: content["costs"].update(cpu_hour=-1))
        for command in ("cost", "params", "release"):
            done = checkout.run("ctfoundry", command)
            assert done.returncode == 1
            (line,) = done.stderr.splitlines()
            assert "params.yaml: costs.cpu_hour: -1 is not allowed" in line
    finally:
        (checkout.folder / "params.yaml").write_text(text)


def killed_at_once(checkout: Checkout) -> None:
    """A release, and all that it started, ends in its stage `acquire` by a signal that nobody hears."""
    with (checkout.folder / "log").open("w") as log:
        environment = checkout.environment() | {"SLOW": "acquire"}
        process = subprocess.Popen(RELEASE, cwd=checkout.folder, env=environment, stdout=log, stderr=log)
    try:
        under_way = (checkout.folder / "under_way").is_file
        wait_until(lambda: under_way() or process.poll() is not None, START_SECONDS, "the slow stage")
        assert process.poll() is None, (checkout.folder / "log").read_text()
    finally:
        process.kill()
        process.wait()
        left = below(checkout.folder)
        for child in left:
            child.kill()
        psutil.wait_procs(left, timeout=30)  # while one is there, what it had locked is busy to DVC


def below(folder: Path) -> list[psutil.Process]:
    """Processes that work in a checkout."""
    found = []
    for process in psutil.process_iter():
        try:
            found += [process] if Path(process.cwd()) == folder else []
        except psutil.Error:
            continue
    return found
