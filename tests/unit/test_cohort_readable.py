"""A tree of which hardly anything can be read stops the run in one line; a few odd files, and what is none, do not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.cohort.config import CohortConfig
from components.cohort.readable import check_readable
from components.cohort.stage import make_cohort
from components.errors import UserError
from components.settings import load_stage
from components.sources import nifti
from components.sources.interface import Files
from components.sources.tree import Name, tree_digest
from tests.unit.small_pacs import as_file, make_series

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
pytestmark = pytest.mark.usefixtures("secret")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with a series of 30 slices, of a line that works in a folder beside it."""
    root = tmp_path / "root"
    (root / "sound").mkdir(parents=True)
    for number, image in enumerate(make_series(1, 30)):
        (root / "sound" / f"{number:04d}.dcm").write_bytes(as_file(image))
    for name in ("DICOM", "NIFTI"):
        monkeypatch.setenv(f"CTFOUNDRY_ROOT_{name}", str(root))
    monkeypatch.chdir(tmp_path)
    return root


def cohort_of(root: Path, source: str = "dicom", paths: str = "keyed") -> pd.DataFrame:
    config = load_stage(CohortConfig, "wholebody", "cohort", PARAMS)
    phantom = config.phantom.model_copy(
        update={"pretrain_patients": 1, "evaluation_patients": 4, "retest_patients": 0, "fault_share": 0.0}
    )
    quality = config.quality.model_copy(update={"file_kb": (0.001, 50000.0)})
    of_tree = {"source": source, "source_digest": tree_digest(root), "paths": paths, "phantom": phantom,
               "quality": quality}  # fmt: skip
    cohort = make_cohort("wholebody", config.model_copy(update=of_tree), 1, frozenset(), Path("cohort"))
    return cohort[cohort["role"] == "pretrain"]


def rot(folder: Path, count: int, ending: str = ".dcm") -> None:
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(1)
    for number in range(count):
        (folder / f"Miller^{number:04d}{ending}").write_bytes(noise.bytes(600))


def test_a_tree_that_is_mostly_rotten_stops_the_run(root: Path) -> None:
    rot(root / "rotten", 20)
    said = (
        r"root 'dicom': 40% of its data cannot be read \(unreadable 20; such as .+, .+, .+\); "
        r"cohort.quality.max_unreadable_share allows 25%: is the tree whole"
    )
    with pytest.raises(UserError, match=said) as caught:
        cohort_of(root)
    assert "\n" not in str(caught.value)
    assert "Miller" not in str(caught.value), "files' names are often patients'"
    assert not Path("cohort/cohort.parquet").exists()
    with pytest.raises(UserError, match="such as rotten/Miller"):
        cohort_of(root, paths="shown")


@pytest.mark.parametrize(("count", "ending"), [(9, ".dcm"), (10, ".dcm"), (200, ".txt"), (200, ".jpg"), (200, "")])
def test_a_few_odd_files_and_what_is_no_dicom_cost_themselves(root: Path, count: int, ending: str) -> None:
    rot(root / "other", count, ending)
    assert cohort_of(root)["files"].tolist() == [30]


def test_many_odd_files_of_very_many_cost_themselves(root: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(root / "sound", root / name)  # copies are read as well
    rot(root / "rotten", 30)
    assert cohort_of(root)["files"].tolist() == [30]


def test_volumes_that_cannot_be_opened_stop_the_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rot(root / "volumes", 40, ".nii.gz")
    assert len(cohort_of(root, "nifti")) == 40
    measured = nifti._measured

    def denied(root: Path, name: Name) -> tuple[int, str]:
        lost = name.location.endswith(tuple(f"{digit}.nii.gz" for digit in range(4)))
        return (0, "unreadable") if lost else measured(root, name)

    monkeypatch.setattr(nifti, "_measured", denied)
    with pytest.raises(UserError, match=r"root 'nifti': 40% of its data cannot be read \(unreadable 16; such as "):
        cohort_of(root, "nifti")


@pytest.mark.parametrize("status", ["unreadable_folder", "damaged_archive", "archive_over_limit"])
def test_a_folder_or_zip_that_cannot_be_read_counts_as_a_series(status: str) -> None:
    statuses = [*["image"] * 1000, *[status] * 11]
    files = Files([str(n) for n in range(1011)], [1] * 1011, statuses, [*["s"] * 1000, *[""] * 11])
    check_readable("dicom", files, 40, 0.25)
    with pytest.raises(UserError, match=rf"35% of its data cannot be read \({status} 11; such as 1000, 1001, 1002\)"):
        check_readable("dicom", files, 20, 0.25)
