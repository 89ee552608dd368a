"""What is said of a release's hours, money and energy follows from what was counted, and from nothing else."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml

from components.costs import CostsConfig, load_costs
from components.files import write_json, write_text
from components.tables import write_table
from flows.costs import release, usage
from flows.costs.energy import Gpus, Rapl
from flows.costs.ledger import Ledger, Seen
from flows.costs.moved import moved_bytes, receipts_of
from flows.costs.page import number, remarks, summary, table_rows, write_page
from flows.costs.usage import FAILED, KILLED, MADE, UNDER_WAY, Usage
from flows.graph import Node

PRICES: dict[str, Any] = {
    "currency": "CHF", "cpu_hour": 2.0, "gpu_hour": 10.0, "memory_gib_hour": 0.5, "moved_gb": 3.0,
    "stored_gb_month": 0.25,
    "energy": {"watts_per_core": 5.0, "watts_per_gib": 0.5, "overhead": 1.5, "grams_per_kwh": 400.0},
}  # fmt: skip
HOURLY = Usage(wall_s=3600, cpu_s=7200, memory_gib_s=14400, peak_gib=5.0, read_bytes=1e9, written_bytes=2e9)
ROOT, PARENT, CHILD = (1, 0.0), (2, 0.0), (3, 0.0)


def seen(parent: int, used: float, taken: float = 0.0) -> Seen:
    return Seen(parent, (used, 0.0, 0.0), (taken, 0.0, 0.0))


def total(*looks: dict[tuple[int, float], Seen]) -> float:
    ledger = Ledger()
    for look in looks:
        ledger.update(look)
    return ledger.total[0]


def test_a_child_that_was_waited_for_counts_once() -> None:
    before = {ROOT: seen(0, 1), CHILD: seen(1, 4)}
    assert total(before, {ROOT: seen(0, 6, taken=5)}) == 6  # it had used one more when it ended


def test_a_child_that_nobody_waits_for_counts_with_what_it_was_last_seen_to_use() -> None:
    assert total({ROOT: seen(0, 1), CHILD: seen(1, 4)}, {ROOT: seen(0, 1)}) == 5
    assert total({ROOT: seen(0, 1), CHILD: seen(99, 4)}, {ROOT: seen(0, 2)}) == 6  # a daemon, whose parent is not ours
    assert total({CHILD: seen(1, 4)}, {}) == 4


def test_a_child_and_its_parent_that_end_between_two_looks_count_once() -> None:
    before = {ROOT: seen(0, 1), PARENT: seen(1, 2), CHILD: seen(2, 4)}
    assert total(before, {ROOT: seen(0, 7, taken=6)}) == 7
    assert total(before, {ROOT: seen(0, 3, taken=2)}) == 7  # the parent was waited for, and had not waited itself


def test_a_number_that_is_given_again_is_another_process() -> None:
    assert total({(7, 1.0): seen(1, 4)}, {(7, 2.0): seen(1, 1)}) == 5


def test_energy_and_money_are_hours_times_their_rates() -> None:
    costs = CostsConfig.model_validate(PRICES)
    used = replace(HOURLY, gpu_s=1800, moved_bytes=2_000_000_000)
    assert release.price(used, costs) == pytest.approx(2 * 2.0 + 4 * 0.5 + 0.5 * 10.0 + 2 * 3.0)
    parts = release.kwh(used, costs.energy)
    assert parts == pytest.approx({"processor": 2 * 5.0 * 1.5 / 1000, "memory": 4 * 0.5 * 1.5 / 1000})
    metered = release.kwh(replace(used, cpu_j=3.6e6, gpu_j=7.2e6), costs.energy)
    assert metered == pytest.approx({"processor": 1.5, "memory": 0.003, "gpu": 3.0})


def test_what_nobody_measured_stays_unknown() -> None:
    assert (Usage() + Usage()).gpu_s is None
    assert (Usage(moved_bytes=3) + Usage()).moved_bytes == 3
    assert (Usage(peak_gib=2) + Usage(peak_gib=1)).peak_gib == 2


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three stages, the first two of which are in ``dvc.lock``."""
    monkeypatch.chdir(tmp_path)
    names = ["cohort@head", "acquire@head-0", "bundle@head"]
    monkeypatch.setattr(release, "stages_for", lambda target: [Node(name, "", ()) for name in names])
    write_text(Path("params.yaml"), yaml.safe_dump({"lines": ["head"], "costs": PRICES}))
    lock("a")
    return tmp_path


