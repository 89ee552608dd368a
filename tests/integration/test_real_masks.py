"""Masks of real CT: structure sets, label maps and a file per structure become label maps on the volumes' grids."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest

from components.acquire.stage import acquire_shard
from components.cohort.config import CohortConfig
from components.cohort.stage import make_cohort, write_slices
from components.ct.labels.onto_grid import read_labels
from components.ct.labels.stored import label_map_of, read_label_map
from components.ct.store import StoredVolume
from components.curate.labels import account
from components.files import read_json
from components.preprocess.config import PreprocessConfig
from components.preprocess.masks import masks_by_series
from components.preprocess.stage import preprocess_shard
from components.screen.config import ScreenConfig
from components.screen.stage import screen_shard
from components.settings import load_stage, read_yaml
from components.sources.config import AcquireConfig
from components.sources.series import jobs_of
from components.sources.sets import sets_of, sources_of
from components.tables import read_table
from flows.cli import main
from flows.parameters import pin
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("secret")
LINE = "wholebody"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    pin(LINE, "cohort", {"phantom": {**read_yaml()[LINE]["cohort"]["phantom"], "pretrain_patients": 1,
                                     "evaluation_patients": 4, "retest_patients": 0, "fault_share": 0.0}})  # fmt: skip
    pin(LINE, "screen", {"privacy": "warning"})
    return tmp_path


def add_set(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ctfoundry", "set", "add", *words])
    monkeypatch.setattr("flows.cli.leave", lambda code: sys.exit(code))
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0


def listed() -> tuple[pd.DataFrame, dict[str, Any]]:
    """The scans of the line's sets, and what of them fits."""
    folder = Path("data") / LINE / "cohort"
    cohort = make_cohort(LINE, load_stage(CohortConfig, LINE, "cohort"), 1, frozenset(), folder, sets_of(LINE))
    scans = cohort[cohort["set"] != ""]
    write_slices(scans, read_table(folder / "files.parquet"), 1, folder)  # the phantom's scans are other tests'
    return scans, read_json(folder / "labelled.json")


