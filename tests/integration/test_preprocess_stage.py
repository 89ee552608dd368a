"""Stage ``preprocess`` computes what changed and nothing else, goes on where it was killed, and loses to a worker that
dies no more than the series that killed it."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.uid import RLELossless
from ray import cloudpickle

from components.acquire.stage import acquire_shard
from components.cluster import map_on_ray
from components.cohort.config import CohortConfig
from components.cohort.stage import write_slices
from components.ct.dicom import read_series
from components.ct.labels.stored import label_map_of, read_label_map
from components.ct.store import StoredVolume
from components.files import sha256_tree
from components.isolation import GIB, data_bytes
from components.preprocess import kept, stage
from components.preprocess.config import PreprocessConfig
from components.preprocess.stage import VolumeJob, preprocess_series, preprocess_shard
from components.settings import load_stage
from components.sources.config import AcquireConfig, PhantomConfig
from components.sources.phantom.dealing import plan_scans
from components.sources.series import jobs_of
from components.tables import read_table
from tests.released import ROOT

PARAMS = ROOT / "params.yaml"
LINE = "wholebody"


def rows(count: int) -> list[dict[str, Any]]:
    """Cohort rows of tiny phantom scans: 48 pixels across, nine slices."""
    config = PhantomConfig(
        anatomy="trunk", pretrain_patients=count, evaluation_patients=4, retest_patients=0, fault_share=0.0, seed=5
    )
    plans = [p for p in plan_scans(config) if p.role == "pretrain"][:count]
    common = {"source": "phantom", "set": "", "location": "", "files": 0, "bytes": 0, "collection": "c",
              "licence": "Apache-2.0", "doi": "", "role": "pretrain", "split": "pretrain", "retest_of": "",
              "study": "", "shard": 0}  # fmt: skip
    return [
        {**common, "series": f"s{n:016x}", "patient": f"p{n:016x}", "name": p.name,
         "plan": replace(p, matrix=48, pixel_mm=8.0, increment_mm=20.0, slices=9, fault="").to_json()}
        for n, p in enumerate(plans)
    ]  # fmt: skip


def acquired(count: int, evaluated: int = 0) -> Path:
    """The first ``count`` series brought in, below the working directory; the first ``evaluated`` are to evaluate."""
    listed = pd.DataFrame(rows(42)[:count])
    listed.loc[listed.index < evaluated, "role"] = "evaluation"
    write_slices(listed, pd.DataFrame({"location": [""], "series": [""]}), 1, Path("cohort"))
    acquire = load_stage(AcquireConfig, LINE, "acquire", PARAMS)
    cohort = load_stage(CohortConfig, LINE, "cohort", PARAMS)
    acquire_shard(LINE, 0, Path("cohort"), {"": cohort}, acquire, Path("acquire"))
    return Path("acquire")


def preprocessed(**changes: Any) -> pd.DataFrame:
    config = load_stage(PreprocessConfig, LINE, "preprocess", PARAMS).model_copy(update=changes)
    acquire = load_stage(AcquireConfig, LINE, "acquire", PARAMS)
    jobs = jobs_of(LINE, Path("cohort"), 0, {"": load_stage(CohortConfig, LINE, "cohort", PARAMS)}, acquire)
    screened = read_table(Path("acquire/receipt.parquet")).assign(accepted=True)
    return preprocess_shard(jobs, Path("acquire"), screened, config, Path("preprocess"))


def entries() -> dict[str, int]:
    """Series to inode of the finished volume: another inode has been written anew."""
    return {p.parent.name.split("-")[0]: p.stat().st_ino for p in (kept.KEPT / LINE).glob(f"s*/{kept.VOLUME}")}


def test_two_new_series_among_forty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    acquired(40)
    first = preprocessed()
    assert first["decoded"].all()
    before = entries()
    assert len(before) == len(first) == 40
    told = [StoredVolume(path).provenance for path in sorted(Path("preprocess/volumes").iterdir())]
    assert len({t["frame"] for t in told}) == len({t["patient"] for t in told}) == 40, "so that labels can be compared"
    assert all(t["frame"][0] == "r" and t["patient"][0] == "p" for t in told)
    assert len({p.stat().st_ino for p in Path("preprocess/volumes").iterdir()} & set(before.values())) == 40

    acquired(42)
    second = preprocessed()
    after = entries()
    assert {series for series, inode in after.items() if before.get(series) != inode} == {
        f"s{n:016x}" for n in (40, 41)
    }
    pd.testing.assert_frame_equal(second.head(40), first)

    damaged = next((kept.KEPT / LINE).glob(f"s{3:016x}-*")) / kept.VOLUME
    whole = damaged.read_bytes()
    damaged.unlink()  # a second name of the store's file: a flipped bit there must not be taken for the volume
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    pd.testing.assert_frame_equal(preprocessed(), second)
    assert damaged.read_bytes() == whole

    other = preprocessed(spacing_mm=(4.0, 2.0, 2.0))
    assert not set(entries().values()) & set(after.values()), "another grid: all are computed"
    assert len(entries()) == len(other) == 42, "nothing of the other grid stays"


def test_scans_that_evaluate_have_the_labels_that_their_source_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    acquired(3, evaluated=2)
    first = preprocessed()
    names = sorted(path.name for path in Path("preprocess/labels").iterdir())
    assert names == [f"s{n:016x}.{kind}" for n in (0, 1) for kind in ("b2nd", "json")]
    assert (first["labels_sha256"] != "").tolist() == [True, True, False]
    assert (first["labels_detail"] == "").all()
    stored = Path(f"preprocess/volumes/s{0:016x}.b2nd")
    path = label_map_of(stored)
    assert path is not None
    found = read_label_map(path)
    assert found.values.shape == StoredVolume(stored).shape
    assert {found.names[value] for value in np.unique(found.values) if value} >= {"liver", "spine", "body"}
    assert label_map_of(Path(f"preprocess/volumes/s{2:016x}.b2nd")) is None
    written = sha256_tree(Path("preprocess"))

    shutil.rmtree("preprocess")
    shutil.rmtree(".ctfoundry/raw")  # they are kept, and not made again
    pd.testing.assert_frame_equal(preprocessed(), first)
    assert sha256_tree(Path("preprocess")) == written

    damaged = next((kept.KEPT / LINE).glob(f"s{0:016x}-*")) / kept.LABELS
    whole = damaged.read_bytes()
    damaged.unlink()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    pd.testing.assert_frame_equal(preprocessed(), first)
    assert sha256_tree(Path("preprocess")) == written


def test_labels_that_cannot_be_read_cost_no_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    acquired(1, evaluated=1)
    mask = next(Path(".ctfoundry/raw").glob("*/*/mask.nii.gz"))
    mask.write_bytes(b"no NIfTI")
    row = preprocessed().iloc[0]
    assert (row["decoded"], row["labels_sha256"]) == (True, "")
    assert row["labels_detail"] == "mask.nii.gz: not readable as NIfTI (ImageFileError)"
    assert not list(Path("preprocess/labels").iterdir())


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import test_preprocess_stage as t
if __name__ == "__main__":
    t.preprocessed()
"""


