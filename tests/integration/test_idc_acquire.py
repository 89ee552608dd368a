"""The stage ``acquire`` on the idc source, against a real S3 server: statuses, outages, and the raw cache's budget."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import idc_index.index
import pandas as pd
import pytest

from components.acquire.stage import acquire_shard
from components.cohort.config import CohortConfig
from components.cohort.stage import write_slices
from components.errors import UserError
from components.files import StopStageError
from components.settings import parse, read_yaml
from components.sources import raw
from components.sources.config import AcquireConfig, TransferConfig
from components.sources.series import jobs_of
from components.sources.transfer import Bucket, _meaning, download
from components.tables import read_table
from tests.released import ROOT
from tests.s3 import CLOSED, S3, serving

LIDC_SERIES = "1.3.6.1.4.1.14519.5.2.1.6279.6001.100621383016233746780170740405"  # in the index that idc-index ships
TRANSFER = TransferConfig(attempts=2, backoff_s=0.0, stall_s=3.0, slowest_mb_s=0.1, connections=8)
CONFIG = AcquireConfig(
    workers=1, max_memory_gib=4.0, raw="evict", mixed_series="whole", max_unexpected=0, transfer=TRANSFER
)


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A server of this test's own, and an empty working directory."""
    monkeypatch.chdir(tmp_path)
    with serving(tmp_path) as server:
        monkeypatch.setenv("CTFOUNDRY_IDC_ENDPOINT", server.url)
        yield server


@pytest.fixture(scope="module")
def cohort() -> CohortConfig:
    return parse(CohortConfig, {**read_yaml(ROOT / "params.yaml")["wholebody"]["cohort"], "source": "idc"}, "cohort")


def write_cohort(rows: list[dict[str, Any]]) -> Path:
    folder, table = Path("cohort"), pd.DataFrame(rows).sort_values("series")
    write_slices(table, pd.DataFrame({"location": [""], "series": [""]}), int(table["shard"].max()) + 1, folder)
    return folder


def test_every_series_has_its_status_and_the_good_ones_are_unharmed(s3: S3, cohort: CohortConfig) -> None:
    two = {"a.dcm": b"1" * 1000, "b.dcm": b"2" * 1000}
    rows = [s3.store(name, two) for name in ("good", "missing", "truncated", "well")]
    rows.append(s3.store("forbidden", two, CLOSED))
    s3.delete("missing/b.dcm")
    s3.put("truncated/b.dcm", b"2" * 400)
    acquire_shard("wholebody", 0, write_cohort(rows), {"": cohort}, CONFIG, Path("out"))
    receipt = read_table(Path("out/receipt.parquet")).set_index("series")
    assert receipt["status"].to_dict() == {"sforbidden": "failed", "sgood": "acquired", "smissing": "failed",
                                           "struncated": "failed", "swell": "acquired"}  # fmt: skip
    details = receipt["detail"].to_dict()
    assert "403" in details["sforbidden"]
    assert "1 of 2 objects" in details["smissing"]
    assert "1400 of 2000 bytes" in details["struncated"]
    assert not any("\n" in detail for detail in details.values())
    files = read_table(Path("out/files.parquet"))
    assert set(files["series"]) == {"sgood", "swell"}
    assert sorted(p.name.split("-")[0] for p in (raw.RAW / "wholebody").iterdir()) == ["sgood", "swell"]


def test_an_outage_stops_the_stage_at_once_and_a_later_run_goes_on(s3: S3, cohort: CohortConfig) -> None:
    folder = write_cohort([s3.store(name, {"a.dcm": name.encode() * 1000}) for name in ("a", "b", "c")])
    jobs_of("wholebody", folder, 0, {"": cohort}, CONFIG)[0].fetch()
    first = next((raw.RAW / "wholebody").iterdir())
    arrived = (first / "a.dcm").stat().st_ino
    s3.stop()
    begin = time.monotonic()
    with pytest.raises(UserError, match="not reachable"):  # asked for before any series is tried
        acquire_shard("wholebody", 0, folder, {"": cohort}, CONFIG, Path("out"))
    with pytest.raises(StopStageError, match="not reachable"):  # gone midway: no series is failed for it
        jobs_of("wholebody", folder, 0, {"": cohort}, CONFIG)[1].fetch()
    assert time.monotonic() - begin < 60
    assert not Path("out").exists()
    again = S3(Path(), s3.port)
    try:
        for name in ("b", "c"):
            again.store(name, {"a.dcm": name.encode() * 1000})
        acquire_shard("wholebody", 0, folder, {"": cohort}, CONFIG, Path("out"))
    finally:
        again.stop()
    assert set(read_table(Path("out/receipt.parquet"))["status"]) == {"acquired"}
    assert (first / "a.dcm").stat().st_ino == arrived, "not fetched again"


