"""Rehearse the data stages at the size of the Imaging Data Commons: all but the transfers and the pixels is real.

    python -m tests.benchmarks.rehearse_idc [10000 50000 155221]

For each size, in a process of its own: the stage ``cohort`` on the real index (query ct_fm, IDC v14, all licences); a
receipt per shard of 5,000 series with a row and a hash per file; the suite *headers* over each shard; a catalogue row
per accepted series; ``curate`` with the suite *volumes*, the profile and the funnel. Header and voxel measurements are
drawn from those of phantom series that were really scanned, acquired, screened and preprocessed, faults included.
Prints seconds by stage, seconds per 1,000 series and the peak memory of the process.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from components.acquire.stage import acquire_shard
from components.cohort.config import CohortConfig
from components.cohort.stage import make_cohort
from components.curate.config import CurateConfig
from components.curate.stage import curate
from components.files import read_json
from components.preprocess.config import PreprocessConfig
from components.preprocess.stage import preprocess_shard
from components.screen.config import ScreenConfig
from components.screen.stage import screen_shard
from components.settings import parse, read_yaml
from components.sources.config import AcquireConfig
from components.sources.series import jobs_of
from components.tables import read_table, write_table
from tests.released import ROOT

SIZES = (10_000, 50_000, 155_221)
PER_SHARD = 5_000
LICENCES = ["CC BY 3.0", "CC BY 4.0", "CC BY-NC 3.0", "CC BY-NC 4.0",
            "National Library of Medicine Terms and Conditions; May 21, 2019"]  # fmt: skip
PARAMETERS = read_yaml(ROOT / "params.yaml")["wholebody"]
TEMPLATES = Path("templates")


def config_of(changes: dict[str, Any]) -> CohortConfig:
    return parse(CohortConfig, {**PARAMETERS["cohort"], **changes}, "cohort")


def make_templates() -> None:
    """Rows of a receipt and of a catalogue, measured on phantom series: what the simulated ones are drawn from."""
    phantom = {**PARAMETERS["cohort"]["phantom"], "pretrain_patients": 40, "evaluation_patients": 4,
               "retest_patients": 0}  # fmt: skip
    config, acquire = config_of({"phantom": phantom}), parse(AcquireConfig, PARAMETERS["acquire"], "acquire")
    cohort = make_cohort("wholebody", config, 1, frozenset(), TEMPLATES / "cohort")
    acquire_shard("wholebody", 0, TEMPLATES / "cohort", {"": config}, acquire, TEMPLATES / "acquire")
    screen = parse(ScreenConfig, PARAMETERS["screen"], "screen")
    screened = screen_shard(TEMPLATES / "acquire", cohort, 0, screen, TEMPLATES / "screen")
    jobs = jobs_of("wholebody", TEMPLATES / "cohort", 0, {"": config}, acquire)
    preprocess = parse(PreprocessConfig, PARAMETERS["preprocess"], "preprocess")
    preprocess_shard(jobs, TEMPLATES / "acquire", screened, preprocess, TEMPLATES / "preprocess")


class Rehearsal:
    """One size; ``seconds`` by stage."""

    def __init__(self, size: int, folder: Path) -> None:
        self._size, self._folder = size, folder
        self._receipts = read_table(TEMPLATES / "acquire" / "receipt.parquet")
        catalogue = read_table(TEMPLATES / "preprocess" / "catalogue.parquet")
        self._catalogue = catalogue[catalogue["decoded"]]
        self._rng = np.random.default_rng(size)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def run(self) -> dict[str, Any]:
        """All stages; the funnel."""
        shards = -(-self._size // PER_SHARD)
        idc = {**PARAMETERS["cohort"]["idc"], "licences": LICENCES, "excluded_collections": [],
               "evaluation_collections": [], "max_series_mb": None, "sample": self._size}  # fmt: skip
        config = config_of({"source": "idc", "idc": idc})
        with self._timed("cohort"):
            cohort = make_cohort("wholebody", config, shards, frozenset(), self._folder / "cohort")
        screen = parse(ScreenConfig, PARAMETERS["screen"], "screen")
        for shard in range(shards):
            rows = cohort[cohort["shard"] == shard]
            with self._timed("receipts (simulated)"):
                self._receive(rows, self._folder / "acquire" / str(shard))
            with self._timed("screen"):
                screened = screen_shard(
                    self._folder / "acquire" / str(shard), cohort, shard, screen, self._folder / "screen" / str(shard)
                )
            with self._timed("catalogue (simulated)"):
                kept = screened[screened["accepted"]]
                table = self._drawn(kept[list(rows.columns.intersection(self._catalogue.columns))], self._catalogue)
                write_table(self._folder / "preprocess" / str(shard) / "catalogue.parquet", table)
        with self._timed("curate"):
            curate(self._folder, tuple(range(shards)), parse(CurateConfig, PARAMETERS["curate"], "curate"),
                   self._folder / "curate")  # fmt: skip
        return dict(read_json(self._folder / "curate" / "funnel.json"))

    def _drawn(self, rows: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
        """``rows`` with measurements of series drawn from ``measured``."""
        drawn = measured.iloc[self._rng.integers(len(measured), size=len(rows))].reset_index(drop=True)
        kept = [column for column in drawn if column not in rows.columns]
        return pd.concat([rows.reset_index(drop=True), drawn[kept]], axis=1)

    def _receive(self, rows: pd.DataFrame, folder: Path) -> None:
        write_table(folder / "receipt.parquet", self._drawn(rows, self._receipts))
        series = np.repeat(rows["series"].to_numpy(str), rows["files"])
        digests = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(32), len(series), [None, pa.py_buffer(self._rng.bytes(32 * len(series)))]
        )
        files = pa.table({"series": series, "bytes": np.full(len(series), 525_000), "sha256": digests})
        pq.write_table(files, folder / "files.parquet", compression="zstd")
        write_table(folder / "annotations.parquet", read_table(TEMPLATES / "acquire" / "annotations.parquet").iloc[:0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--templates", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.templates:  # one size, in the process whose memory is measured
        os.chdir(arguments.templates)
        with tempfile.TemporaryDirectory(dir=".") as folder:
            rehearsal = Rehearsal(arguments.sizes[0], Path(folder) / "data" / "wholebody")
            funnel = rehearsal.run()
        total = sum(rehearsal.seconds.values())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in rehearsal.seconds.items())
        print(f"{funnel['in']:,} series in, {funnel['accepted']:,} accepted: {total:.0f} s ({stages}), "
              f"{total / funnel['in'] * 1000:.2f} s per 1,000, peak {peak:.2f} GB")  # fmt: skip
        return
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_templates()
        for size in arguments.sizes:
            command = [sys.executable, __file__, str(size), "--templates", folder]
            subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


if __name__ == "__main__":
    main()