def lock(made_from: str) -> dict[str, Any]:
    """A ``dvc.lock``, the first stage made from something, and that stage's entry."""
    out = {"path": "data/head/cohort", "md5": made_from, "size": 10**9}
    stages = {
        "cohort@head": {"cmd": "c", "deps": [{"path": "x", "md5": made_from}], "outs": [out]},
        "acquire@head-0": {"cmd": "a", "outs": [{"path": "y", "md5": "2", "size": 5}, {"path": "z", "md5": "3"}]},
        "cohort@other": {"cmd": "o", "outs": [{"path": "o", "md5": "1", "size": 7}]},
    }
    write_text(Path("dvc.lock"), yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))
    return stages["cohort@head"]


def record(
    minute: int, outcome: str, used: Usage = HOURLY, entry: dict[str, Any] | None = None, **changed: Any
) -> None:
    """One of ``cohort@head``."""
    path, one = usage.begun("cohort@head", "cgroup")
    one = replace(one, began=f"2030-01-01T10:{minute:02}:00+00:00", **changed)
    usage.keep(path, one, outcome=outcome, usage=used, lock=usage.entry_hash(entry) if entry else "")


def test_the_lock_file_is_read_as_yaml_reads_it(project: Path) -> None:
    content = yaml.safe_load(Path("dvc.lock").read_text())["stages"]
    assert usage.lock_entries(content) == content
    assert usage.lock_entries(["cohort@head", "none@head"]) == {"cohort@head": content["cohort@head"]}
    assert usage.stored_bytes(content["acquire@head-0"]) == 5  # of one the size is unknown


def test_the_record_is_the_one_that_made_what_is_there_whatever_was_made_since(project: Path) -> None:
    """As where the run cache brings back what was made before."""
    record(1, MADE, replace(HOURLY, cpu_s=100), lock("a"))
    record(2, FAILED, replace(HOURLY, cpu_s=7))
    record(3, MADE, replace(HOURLY, cpu_s=300), lock("b"))
    lock("a")
    (cohort, acquire) = release.stage_costs("head")
    assert cohort.usage.cpu_s == 100
    assert acquire.made is None
    lock("b")
    (cohort, _) = release.stage_costs("head")
    assert cohort.usage.cpu_s == 307
    assert [run.outcome for run in cohort.lost] == [FAILED]


def test_runs_that_were_lost_are_part_of_it_and_one_under_way_is_none(project: Path) -> None:
    record(1, KILLED, replace(HOURLY, cpu_s=5))
    record(2, UNDER_WAY, replace(HOURLY, cpu_s=6), maker=(os.getpid(), 1.0))  # of a process of this number, long ago
    record(3, UNDER_WAY, replace(HOURLY, cpu_s=9), maker=(os.getpid(), psutil.Process().create_time()))
    record(4, MADE, replace(HOURLY, cpu_s=100), lock("a"))
    write_text(usage.COSTS / "cohort@head" / "damaged.json", "{")
    told = release.account("head")
    assert [run["outcome"] for run in told["stages"][0]["lost_runs"]] == [KILLED, usage.CUT_SHORT]
    assert told["lost"]["runs"] == 2
    assert told["total"]["cpu_h"] == pytest.approx(111 / 3600)


