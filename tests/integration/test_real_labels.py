"""Labels of one's own on real CT: a folder of DICOM and a table become a set, whose scans pass the data stages."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from components.acquire.stage import acquire_shard
from components.cohort.config import CohortConfig
from components.cohort.stage import make_cohort, write_slices
from components.files import read_json
from components.preprocess.config import PreprocessConfig
from components.preprocess.stage import preprocess_shard
from components.screen.config import ScreenConfig
from components.screen.stage import screen_shard
from components.settings import load_stage, read_yaml
from components.sources.config import AcquireConfig
from components.sources.locate import locate
from components.sources.series import jobs_of
from components.sources.sets import sets_of, sources_of
from components.tables import read_table
from flows.cli import main
from flows.parameters import pin
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("secret")
LINE = "wholebody"
GRADES = {"STS_001": 1, "STS_002": 0, "STS_003": 1, "STS_008": 0}
UNLABELLED = "sts_012"


@pytest.fixture
def site(ct_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout's parameters; ``scans``, with five patients' DICOM series; and ``labels.csv``, of four of them and of
    one who has no scan."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("scans").mkdir()
    for name in (*map(str.lower, GRADES), UNLABELLED):
        Path("scans", name).symlink_to(ct_root / "dicom" / name)
    rows = [f"{patient},{grade}" for patient, grade in {**GRADES, "STS_999": 1}.items()]
    Path("labels.csv").write_text("\n".join(["PatientID,high_grade", *rows]) + "\n")
    pin(LINE, "cohort", {"phantom": {**read_yaml()[LINE]["cohort"]["phantom"], "pretrain_patients": 1,
                                     "evaluation_patients": 4, "retest_patients": 0, "fault_share": 0.0}})  # fmt: skip
    return tmp_path


def add_set(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "set add site --scans dicom:scans --labels labels.csv --key patient=PatientID --label high_grade"
    monkeypatch.setattr(sys, "argv", ["ctfoundry", *words.split()])
    monkeypatch.setattr("flows.cli.leave", lambda code: sys.exit(code))
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0


def brought_in(cohort: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The line's stages acquire, screen and preprocess over the set's scans; the table of screening, the catalogue."""
    data, acquire, sources = Path("data") / LINE, load_stage(AcquireConfig, LINE, "acquire"), sources_of(LINE)
    acquire_shard(LINE, 0, data / "cohort", sources, acquire, data / "acquire")
    screening = load_stage(ScreenConfig, LINE, "screen")
    screened = screen_shard(data / "acquire", cohort, 0, screening, data / "screen")
    jobs = jobs_of(LINE, data / "cohort", 0, sources, acquire)
    grid = load_stage(PreprocessConfig, LINE, "preprocess")
    return screened, preprocess_shard(jobs, data / "acquire", screened, grid, data / "preprocess")


def test_a_folder_of_dicom_and_a_column_of_0_and_1(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_set(monkeypatch)
    block = read_yaml()[LINE]
    asked = {
        "kind": "classify",
        "set": "site",
        "label": "high_grade",
        "serve": True,
        "specificity": 0.9,
        "few_shot": None,
    }
    assert block["tasks"]["high_grade"] == asked
    folder = Path("data") / LINE / "cohort"
    config = load_stage(CohortConfig, LINE, "cohort")
    cohort = make_cohort(LINE, config, 1, frozenset(), folder, sets_of(LINE))
    scans = cohort[cohort["set"] == "site"]
    assert len(scans) == len(GRADES)
    assert set(scans["role"] + "/" + scans["split"]) == {"evaluation/held_out"}
    assert (scans["reason"] == "").all()

    labelled = read_table(folder / "labelled.parquet")
    table = sets_of(LINE)["site"].table()[0]
    assert table["high_grade"].iloc[labelled["row"]].tolist() == ["1", "0", "1", "0"]
    assert set(labelled["split"]) == {"train", "test"}
    account = read_json(folder / "labelled.json")["site"]
    assert (account["scans"], account["scans_without_row"], account["rows_without_scan"]) == (4, 1, [5])
    files = read_table(folder / "files.parquet")
    unlabelled = files[files["status"] == "no_label"]
    assert len(unlabelled) == len(list(Path("scans", UNLABELLED).iterdir()))
    assert Path(locate(LINE, unlabelled["location"].iloc[0]).paths[0]).parent == site / "scans" / UNLABELLED

    write_slices(scans, files, 1, folder)  # the phantom's scans are other tests'
    screened, stored = brought_in(scans)
    assert set(screened["series"]) == set(scans["series"]) == set(stored["series"])
    assert screened["accepted"].all(), screened["reason"].tolist()
    assert stored["decoded"].all(), stored["detail"].tolist()
    assert set(stored["role"] + "/" + stored["split"]) == {"evaluation/held_out"}
