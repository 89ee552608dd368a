"""Stage ``preprocess`` computes what changed and nothing else, and goes on where it was killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from components.acquire.config import AcquireConfig
from components.acquire.stage import acquire_shard, jobs_of
from components.cohort.config import CohortConfig
from components.files import read_table, sha256_tree, write_table
from components.params import load_stage
from components.phantom.config import PhantomConfig
from components.phantom.plan import plan_scans
from components.preprocess import kept
from components.preprocess.config import PreprocessConfig
from components.preprocess.stage import preprocess_shard
from tests.released import ROOT

PARAMS = ROOT / "params.yaml"
LINE = "wholebody"


def rows(count: int) -> list[dict[str, Any]]:
    """Cohort rows of tiny phantom scans: 48 pixels across, nine slices."""
    config = PhantomConfig(pretrain_patients=count, evaluation_patients=4, retest_patients=0, fault_share=0.0, seed=5)
    plans = [p for p in plan_scans(LINE, config) if p.role == "pretrain"][:count]
    common = {"source": "phantom", "location": "", "files": 0, "bytes": 0, "collection": "c", "licence": "Apache-2.0",
              "doi": "", "role": "pretrain", "split": "pretrain", "retest_of": "", "study": "", "shard": 0}  # fmt: skip
    return [
        {**common, "series": f"s{n:016x}", "patient": f"p{n:016x}", "name": p.name,
         "plan": replace(p, matrix=48, pixel_mm=8.0, increment_mm=20.0, slices=9, fault="").to_json()}
        for n, p in enumerate(plans)
    ]  # fmt: skip


def acquired(count: int) -> Path:
    """The first ``count`` series brought in, below the working directory."""
    write_table(Path("cohort/cohort.parquet"), pd.DataFrame(rows(42)[:count]))
    write_table(Path("cohort/files.parquet"), pd.DataFrame({"location": [""], "series": [""]}))
    acquire = load_stage(AcquireConfig, LINE, "acquire", PARAMS)
    cohort = load_stage(CohortConfig, LINE, "cohort", PARAMS)
    acquire_shard(LINE, 0, Path("cohort"), cohort, acquire, Path("acquire"))
    return Path("acquire")


def preprocessed(**changes: Any) -> pd.DataFrame:
    config = load_stage(PreprocessConfig, LINE, "preprocess", PARAMS).model_copy(update=changes)
    transfer = load_stage(AcquireConfig, LINE, "acquire", PARAMS).transfer
    jobs = jobs_of(LINE, Path("cohort"), 0, load_stage(CohortConfig, LINE, "cohort", PARAMS), transfer)
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


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import test_preprocess_kept as t
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