def test_killed_midway_and_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "undisturbed").mkdir()
    monkeypatch.chdir(tmp_path / "undisturbed")
    acquired(16)
    shutil.copytree(tmp_path / "undisturbed", tmp_path / "killed")
    expected = preprocessed()
    monkeypatch.chdir(tmp_path / "killed")
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    command = [sys.executable, str(script)]
    run = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(entries()) < 3:
        assert run.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    finished = entries()
    assert not Path("preprocess").exists(), "nothing half-written stays"
    pd.testing.assert_frame_equal(preprocessed(), expected)
    assert finished.items() <= entries().items(), "what was finished is kept"
    assert sha256_tree(Path("preprocess")) == sha256_tree(tmp_path / "undisturbed" / "preprocess")


def fatal(job: VolumeJob) -> None:
    """As the stage's own function, with two series whose decoder does what no exception tells of."""
    if job.series.row["series"] == f"s{1:016x}":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job.series.row["series"] == f"s{2:016x}":
        np.ones(2 << 30)  # 16 GiB
    preprocess_series(job)


def test_a_worker_that_dies_costs_its_series_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    acquired(5)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers do not find the tests
    monkeypatch.setattr(stage, "preprocess_series", fatal)
    catalogue = preprocessed().set_index("series")
    assert catalogue["decoded"].tolist() == [True, False, False, True, True]
    assert catalogue.loc[f"s{1:016x}", "detail"] == "its worker process died, twice (WorkerCrashedError)"
    assert catalogue.loc[f"s{2:016x}", "detail"] == "needs more than 4 GiB of memory"
    assert len(list(Path("preprocess/volumes").iterdir())) == 3

    monkeypatch.setattr(stage, "preprocess_series", preprocess_series)
    again = preprocessed()
    assert again["decoded"].all(), "the loss is not kept: the next run tries again"


def endless(job: VolumeJob) -> None:
    """As the stage's own function, with one series whose decoder never lets go."""
    if job.series.row["series"] == f"s{1:016x}":
        ctypes.PyDLL(None).sleep(600)  # holds the interpreter's lock
    preprocess_series(job)


def test_a_series_that_never_ends_costs_itself_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    acquired(4)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(stage, "preprocess_series", endless)
    monkeypatch.setattr(stage, "map_on_ray", partial(map_on_ray, max_seconds=20))
    begin = time.monotonic()
    catalogue = preprocessed().set_index("series")
    assert time.monotonic() - begin < 300
    assert catalogue["decoded"].tolist() == [True, False, True, True]
    assert catalogue.loc[f"s{1:016x}", "detail"] == "took longer than 20 s"
    assert not list(Path(".ctfoundry").glob("deadlines-*"))


def test_a_file_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header of 60,000 x 60,000 pixels over a few compressed bytes; refused before the machine swaps."""
    monkeypatch.chdir(tmp_path)
    acquired(3)
    folder = next(p for p in Path(".ctfoundry/raw").rglob("0001.dcm")).parent
    bomb = pydicom.dcmread(folder / "0001.dcm")
    bomb.compress(RLELossless)
    bomb.Rows = bomb.Columns = 60_000
    bomb.save_as(tmp_path / "bomb.dcm")
    with pytest.raises(MemoryError):
        limited_read(tmp_path / "bomb.dcm")


def limited_read(path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + GIB, hard))
    try:
        read_series([path])
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