def test_the_account_names_what_is_missing_and_how_it_was_counted(project: Path) -> None:
    record(1, MADE, replace(HOURLY, cpu_j=3.6e6), lock("a"))
    told = release.account("head", {"cohort@head": replace(HOURLY, cpu_s=36)}, flow_cpu_s=72)
    said = "\n".join(remarks(told))
    assert "1 of 2 stages have no record here" in said
    assert "acquire@head-0" in said
    assert "metered (RAPL, by share of busy time) in 1 of 1 stages" in said
    assert "This run itself: 0.01 CPU h in 1 stages, 0.02 CPU h in the flow" in said
    assert told["total"]["kwh"] == pytest.approx(1.5 + 0.003)
    assert told["total"]["stored_per_month"] == pytest.approx(0.25, rel=1e-6)
    assert summary(told) == (
        "6 CHF, 1.5 kWh, 601 g CO2e (2 CPU h, 4 GiB h); to keep it: 0.25 CHF a month; without 1 of 2 stages, made "
        "elsewhere"
    )
    first, second, last = table_rows(told)
    assert first["CPU h"] == last["CPU h"] == "2"
    assert second["CPU h"] == "-"
    assert second["made"] == "no record of 1"
    assert first["made"] == "this run"
    assert "GPU h" not in first  # there is none to ask
    page = write_page(told, project / "cost.html").read_text()
    assert "acquire@head-0" in page
    assert "no record here" in page


def test_without_prices_hours_are_told_and_no_money(project: Path) -> None:
    write_text(Path("params.yaml"), "lines: [head]\n")
    record(1, MADE, HOURLY, lock("a"))
    told = release.account("head")
    assert "cost" not in told["total"]
    assert summary(told).startswith("2 CPU h, 4 GiB h")
    assert "No money and no energy" in "\n".join(remarks(told))
    assert load_costs() is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0"), (1234.5, "1234"), (0.0123456, "0.0123"), (0.00001234, "0.000012"), (1e-9, "<0.000001")],
)
def test_a_number_is_short_and_has_no_exponent(value: float | None, text: str) -> None:
    assert number(value) == text


def test_only_what_came_from_elsewhere_in_this_run_has_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = Path(".ctfoundry/receipts/head")
    write_json(kept / "old-1.json", {})
    before = receipts_of("head")
    for name in ("new-1", "made-1", "other_shard-1"):
        write_json(kept / f"{name}.json", {})
    rows = [("old", "idc", 100), ("new", "idc", 20), ("made", "phantom", 7)]
    write_table(Path("data/head/acquire/3/receipt.parquet"), pd.DataFrame(rows, columns=["series", "source", "bytes"]))
    assert moved_bytes("acquire@head-3", "head", before) == 20
    assert moved_bytes("acquire@head-4", "head", before) is None
    assert moved_bytes("curate@head", "head", before) is None
    assert receipts_of("none") == set()


def test_a_processor_meter_is_shared_by_busy_time_and_its_counter_may_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = [100.0, 110.0, 120.0]
    monkeypatch.setattr("flows.costs.energy._busy", lambda: busy.pop(0))
    for name, told in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "dram")):
        for file, text in (("name", told), ("energy_uj", "900000000"), ("max_energy_range_uj", "999999999")):
            write_text(tmp_path / name / file, text)
    meter = Rapl.here(tmp_path)
    assert meter is not None
    write_text(tmp_path / "intel-rapl:0" / "energy_uj", "100000000")
    assert meter.joules(2.5) == pytest.approx(200 * 0.25)
    write_text(tmp_path / "intel-rapl:0" / "energy_uj", "400000000")
    assert meter.joules(20.0) == pytest.approx(500)
    assert Rapl.here(tmp_path / "none") is None


class Nvml:
    """Two GPUs, of which the second has no meter; no machine of the tests has any."""

    class NVMLError(Exception):
        pass

    joules = 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if handle == 1:
            raise self.NVMLError
        return self.joules * 1000

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=10 + handle)]


def test_a_gpu_counts_while_the_stage_holds_it() -> None:
    nvml = Nvml()
    gpus = Gpus(nvml, [0, 1])
    nvml.joules = 50
    assert gpus.look({99}, 2.0) == (0.0, None)  # another's work
    nvml.joules = 80
    assert gpus.look({10, 99}, 2.0) == (2.0, 30.0)
    assert gpus.look({10, 11}, 2.0) == (4.0, 30.0)
