"""SEG and RTSTRUCT of the Imaging Data Commons: found by analysis result and study, fetched, told apart by series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from label_files import scanned, segmentation

from components.cohort.labelled import Matched
from components.cohort.masks import masks_of
from components.ct.keys import study_key, uid_key
from components.ct.origin import Origin
from components.errors import UserError
from components.files import StopStageError
from components.preprocess.masks import SeriesMasks
from components.settings import ParamsError, parse, read_yaml
from components.sources.config import IdcConfig, TransferConfig
from components.sources.idc import IdcSource
from components.sources.idc_index import table_path
from components.sources.idc_masks import cited, find_idc_masks
from components.sources.sets import set_of
from tests.released import ROOT
from tests.s3 import serving

RIDER = "rider_lungct_seg"  # of the index that idc-index-data ships
COLLECTION = {"collections": ["rider_lung_ct"], "licences": ["CC BY 3.0", "CC BY 4.0"], "idc_version": None,
              "sample": None,
              "one_reconstruction": False, "max_series_per_patient": None, "evaluation_collections": [],
              "excluded_collections": [], "max_series_mb": None}  # fmt: skip


def cohort_block() -> dict[str, Any]:
    return dict(read_yaml(ROOT / "params.yaml")["wholebody"]["cohort"])


def block(**masks: Any) -> dict[str, Any]:
    return {
        "scans": {"source": "idc", "idc": COLLECTION},
        "labels": {"table": "labels.csv", "digest": "0" * 64, "key": "patient", "column": "id"},
        "masks": masks, "split": {"seed": 1, "test": 0.5}, "role": "internal",
    }  # fmt: skip


def idc(**changes: Any) -> IdcConfig:
    return parse(IdcConfig, cohort_block()["idc"] | COLLECTION | changes, "t")


def studies_of(analysis: str) -> list[str]:
    query = "SELECT DISTINCT StudyInstanceUID FROM read_parquet(?) WHERE analysis_result_id = ? ORDER BY 1"
    rows = duckdb.execute(query, [str(table_path("idc_index")), analysis]).fetchall()
    return [str(row[0]) for row in rows]


def test_objects_are_those_of_the_studies_and_analyses_that_are_named() -> None:
    studies = studies_of(RIDER)
    found = find_idc_masks(idc(), (RIDER,), {study_key(studies[0])})
    assert {of.named for of in found.masks} == {(studies[0],)}
    assert all(of.kind == "study" and of.files > 0 and of.bytes > 0 for of in found.masks)
    every = find_idc_masks(idc(), (RIDER,), {study_key(study) for study in studies})
    assert len(every.masks) == 118, "59 SEG, 59 RTSTRUCT"
    told = cited(every.masks)
    assert told["collection"].unique().tolist() == ["rider_lung_ct"]
    assert (told["citation"].str.len() > 20).all()
    with pytest.raises(UserError, match=r"hold no SEG or RTSTRUCT of the scans' studies; 118 are of a licence that"):
        find_idc_masks(idc(licences=["CC BY-NC 3.0"]), (RIDER,), {study_key(study) for study in studies})
    with pytest.raises(UserError, match=r"'rider_lung_seg' has no SEG or RTSTRUCT in the index: .*; did you mean 'ri"):
        find_idc_masks(idc(), ("rider_lung_seg",), set())


def test_masks_of_a_set_of_the_idc_have_a_row_for_each_series_of_their_study() -> None:
    of_set = set_of("wholebody", "rider", block(analysis_results=[RIDER]), cohort_block())
    assert of_set.source is not None
    listing = IdcSource(of_set.source.idc).list_series(frozenset())
    rows = pd.DataFrame({"series": [of.series for of in listing.series]})
    found = masks_of(of_set, listing, Matched(rows, frozenset(), {}))
    assert found is not None
    study = {of.series: of.study for of in listing.series}
    assert (found.rows["files"] > 0).all()
    assert found.rows["location"].str.startswith("idc-open-data").all()
    assert found.account["masks_used"] == found.rows["number"].nunique() == 118
    assert found.rows.groupby("number")["series"].agg(lambda of: len({study[series] for series in of})).eq(1).all()
    assert found.attribution is not None
    for scans in (None, {"source": "dicom", "source_digest": "0" * 64}):
        with pytest.raises(ParamsError, match=r"masks.analysis_results: not allowed with these scans: only with"):
            set_of("wholebody", "x", {**block(analysis_results=[RIDER]), "scans": scans}, cohort_block())


@pytest.mark.usefixtures("secret")
def test_objects_are_fetched_and_those_of_other_series_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = scanned(tmp_path / "ct", matrix=24)
    masks = np.zeros((24, 24, 24, 1), dtype=np.uint8)
    masks[4:12, 5:20, 5:20] = 1
    with serving(tmp_path) as server:
        monkeypatch.setenv("CTFOUNDRY_IDC_ENDPOINT", server.url)
        files = []
        for number, name in enumerate(("ours", "theirs")):
            made = segmentation(of.items, masks, names=(name,))
            if name == "theirs":
                made.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"
            made.save_as(tmp_path / "seg.dcm")
            row = server.store(f"uuid{number}", {"a.dcm": (tmp_path / "seg.dcm").read_bytes()})
            files.append((row["location"], "", "", row["files"], row["bytes"]))
        transfer = TransferConfig(attempts=2, backoff_s=0.0, stall_s=3.0, slowest_mb_s=0.1, connections=2)
        key = uid_key(str(of.items[0].SeriesInstanceUID))
        found = SeriesMasks("wholebody", "rider", False, key, tuple(files), {"ours": "tumour"}, transfer)
        placed = found.on(of.volume, of.volume, Origin.of(of.items[0]))
        assert placed.labels.names == {1: "tumour"}
        assert int((placed.labels.values == 1).sum()) == 8 * 15 * 15
        other = SeriesMasks("wholebody", "rider", False, uid_key("9.9"), tuple(files), {}, transfer)
        with pytest.raises(UserError, match="labels: none of 2 series of SEG and RTSTRUCT of its study refers to it"):
            other.on(of.volume, of.volume, Origin())
        server.delete("uuid1/a.dcm")
        with pytest.raises(StopStageError, match=r"masks idc-open-data/uuid1 of set rider: transfer failed: no such"):
            found.on(of.volume, of.volume, Origin())
