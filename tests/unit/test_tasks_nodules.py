"""Nodules: split by patient, pinned, and seen through a window that does not tell their size."""

import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from components.errors import UserError
from components.files import sha256_file
from components.preprocess.config import PreprocessConfig
from components.settings import parse
from components.sources.lidc import read_ratings
from components.tasks.config import EvaluateConfig
from components.tasks.nodules import RATINGS, half_of, mirrored, nodules, read_nodule
from tests.unit.test_tasks_cases import EVALUATE, FOUR, PREPROCESS, inputs

WINDOW = (6.0, 20.0, 20.0)
PATCH = (16, 32, 32)


def write_nodule(path: Path, side: int, slices: int) -> None:
    """A bright cube of 6 mm in a grey file of ``side`` x ``side`` x ``slices`` voxels of 1 x 1 x 1.5 mm."""
    hu = np.full((side, side, slices), -800, dtype=np.int16)
    a, c = side // 2, slices // 2
    hu[a - 3 : a + 3, a - 3 : a + 3, c - 2 : c + 2] = 50
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(hu, np.diag([-1.0, -1.0, 1.5, 1.0])), path)


def test_indices_mirror_at_the_border() -> None:
    assert mirrored(np.arange(-4, 7), 3).tolist() == [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0]


def test_the_file_s_extent_does_not_show(tmp_path: Path) -> None:
    """Equal nodules in a small and in a large file look the same to the encoder."""
    grid = parse(PreprocessConfig, PREPROCESS, "t")
    write_nodule(tmp_path / "small.nii.gz", 24, 6)
    write_nodule(tmp_path / "large.nii.gz", 60, 30)
    small = read_nodule(tmp_path / "small.nii.gz", grid, WINDOW, PATCH)
    large = read_nodule(tmp_path / "large.nii.gz", grid, WINDOW, PATCH)
    assert small.hu.shape == large.hu.shape == (20, 36, 36)
    assert small.hu.min() >= -800  # no air where the file ends
    assert np.array_equal(small.hu, large.hu)
    assert nib.aff2axcodes(small.affine) == ("S", "P", "L")


def test_another_labels_file_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labels\.csv is missing"):
        read_ratings(tmp_path, "0" * 64)
    (tmp_path / "labels.csv").write_text("file,patient_id\na.nii.gz,A\n")
    with pytest.raises(UserError, match="pins 0000"):
        read_ratings(tmp_path, "0" * 64)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"labels\.csv is no table \(EmptyDataError\)"),
        (b"\xff\xfe\x00", r"labels\.csv is no table \(UnicodeDecodeError\)"),
        (b"file,b\n1,2\n", r"labels\.csv lacks the columns patient_id, diameter_mm, Texture_value"),
    ],
)
def test_a_table_of_something_else_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_ratings(tmp_path, sha256_file(tmp_path / "labels.csv"))


def test_the_split_is_by_patient_and_by_seed() -> None:
    halves = [half_of(1, f"p{i}") for i in range(400)]
    assert 150 < halves.count("train") < 250
    assert halves != [half_of(2, f"p{i}") for i in range(400)]


def test_real_nodules_make_three_tasks_without_patients_of_pretraining(
    ct_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ct_root / "lidc_nodules"
    monkeypatch.setenv("CTFOUNDRY_ROOT_LIDC_NODULES", str(root))
    pinned = sha256_file(root / "labels.csv")
    labels = read_ratings(root, pinned)
    given = inputs("wholebody", FOUR, [])
    seen = labels["patient"].iloc[0]
    row = pd.DataFrame({"series": ["s9"], "patient": [seen], "split": ["pretrain"], "retest_of": [""]})
    row = row.assign(role="pretrain", status="accepted", source="dicom", volume="")
    config = parse(EvaluateConfig, EVALUATE | {"lidc_nodules": pinned}, "t")
    built = nodules("lidc_nodules", replace(given, curated=pd.concat([given.curated, row]), config=config))
    assert set(built.table["task"]) == {f"lidc_nodules/{name}" for name in RATINGS}
    assert seen not in set(built.table["patient"])
    assert "of patients in pretraining" in built.remarks["lidc_nodules/texture"]
    told = built.remarks["lidc_nodules/texture"]
    assert re.search(r"The window is larger than [1-9]\d* of \d+ files, mirrored there", told), "a quarter of all files"
    assert not built.table["case"].str.contains("LIDC").any()
    assert not built.table["volume"].str.contains("LIDC").any()
    assert built.table.groupby("patient")["split"].nunique().max() == 1
    assert built.table["diameter_mm"].notna().all()


def test_nodules_are_not_read_when_not_asked_for() -> None:
    assert EVALUATE["lidc_nodules"] is None
    built = nodules("lidc_nodules", inputs("wholebody", FOUR, []))
    assert built.table.empty
    assert len(built.not_evaluated) == 3
