"""A small change costs little: what was transferred and is unchanged is not transferred again; a series that is odd,
and a disk that is full, are told."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from components.acquire import stage as acquire_stage
from components.acquire.stage import acquire_shard
from components.cohort.config import CohortConfig
from components.cohort.stage import FORGET_AFTER_DAYS, forget, write_slices
from components.command import shard_of
from components.curate.stage import training_set
from components.errors import UserError
from components.files import StopStageError
from components.isolation import guarded
from components.preprocess import kept
from components.preprocess import stage as preprocess_stage
from components.preprocess.config import PreprocessConfig
from components.preprocess.stage import preprocess_shard
from components.pretrain.__main__ import training_volumes
from components.settings import load_stage, parse, read_yaml
from components.sources import raw, receipts
from components.sources.config import AcquireConfig, PhantomConfig
from components.sources.phantom.dealing import plan_scans
from components.sources.phantom.scanner import scan
from components.sources.series import jobs_of
from components.tables import read_table
from tests.released import ROOT
from tests.s3 import S3

LINE = "wholebody"
PARAMS = ROOT / "params.yaml"
CONFIG = load_stage(AcquireConfig, LINE, "acquire", PARAMS).model_copy(update={"workers": 1})


class Bucket(S3):
    """An S3 server that knows what it has given."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._log, self._seen = folder / "moto.log", 0

    def given(self) -> int:
        """Objects sent since the last time."""
        got = self._log.read_text().count('"GET /idc-open-data/0')
        self._seen, new = got, got - self._seen
        return new


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, bytes]]:
    """Tiny series, as a scanner writes them."""
    config = PhantomConfig(
        anatomy="trunk", pretrain_patients=3, evaluation_patients=4, retest_patients=0, fault_share=0.0, seed=5
    )
    plans = [p for p in plan_scans(config) if p.role == "pretrain"]
    made = []
    for number, plan in enumerate(plans):
        folder = tmp_path_factory.mktemp(f"scan{number}")
        scan(replace(plan, matrix=48, pixel_mm=8.0, increment_mm=20.0, slices=9, fault=""), folder)
        made.append({path.name: path.read_bytes() for path in sorted(folder.glob("*.dcm"))})
    return made


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.chdir(tmp_path)
    server = Bucket(tmp_path)
    monkeypatch.setenv("CTFOUNDRY_IDC_ENDPOINT", server.url)
    try:
        yield server
    finally:
        server.stop()


def idc() -> CohortConfig:
    return parse(CohortConfig, {**read_yaml(PARAMS)[LINE]["cohort"], "source": "idc"}, "cohort")


def listed(rows: list[dict[str, Any]]) -> Path:
    table = pd.DataFrame(rows).sort_values("series", ignore_index=True)
    write_slices(table, pd.DataFrame({"location": [""], "series": [""]}), 1, Path("cohort"))
    return Path("cohort")


def series(s3: S3, number: int, files: dict[str, bytes]) -> dict[str, Any]:
    row = s3.store(f"{number:016x}", files)
    return {**row, "version": ""}


def acquired(rows: list[dict[str, Any]], config: AcquireConfig = CONFIG) -> pd.DataFrame:
    acquire_shard(LINE, 0, listed(rows), {"": idc()}, config, Path("acquire/0"))
    return read_table(Path("acquire/0/receipt.parquet"))


def tables() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path("acquire/0").iterdir())}


def preprocessed(config: AcquireConfig, **changes: Any) -> pd.DataFrame:
    grid = load_stage(PreprocessConfig, LINE, "preprocess", PARAMS).model_copy(update=changes)
    screened = read_table(Path("acquire/0/receipt.parquet")).assign(accepted=True)
    jobs = jobs_of(LINE, Path("cohort"), 0, {"": idc()}, config)
    return preprocess_shard(jobs, Path("acquire/0"), screened, grid, Path("preprocess"))


