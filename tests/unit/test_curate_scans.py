"""No scan of an evaluation set is pretrained on under another patient's name: bytes and voxels tell."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.ct.measure import measure_volume
from components.ct.store import Volume, write_volume
from components.curate.scans import MEASURED, same_scans
from components.curate.stage import EVALUATION_SCAN, _reject_twins
from components.tables import write_table

ROLES = {"s1": "pretrain", "s2": "pretrain", "s3": "evaluation", "s4": "held_out", "s5": "pretrain"}
EMPTY = hashlib.sha256(b"").hexdigest()
SHARD = {"s1": 0, "s2": 1, "s3": 0, "s4": 1, "s5": -1}


class Data:
    """A line's folder with receipts and volumes; the series are of two shards, one is rejected before the transfer."""

    def __init__(self, folder: Path, voxels: dict[str, int], files: dict[str, list[str]] | None = None) -> None:
        self.folder = folder
        self.cohort = pd.DataFrame([{"series": s, "role": ROLES[s], "shard": SHARD[s]} for s in ROLES])
        rows = [{"series": s, **self._volume(s, seed)} for s, seed in voxels.items()]
        rows.append({"series": "s5", "decoded": False, "detail": "damaged"})
        self.catalogue = pd.DataFrame(rows)
        for shard in (0, 1):
            own = {s: shas for s, shas in (files or {}).items() if SHARD[s] == shard}
            table = [(s, f"{n}.dcm", int(sha != EMPTY), sha) for s, shas in own.items() for n, sha in enumerate(shas)]
            columns = ["series", "file", "bytes", "sha256"]
            write_table(folder / "acquire" / str(shard) / "files.parquet", pd.DataFrame(table, columns=columns))

    def _volume(self, series: str, seed: int) -> dict[str, object]:
        hu = np.random.default_rng(seed).normal(0, 300, (12, 40, 40)).astype(np.int16)
        volume = Volume(hu, np.diag([3.0, 1.0, 1.0, 1.0]))
        path = self.folder / "preprocess" / str(SHARD[series]) / "volumes" / f"{series}.b2nd"
        write_volume(path, volume, {"series": series})
        return {"decoded": True, "n0": 12, "n1": 40, "n2": 40, **measure_volume(volume, volume, None)}

    def found(self) -> dict[str, str]:
        return same_scans(self.cohort, self.catalogue, self.folder, (0, 1))


def test_other_scans_are_no_twins(tmp_path: Path) -> None:
    data = Data(tmp_path, {"s1": 1, "s2": 2, "s3": 3, "s4": 4}, {"s1": ["a"], "s2": ["b"], "s3": ["c"], "s4": ["d"]})
    assert set(MEASURED) <= set(data.catalogue)
    assert data.found() == {}


def test_the_voxels_of_an_evaluation_set_are_known_under_any_name(tmp_path: Path) -> None:
    """Other headers, so other bytes of the files and of the stored volume: the voxels are the same."""
    data = Data(tmp_path, {"s1": 1, "s2": 4, "s3": 1, "s4": 4})
    assert data.found() == {"s1": "s3", "s2": "s4"}


def test_two_scans_that_measure_alike_are_held_against_each_other_voxel_by_voxel(tmp_path: Path) -> None:
    data = Data(tmp_path, {"s1": 1, "s2": 2, "s3": 3, "s4": 4})
    for column in MEASURED:
        data.catalogue.loc[data.catalogue["decoded"], column] = data.catalogue[column].iloc[0]
    assert data.found() == {}


def test_one_file_in_both_is_enough(tmp_path: Path) -> None:
    """A part of the scan, such as every second slice, gives another volume."""
    files = {"s1": ["a", "b"], "s2": ["x", "y"], "s3": ["b", "c", "d"], "s4": ["e"]}
    assert Data(tmp_path, {"s1": 1, "s2": 2, "s3": 3, "s4": 4}, files).found() == {"s1": "s3"}


def test_an_empty_file_in_both_is_no_scan_in_both(tmp_path: Path) -> None:
    """A transfer that broke off leaves one in any series."""
    files = {"s1": ["a", EMPTY], "s2": ["d", EMPTY], "s3": ["c", EMPTY], "s4": ["d", EMPTY]}
    assert Data(tmp_path, {"s1": 1, "s2": 2, "s3": 3, "s4": 4}, files).found() == {"s2": "s4"}


def test_twins_that_are_both_pretrained_on_are_no_leak(tmp_path: Path) -> None:
    files = {"s1": ["a"], "s2": ["a"], "s3": ["c"], "s4": ["c"]}
    assert Data(tmp_path, {"s1": 1, "s2": 1, "s3": 3, "s4": 3}, files).found() == {}


def test_a_twin_is_rejected_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    catalogue = pd.DataFrame(
        {"series": ["s1", "s2", "s3"], "accepted": [True, False, True], "reason": ["", "noise", ""]}
    )
    with caplog.at_level(logging.WARNING):
        _reject_twins(catalogue, {"s1": "s3", "s2": "s3"})
    assert catalogue["accepted"].tolist() == [False, False, True]
    assert catalogue["reason"].tolist() == [EVALUATION_SCAN, f"noise;{EVALUATION_SCAN}", ""]
    assert "2 series rejected" in caplog.text
