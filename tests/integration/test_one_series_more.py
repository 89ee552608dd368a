"""A study more in the PACS, by the real DVC: one shard is run again, one series is transferred, and the receipt is that
of a shard which was transferred whole."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkout import Checkout, small

from components.tables import read_table
from tests.unit.small_pacs import PASSWORD, Pacs, make_series, serve

LINE, SHARDS = "wholebody", 2
RETRIEVED = re.compile(r"/series/1\.2\.826\.6\.(\d+)$")

pytestmark = pytest.mark.usefixtures("secret")


def from_the_pacs(content: dict[str, Any]) -> None:
    small(content)
    content["shards"] = list(range(SHARDS))
    cohort = content[LINE]["cohort"]
    cohort["source"] = "dicomweb"
    cohort["phantom"].update(evaluation_patients=4, retest_patients=0)


def reproduced(checkout: Checkout, *words: str) -> set[str]:
    """The stages that DVC ran for it."""
    done = checkout.run("dvc", "repro", *words)
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"Running stage '(\S+)'", done.stdout))


def transferred(pacs: Pacs) -> list[int]:
    """Numbers of the series that were fetched since the last time."""
    found = sorted(int(match[1]) for path in pacs.asked if (match := RETRIEVED.search(path)))
    pacs.asked.clear()
    return found


def test_a_series_more_runs_one_shard_and_is_transferred_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = Checkout(tmp_path, from_the_pacs)
    stages = {f"acquire@{LINE}-{shard}" for shard in range(SHARDS)}
    for pacs in serve(Pacs([make_series(number, 12, 32) for number in range(1, 9)])):
        for name, value in (("URL", pacs.url), ("USER", "ct"), ("PASSWORD", PASSWORD)):
            monkeypatch.setenv(f"CTFOUNDRY_DICOMWEB_{name}", value)
        assert reproduced(checkout, *sorted(stages)) == {f"cohort@{LINE}", *stages}
        assert transferred(pacs) == list(range(1, 9))
        before = read_table(tmp_path / "data" / LINE / "cohort" / "cohort.parquet")

        pacs.series.append(make_series(9, 12, 32))
        assert reproduced(checkout, "--single-item", "--force", f"cohort@{LINE}") == {f"cohort@{LINE}"}
        cohort = read_table(tmp_path / "data" / LINE / "cohort" / "cohort.parquet")
        new = cohort[~cohort["series"].isin(before["series"])]
        assert len(new) == 1
        shutil.rmtree(tmp_path / ".ctfoundry" / "raw")  # as preprocessing leaves it
        (shard,) = new["shard"]
        assert reproduced(checkout, *sorted(stages)) == {f"acquire@{LINE}-{shard}"}
        assert transferred(pacs) == [9]

        lock = (tmp_path / "dvc.lock").read_bytes()
        shutil.rmtree(tmp_path / ".ctfoundry")
        reproduced(checkout, "--single-item", "--force", f"acquire@{LINE}-{shard}")
        assert set(transferred(pacs)) > {9}
        assert (tmp_path / "dvc.lock").read_bytes() == lock, "a receipt that was kept is the one that is written anew"