def objects_in(rows: list[dict[str, Any]]) -> int:
    return sum(row["files"] for row in rows)


def test_twenty_series_and_one_more(s3: Bucket, scans: list[dict[str, bytes]]) -> None:
    small = dict(list(scans[0].items())[:2])
    rows = [series(s3, number, small) for number in range(20)]
    first = acquired(rows)
    assert s3.given() == objects_in(rows)

    for job in jobs_of(LINE, Path("cohort"), 0, {"": idc()}, CONFIG):  # as preprocessing leaves it
        raw.let_go(job.folder, "evict")
    transfer = CONFIG.transfer.model_copy(update={"stall_s": 7.0, "attempts": 5})
    other = CONFIG.model_copy(update={"transfer": transfer, "workers": 2, "raw": "keep", "max_unexpected": 1})
    fetched = tables()
    pd.testing.assert_frame_equal(acquired(rows, other), first)
    assert tables() == fetched, "to the byte"
    assert s3.given() == 0, "a bound or a time-out transfers nothing"

    held_out = [{**row, "role": "held_out", "split": "held_out"} for row in rows]
    assert set(acquired(held_out)["role"]) == {"held_out"}, "what the cohort says now"
    assert s3.given() == 0

    more = [*rows, series(s3, 20, small)]
    second = acquired(more)
    assert s3.given() == len(small), "one series more: one is transferred"
    pd.testing.assert_frame_equal(second.head(20), first)

    moved = [{**more[0], "location": more[1]["location"]}, *more[1:]]
    acquired(moved)
    assert s3.given() == len(small), "other bytes under the same key are fetched"
    entry = next((receipts.KEPT / LINE).glob(f"s{3:016x}-*"))
    entry.write_text(entry.read_text().replace('"acquired"', '"acquired"').replace("0", "1", 1))
    acquired(moved)
    assert s3.given() == len(small), "a damaged receipt is none"


def test_another_grid_is_made_from_raw_files_that_were_kept(
    s3: Bucket, scans: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess_stage, "map_on_ray", guarded_in_process)  # Ray has its own tests
    rows = [series(s3, number, scan) for number, scan in enumerate(scans)]
    keep = CONFIG.model_copy(update={"raw": "keep"})
    acquired(rows, keep)
    assert preprocessed(keep)["decoded"].all()
    assert s3.given() == objects_in(rows)
    assert preprocessed(keep, spacing_mm=(6.0, 4.0, 4.0))["decoded"].all()
    assert s3.given() == 0
    assert preprocessed(CONFIG, spacing_mm=(5.0, 4.0, 4.0))["decoded"].all()
    assert s3.given() == 0, "they go after this"
    assert preprocessed(CONFIG, spacing_mm=(4.0, 4.0, 4.0))["decoded"].all()
    assert s3.given() == objects_in(rows)