def preprocessed(scans: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The catalogue, and what became of the masks."""
    data, acquire, sources = Path("data") / LINE, load_stage(AcquireConfig, LINE, "acquire"), sources_of(LINE)
    acquire_shard(LINE, 0, data / "cohort", sources, acquire, data / "acquire")
    screened = screen_shard(data / "acquire", scans, 0, load_stage(ScreenConfig, LINE, "screen"), data / "screen")
    jobs, grid = jobs_of(LINE, data / "cohort", 0, sources, acquire), load_stage(PreprocessConfig, LINE, "preprocess")
    masks = masks_by_series(jobs, data / "cohort", 0, sets_of(LINE))
    catalogue = preprocess_shard(jobs, data / "acquire", screened, grid, data / "preprocess", masks)
    return catalogue, account(data / "cohort", (0,), screened[["series", "reason"]], catalogue)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.mark.slow
def test_structure_sets_of_a_folder_find_their_series(
    ct_root: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five scans one is as it is, one's structure set is of another frame of reference, one's is empty, one has
    none; the fifth is in no row of the table. A sixth structure set is of nobody."""
    patients = ("sts_001", "sts_002", "sts_003", "sts_008")
    Path("scans").mkdir()
    for name in (*patients, "sts_012"):
        Path("scans", name).symlink_to(ct_root / "dicom" / name)
    Path("labels.csv").write_text("\n".join(["id,side", *(f"{name.upper()},test" for name in patients)]) + "\n")
    for name in ("sts_001", "sts_002", "sts_003", "sts_005", "sts_012"):
        Path("masks", name).mkdir(parents=True)
        shutil.copy(ct_root / "labels" / name / "RS.dcm", f"masks/{name}/RS.dcm")
    other = pydicom.dcmread("masks/sts_002/RS.dcm")
    for item in [*other.ReferencedFrameOfReferenceSequence, *other.StructureSetROISequence]:
        item["ReferencedFrameOfReferenceUID" if "ROINumber" in item else "FrameOfReferenceUID"].value = "1.2.3.4"
    other.save_as("masks/sts_002/RS.dcm")
    empty = pydicom.dcmread("masks/sts_003/RS.dcm")
    for item in empty.ROIContourSequence:
        del item.ContourSequence
    empty.save_as("masks/sts_003/RS.dcm")
    Path("masks/notes.txt").write_text("not a mask")

    words = "site --scans dicom:scans --labels labels.csv --key patient=id --external --masks masks"
    add_set(monkeypatch, *words.split(), "--names", "GTV_Mass_CT=tumour")
    scans, told = listed()
    of = told["site"]["masks"]
    assert (of["masks"], of["masks_used"], of["scans_with_masks"]) == (5, 3, 3)
    assert [len(of[f"masks_{why}"]) for why in ("without_scan", "of_no_row", "of_several_scans")] == [1, 1, 0]
    assert len(of["scans_without_masks"]) == 1
    assert of["files_that_are_no_mask"] == {"other": 1}

    catalogue, came_to = preprocessed(scans)
    assert catalogue["decoded"].all()
    assert came_to["site"]["label_maps"] == 2
    (why,) = came_to["site"]["not_used"].values()
    assert "they are drawn in another frame of reference than the volume's" in why
    assert "RS.dcm" not in why
    assert "sts_002" not in why
    assert len(came_to["site"]["empty"]) == 1
    assert came_to["site"]["structures"]["tumour"]["scans"] == 1
    assert came_to["site"]["structures"]["tumour"]["looked_for"] == 2

    (series,) = set(catalogue.loc[catalogue["labels_found"] != "", "series"]) - set(came_to["site"]["empty"])
    volume = Path("data", LINE, "preprocess/volumes", f"{series}.b2nd")
    path = label_map_of(volume)
    assert path is not None
    found, stored = read_label_map(path), StoredVolume(volume)
    (value,) = [value for value, name in found.names.items() if name == "tumour"]
    assert found.codes.keys() <= found.names.keys()
    theirs = read_labels(ct_root / "labels/sts_001/mask.nii.gz", stored.affine, stored.shape)
    assert dice(found.values == value, theirs.combined() > 0) > 0.95

    again, same = preprocessed(scans)
    pd.testing.assert_frame_equal(again, catalogue)
    assert same == came_to


@pytest.mark.slow
def test_a_file_per_structure_and_one_for_all(ct_root: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Laid out as TotalSegmentator's data set and as the Decathlon's are. One of the real files is on another grid."""
    of = ct_root / "nifti"
    for name in ("aorta_cta", "pulmonary_cta"):
        Path("total", name, "segmentations").mkdir(parents=True)
        for path in (of / name).iterdir():
            folder = Path("total", name) if path.name == "ct.nii.gz" else Path("total", name, "segmentations")
            shutil.copy(path, folder / path.name)
    Path("total.csv").write_text("image_id,split\naorta_cta,train\npulmonary_cta,test\n")
    for part, file in (("imagesTr", "ct.nii.gz"), ("labelsTr", "labels_totalsegmentator.nii.gz")):
        Path("decathlon", part).mkdir(parents=True)
        shutil.copy(of / "abdomen_pelvis" / file, f"decathlon/{part}/abdomen_007.nii.gz")
    Path("decathlon/dataset.json").write_text('{"labels": {"0": "background", "5": "hepar"}}')
    Path("decathlon.csv").write_text("id\nabdomen_007\n")
    for line in (
        "total --scans nifti:total --patient {patient}/ct --labels total.csv --key patient=image_id --split split "
        "--masks total --match {patient}/segmentations/{structure}",
        "decathlon --scans nifti:decathlon --patient imagesTr/{patient} --labels decathlon.csv --key patient=id "
        "--external --masks decathlon --match labelsTr/{patient}",
    ):
        add_set(monkeypatch, *line.split())
    assert read_yaml()[LINE]["sets"]["decathlon"]["masks"]["names"] == {5: "hepar"}
    scans, told = listed()
    assert {name: (own["masks"]["masks_used"], own["masks"]["scans_with_masks"]) for name, own in told.items()} == {
        "total": (5, 2),
        "decathlon": (1, 1),
    }
    catalogue, came_to = preprocessed(scans)
    assert catalogue["decoded"].all(), catalogue["detail"].tolist()
    (why,) = came_to["total"]["not_used"].values()
    assert "a grid of 191 x 167 x 233 voxels that ends" in why
    assert "of 112 x 102 x 122" in why
    structures = came_to["total"]["structures"]
    assert {name: of["scans"] for name, of in structures.items()} == {
        "aorta": 1, "aorta_false_lumen": 1, "aorta_true_lumen": 1
    }  # fmt: skip
    assert structures["aorta"]["overlapped"] == 1, "the lumens are parts of it"
    assert structures["aorta_true_lumen"]["overlapped"] == 0

    whole = came_to["decathlon"]["structures"]
    assert len(whole) == 117
    assert whole["hepar"]["scans"] == 1, "the set's name for a value that the file itself calls liver"
    assert whole["spleen"]["scans"] == 1
    (series,) = scans.loc[scans["set"] == "decathlon", "series"]
    volume = Path("data", LINE, "preprocess/volumes", f"{series}.b2nd")
    path = label_map_of(volume)
    assert path is not None
    found, stored = read_label_map(path), StoredVolume(volume)
    theirs = read_labels(of / "abdomen_pelvis/labels_totalsegmentator.nii.gz", stored.affine, stored.shape)
    np.testing.assert_array_equal(found.values, theirs.layers[0])
