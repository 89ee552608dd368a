"""Real CT from a directory tree through every data stage: what is sound is accepted, every trap is named."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from components.acquire.stage import acquire_shard
from components.cohort.config import CohortConfig
from components.cohort.stage import make_cohort
from components.ct.keys import patient_key
from components.curate.config import CurateConfig
from components.curate.stage import curate
from components.errors import UserError
from components.preprocess.config import PreprocessConfig
from components.preprocess.stage import preprocess_shard
from components.screen.config import ScreenConfig
from components.screen.stage import screen_shard
from components.settings import load_stage
from components.sources.config import AcquireConfig, TransferConfig
from components.sources.series import jobs_of
from components.sources.tree import tree_digest

pytestmark = pytest.mark.usefixtures("secret")
PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
TRANSFER = TransferConfig(attempts=1, backoff_s=0.0, stall_s=30.0, slowest_mb_s=0.5, connections=1)


def brought_in(root: Path, kind: str, held_out: frozenset[str], privacy: str) -> pd.DataFrame:
    """Every data stage over the tree ``root``, in the present folder; two shards. ``privacy``: what a finding costs."""
    config = load_stage(CohortConfig, "wholebody", "cohort", PARAMS)
    phantom = config.phantom.model_copy(
        update={"pretrain_patients": 1, "evaluation_patients": 4, "retest_patients": 0, "fault_share": 0.0}
    )
    of_tree = {"source": kind, "source_digest": tree_digest(root), "paths": "shown", "phantom": phantom}
    config = config.model_copy(update=of_tree)
    acquire = AcquireConfig(
        workers=None, max_memory_gib=4.0, raw="evict", mixed_series="whole", max_unexpected=0, transfer=TRANSFER
    )
    data = Path("data/wholebody")
    cohort = make_cohort("wholebody", config, 2, held_out, data / "cohort")
    for shard in (0, 1):
        folders = {stage: data / stage / str(shard) for stage in ("acquire", "screen", "preprocess")}
        acquire_shard(
            "wholebody",
            shard,
            data / "cohort",
            {"": config},
            acquire,
            folders["acquire"],
        )
        screening = load_stage(ScreenConfig, "wholebody", "screen", PARAMS).model_copy(update={"privacy": privacy})
        screened = screen_shard(folders["acquire"], cohort, shard, screening, folders["screen"])
        jobs = jobs_of("wholebody", data / "cohort", shard, {"": config}, acquire)
        grid = load_stage(PreprocessConfig, "wholebody", "preprocess", PARAMS)
        preprocess_shard(jobs, folders["acquire"], screened, grid, folders["preprocess"])
    curate(data, (0, 1), load_stage(CurateConfig, "wholebody", "curate", PARAMS), data / "curate")
    curated = pd.read_parquet(data / "curate" / "curated.parquet")
    assert len(curated) == len(cohort)
    return curated[curated["source"] == kind].set_index("name")


def test_sixteen_series_of_a_tree(ct_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTFOUNDRY_ROOT_DICOM", str(ct_root / "dicom"))
    series = brought_in(ct_root / "dicom", "dicom", frozenset({patient_key("LIDC-IDRI-0314")}), "warning")
    assert len(series) == 16
    accepted = series[series["status"] == "accepted"]
    assert sorted(accepted.index) == ["lidc_idri_0314.zip", *(f"sts_{n:03d}" for n in range(1, 13))]
    assert accepted.loc["lidc_idri_0314.zip", "role"] == "held_out", "its patient is in lidc_nodules"
    rejected = series[series["status"] == "rejected"]["reason"].to_dict()
    assert set(rejected["ge_head_tilted"].split(";")) >= {"gantry_tilt", "uneven_spacing"}
    assert rejected["abdomen_3slices"] == "too_few_slices"
    assert rejected["abdomen_jpeg2000"] == "scan_too_short", "decoded first, then judged by its length"
    assert not list(Path(".ctfoundry/raw/wholebody").iterdir()), "raw bytes are evicted shard by shard"


def test_identifiers_stop_a_run_where_the_header_states_nothing(
    ct_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ct_root / "dicom" / "abdomen_3slices"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTFOUNDRY_ROOT_DICOM", str(root))
    with pytest.raises(UserError, match="critical expectation failed: direct_identifiers") as caught:
        brought_in(root, "dicom", frozenset(), "critical")
    assert "attributes with a value: AccessionNumber, PatientName; de-identify the source" in str(caught.value)
    assert "JANCT" not in str(caught.value)


def test_nifti_volumes_and_the_masks_among_them(ct_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTFOUNDRY_ROOT_NIFTI", str(ct_root / "nifti"))
    series = brought_in(ct_root / "nifti", "nifti", frozenset(), "critical")
    volumes = [n for n in series.index if series.loc[n, "status"] == "accepted"]
    assert {name.partition("/")[0] for name in volumes} == {"abdomen_pelvis", "aorta_cta", "pulmonary_cta"}
    masks = series.drop(volumes)
    assert len(masks) > 0
    assert masks["reason"].str.len().gt(0).all(), "a mask among the volumes is rejected with a reason"