def test_a_source_that_changed_is_told_once_and_taken_as_it_is_now(
    s3: Bucket, scans: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found when the raw files are fetched again: a receipt kept for ever would make a dead end of it."""
    monkeypatch.setattr(preprocess_stage, "map_on_ray", guarded_in_process)
    rows = [series(s3, number, scan) for number, scan in enumerate(scans[:2])]
    first = acquired(rows)
    jobs = jobs_of(LINE, Path("cohort"), 0, {"": idc()}, CONFIG)
    for job in jobs:  # as another line's need for room leaves it
        raw.evict(job.folder)
    name = min(scans[0])
    changed = scans[0][name][:-2] + b"\1\0"
    assert series(s3, 0, {**scans[0], name: changed}) == rows[0], "the index says nothing of it"
    with pytest.raises(StopStageError, match=r"1 of 9 files differ from the receipt.*source has changed since"):
        preprocessed(CONFIG)
    assert [job.receipt.exists() for job in jobs] == [False, True]
    pd.testing.assert_frame_equal(acquired(rows), first)
    digests = set(read_table(Path("acquire/0/files.parquet"))["sha256"])
    assert hashlib.sha256(changed).hexdigest() in digests
    assert preprocessed(CONFIG)["decoded"].all()


def test_one_series_more_moves_no_other() -> None:
    keys = [f"s{number * 0x9E3779B97F4A7C15 % 2**64:016x}" for number in range(1, 2001)]
    before = {key: shard_of(key, 7) for key in keys[:-1]}
    assert {key: shard_of(key, 7) for key in keys[:-1]} == before
    loads = pd.Series([shard_of(key, 7) for key in keys]).value_counts()
    assert len(loads) == 7
    assert loads.max() < 1.5 * len(keys) / 7
    assert shard_of("s000000000000000a", 7) == 3, "the key alone decides"


def test_shards_dealt_anew_train_nothing_again(tmp_path: Path) -> None:
    """A training depends on this table, and finds its volumes by their keys."""
    keys = [f"s{number * 0x9E3779B97F4A7C15 % 2**64:016x}" for number in range(1, 21)]
    curated = pd.DataFrame({"series": keys, "role": "pretrain", "status": "accepted", "sha256": "0" * 64})
    told = []
    for shards in (2, 16):
        volumes = [tmp_path / str(shards) / str(shard_of(key, shards)) / "volumes" / f"{key}.b2nd" for key in keys]
        for path in volumes:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        dealt = curated.assign(shard=[shard_of(key, shards) for key in keys], volume=[str(path) for path in volumes])
        training = training_set(dealt.sort_values("shard"))
        found = training_volumes(training, tmp_path / str(shards), shards)
        told.append((training.to_csv(), [path.name for path in found]))
    assert told[0] == told[1]
    assert told[0][1] == [f"{key}.b2nd" for key in sorted(keys)]


def test_slices_hold_their_shard_and_an_empty_one_is_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = {
        "patient": "p",
        "source": "idc",
        "set": "",
        "location": "b/u",
        "plan": "",
        "files": 1,
        "bytes": 5,
        "version": "",
    }
    table = pd.DataFrame([{**row, "series": f"s{n:016x}", "shard": n % 2} for n in range(4)])
    files = pd.DataFrame({"location": ["x", "y", "z"], "series": [f"s{1:016x}", f"s{2:016x}", ""]})
    write_slices(table, files, 3, Path("cohort"))
    parts = [read_table(Path(f"cohort/shards/{n}/cohort.parquet"))["series"].tolist() for n in range(3)]
    assert parts == [[f"s{0:016x}", f"s{2:016x}"], [f"s{1:016x}", f"s{3:016x}"], []]
    held = [read_table(Path(f"cohort/shards/{n}/files.parquet"))["location"].tolist() for n in range(3)]
    assert held == [["y"], ["x"], []], "another shard's files would make this one stale"
    assert [job.members for job in jobs_of(LINE, Path("cohort"), 1, {"": idc()}, CONFIG)] == [["x"], []]
    acquire_shard(LINE, 2, Path("cohort"), {"": idc()}, CONFIG, Path("acquire/0"))
    assert len(read_table(Path("acquire/0/receipt.parquet"))) == 0
    write_slices(table[table["shard"] == 2], files, 1, Path("cohort"))
    assert len(preprocessed(CONFIG)) == 0


def test_what_others_made_of_a_series_goes_and_the_folder_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """150,000 entries are listed in a tenth of a second: for each series, that would be hours."""
    entries = [tmp_path / f"s{number:016x}-new" for number in range(50)]
    for entry in (*entries, tmp_path / "s00-new", tmp_path / f"s{0:016x}-old", tmp_path / f".s{1:016x}-new.9.partial"):
        entry.mkdir()
        (entry / "row.json").touch()
    (tmp_path / f"s{2:016x}-old.json").touch()
    looked: list[str] = []
    scandir = os.scandir
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", lambda path=".": looked.append(str(path)) or scandir(path))
        receipts.forget_others([*entries, tmp_path / "none" / f"s{0:016x}-new"])
    assert looked.count(str(tmp_path)) == 1
    assert sorted(tmp_path.iterdir()) == sorted([*entries, tmp_path / "s00-new"])


# An odd series.


def test_an_error_that_nobody_foresaw_costs_its_series(
    s3: Bucket, scans: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [series(s3, number, dict(list(scans[0].items())[:1])) for number in range(3)]
    folder = listed(rows)
    job = jobs_of(LINE, folder, 0, {"": idc()}, CONFIG)[1]
    measure = acquire_stage._measure

    def odd(paths: list[Path], only_largest: bool) -> dict[str, Any]:
        found = measure(paths, only_largest)
        return {**found, "body_part": ("CHEST", "ABDOMEN")} if paths[0].parent == job.folder else found

    monkeypatch.setattr(acquire_stage, "_measure", odd)
    monkeypatch.setattr(acquire_stage, "map_isolated", guarded_in_process)
    with pytest.raises(UserError, match=r"acquire: 1 series of the shard gave no result \(1 x an error that nobody"):
        acquired(rows, CONFIG.model_copy(update={"max_unexpected": 0}))
    receipt = acquired(rows, CONFIG.model_copy(update={"max_unexpected": 1}))
    assert receipt["status"].tolist() == ["acquired", "lost", "acquired"]
    assert receipt["detail"].tolist() == ["", "an error that nobody foresaw (TypeError)", ""]
    monkeypatch.setattr(acquire_stage, "_measure", measure)
    assert set(acquired(rows)["status"]) == {"acquired"}, "tried again, from the files that are here"
    assert s3.given() == objects_in(rows)


def guarded_in_process(function: Any, items: Any, label: str, *, max_memory: int, **_: Any) -> list[Any]:
    """As ``map_isolated`` and ``map_on_ray``, where the test can reach."""
    return [guarded(function, item, max_memory) for item in items]


# What is kept of series that have left.


def test_what_has_left_the_cohort_is_forgotten_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places = [raw.RAW / LINE, receipts.KEPT / LINE, kept.KEPT / LINE, kept.KEPT / "head"]
    for place in places:
        place.mkdir(parents=True)
    for name in ("s1-a", "s2-a"):
        for place in (places[0], places[2], places[3]):
            (place / name).mkdir()
        (places[1] / f"{name}.json").touch()
    now = time.time()
    forget(LINE, frozenset({"s1"}), now)
    assert len(list(Path(".ctfoundry").rglob("s2-*"))) == 4, "an experiment's cohort comes and goes"
    forget(LINE, frozenset({"s1"}), now + (FORGET_AFTER_DAYS + 1) * 86_400)
    assert [p.parent.name for p in Path(".ctfoundry").rglob("s2-*")] == ["head"], "another line's is its own"
    assert len(list(Path(".ctfoundry").rglob("s1-*"))) == 4


def test_a_full_disk_while_volumes_are_kept(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a disk of one's own is not allowed here")
    script = f"""
import numpy as np
from pathlib import Path
from components.command import run_stage
from components.preprocess import kept
from components.preprocess import stage as preprocess_stage
from components.ct.store import Volume
import sys
hu = np.random.default_rng(0).integers(-999, 999, (200, 128, 128)).astype(np.int16)
sys.argv = ["preprocess", "--line", "head"]
entry, volume = Path({str(disk)!r}) / "entry", Volume(hu, np.eye(4)[:3])
run_stage("preprocess", "", lambda line: kept.keep(entry, {{"decoded": True}}, volume, {{}}))
"""
    try:
        command = [sys.executable, "-c", script]
        ran = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert ran.returncode == 1
        assert ran.stderr.startswith("preprocess: disk: full while writing below")
        assert ran.stderr.count("\n") == 1
        assert not list(disk.iterdir()), "nothing half-written"
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