def test_twelve_shards_pass_through_a_cache_of_two(
    s3: S3, cohort: CohortConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is brought in, preprocessed and let go: what is kept goes when room is needed, what waits never does."""
    shards, per_shard, size = 12, 3, 400_000
    budget = 2 * per_shard * size * 1.05  # the notes beside the files take a little
    monkeypatch.setenv(raw.BUDGET_VARIABLE, str(budget / 1e9))
    rows = [s3.store(f"{shard:02d}{n}", {f"{i}.dcm": os.urandom(size // 4) for i in range(4)}) | {"shard": shard}
            for shard in range(shards) for n in range(per_shard)]  # fmt: skip
    folder, peak, over = write_cohort(rows), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.01):
            peak = max(peak, used())

    watcher = threading.Thread(target=watch)
    watcher.start()
    processed = []
    try:
        for shard in range(shards):
            acquire_shard("wholebody", shard, folder, {"": cohort}, CONFIG, Path("out") / str(shard))
            for job in jobs_of("wholebody", folder, shard, {"": cohort}, CONFIG):  # as preprocessing does
                processed.append(len(raw.data_files(job.folder)))
                raw.let_go(job.folder, "keep")
    finally:
        over.set()
        watcher.join()
    print(f"peak {peak / 1e6:.2f} MB of {budget / 1e6:.2f} MB; {shards} shards of {per_shard * size / 1e6:.2f} MB")
    assert per_shard * size < peak <= budget
    assert processed == [4] * shards * per_shard, "every series is there when its turn comes"
    statuses = pd.concat([read_table(Path("out") / str(shard) / "receipt.parquet") for shard in range(shards)])[
        "status"
    ]
    assert statuses.tolist() == ["acquired"] * shards * per_shard


def test_shards_that_nobody_preprocesses_fill_the_cache_and_the_next_is_refused(
    s3: S3, cohort: CohortConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an order of all `acquire` first: nothing is thrown away to be fetched again."""
    monkeypatch.setenv(raw.BUDGET_VARIABLE, str(25_000 / 1e9))
    rows = [s3.store(f"{shard}", {"a.dcm": os.urandom(10_000)}) | {"shard": shard} for shard in range(3)]
    folder = write_cohort(rows)
    for shard in (0, 1):
        acquire_shard("wholebody", shard, folder, {"": cohort}, CONFIG, Path("out") / str(shard))
    with pytest.raises(UserError, match="of wholebody still wait for `preprocess` and are not evicted"):
        acquire_shard("wholebody", 2, folder, {"": cohort}, CONFIG, Path("out/2"))
    assert sorted(p.name.split("-")[0] for p in (raw.RAW / "wholebody").iterdir()) == ["s0", "s1"]


def used() -> int:
    total = 0
    for folder, _, names in os.walk(raw.RAW):  # os.walk passes over folders that have just gone
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(folder) / name).stat().st_size
    return total


@pytest.mark.parametrize("value", ["inf", "-5", "nan", "1e400", "ten", ""])
def test_a_budget_that_is_no_number_of_gigabytes_is_one_line(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(raw.BUDGET_VARIABLE, value)
    with pytest.raises(UserError) as told, raw.reserved({raw.RAW / "head" / "s3-a": 10}):
        pass
    assert str(told.value) == f"{raw.BUDGET_VARIABLE}: {value!r} is not allowed: a number of gigabytes"


def test_a_shard_larger_than_the_budget_is_told(s3: S3, cohort: CohortConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(raw.BUDGET_VARIABLE, "0.000001")
    folder = write_cohort([s3.store("big", {"a.dcm": bytes(5000)})])
    with pytest.raises(UserError, match=r"CTFOUNDRY_RAW_BUDGET_GB .* raise it, or use more shards"):
        acquire_shard("wholebody", 0, folder, {"": cohort}, CONFIG, Path("out"))
    monkeypatch.setenv(raw.BUDGET_VARIABLE, "much")
    with pytest.raises(UserError, match="'much' is not allowed: a number of gigabytes"):
        acquire_shard("wholebody", 0, folder, {"": cohort}, CONFIG, Path("out"))


def test_idc_index_is_silent_where_we_are_not(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Why transfers do not go through idc-index: it returns as if all were well when not one object arrived."""
    client = idc_index.index.IDCClient()
    client.index = client.index[client.index["SeriesInstanceUID"] == LIDC_SERIES]  # a million rows take it long
    row = client.index.iloc[0]
    monkeypatch.setattr(idc_index.index, "aws_endpoint_url", s3.url)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    client.download_from_selection(seriesInstanceUID=[LIDC_SERIES], downloadDir=str(theirs), show_progress_bar=False)
    assert not list(theirs.rglob("*.dcm"))
    with pytest.raises(UserError, match="no such object in the bucket"):
        download(Bucket.configured(), f"{row['aws_bucket']}/{row['crdc_series_uuid']}", ours, 1, 1, TRANSFER)
    assert httpx.get(s3.url).status_code == 200, "the server is well"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_what_s5cmd_says_of_a_full_disk_means_one(number: int) -> None:
    """It is a program in Go, which puts these as the system does, in small letters."""
    text = f'ERROR "cp s3://b/u/a.dcm a.dcm": write raw/.s1.partial/a.dcm: {os.strerror(number).lower()}\n'
    assert _meaning(text) == "the disk is full"
