"""Label maps on the grid of a stored volume: they lie where the organs are, and hold as much as these."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from components.ct.dicom import read_series
from components.ct.labels.onto_grid import label_map
from components.ct.labels.stored import LabelMap, label_map_of, names_of, read_label_map, write_label_map
from components.ct.origin import Origin
from components.ct.standardise import standardise
from components.ct.store import StoredVolume, Volume, voxel_of, write_volume
from components.errors import UserError
from components.files import sha256_file
from components.preprocess.config import PreprocessConfig
from components.settings import load_stage
from components.sources.phantom.scanner import scan
from tests.released import ROOT
from tests.unit.phantom_plans import small


def standardised(folder: Path, line: str = "wholebody") -> Volume:
    config = load_stage(PreprocessConfig, line, "preprocess", ROOT / "params.yaml")
    return standardise(read_series(sorted(folder.glob("*.dcm"))), config)


def placed(folder: Path, **changes: object) -> tuple[pd.DataFrame, Volume, LabelMap]:
    """A phantom of the trunk, its volume on the line's grid, and its labels there."""
    organs = scan(small("trunk", **changes), folder).query("kind == 'organ'")
    volume = standardised(folder)
    return organs, volume, label_map(folder / "mask.nii.gz", volume, Origin())


@pytest.mark.parametrize(
    "changes",
    [{}, {"position": "FFP", "descending": True}, {"oblique_deg": 0.9}, {"fault": "gantry_tilt"}],
    ids=["upright", "prone and feet first", "oblique", "tilted gantry"],
)
def test_organs_lie_where_they_are_annotated(tmp_path: Path, changes: dict[str, object]) -> None:
    organs, volume, found = placed(tmp_path, **changes)
    assert found.values.shape == volume.hu.shape
    values = {name: value for value, name in found.names.items()}
    voxel_ml = abs(np.linalg.det(volume.affine[:3, :3])) / 1000
    assert len(organs) >= 8
    for organ in organs.to_dict("records"):
        mask = found.values == values[organ["structure"]]
        voxel = np.rint(voxel_of(volume.affine, [organ["x"], organ["y"], organ["z"]])).astype(int)
        assert mask[tuple(voxel)], organ["structure"]
        assert mask.sum() * voxel_ml == pytest.approx(organ["volume_ml"], rel=0.04), organ["structure"]


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    _, volume, found = placed(tmp_path)
    write_volume(tmp_path / "volumes" / "s1.b2nd", volume, {})
    assert label_map_of(tmp_path / "volumes" / "s1.b2nd") is None
    paths = [tmp_path / "labels" / name for name in ("s1.b2nd", "s2.b2nd")]
    for path in paths:
        write_label_map(path, found, volume.affine)
    assert label_map_of(tmp_path / "volumes" / "s1.b2nd") == paths[0]
    assert sha256_file(paths[0]) == sha256_file(paths[1])
    assert sha256_file(names_of(paths[0])) == sha256_file(names_of(paths[1]))
    again = read_label_map(paths[0])
    np.testing.assert_array_equal(again.values, found.values)
    assert again.names == found.names
    assert again.values.shape == StoredVolume(tmp_path / "volumes" / "s1.b2nd").shape
    keys = list(json.loads(names_of(paths[0]).read_text()))
    assert keys == sorted(keys)


def test_values_that_a_byte_cannot_hold_are_refused(tmp_path: Path) -> None:
    values = np.zeros((4, 5, 6), np.int16)
    values[1, 1, 1] = 300
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "mask.nii.gz")
    volume = Volume(np.zeros((6, 5, 4), np.int16), np.eye(4)[:, [2, 1, 0, 3]])
    with pytest.raises(UserError, match=r"labels mask.nii.gz: a value of 300 is not allowed: at most 255"):
        label_map(tmp_path / "mask.nii.gz", volume, Origin())


def test_labels_of_another_place_are_refused(tmp_path: Path) -> None:
    scan(small("trunk"), tmp_path)
    volume = standardised(tmp_path)
    away = volume.affine.copy()
    away[:3, 3] += 5000
    with pytest.raises(UserError, match=r"labels mask.nii.gz: nothing labelled lies within the volume"):
        label_map(tmp_path / "mask.nii.gz", replace(volume, affine=away), Origin())


def test_what_is_no_label_map_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "s1.b2nd"
    path.write_bytes(b"nothing of the kind")
    names_of(path).write_text("{}")
    with pytest.raises(UserError, match=r"labels s1.b2nd: not readable as a stored label map \(\w+\)"):
        read_label_map(path)
    write_label_map(path, LabelMap(np.zeros((2, 3, 4), np.uint8), {1: "liver"}), np.eye(4))
    names_of(path).write_text('["liver"]')
    with pytest.raises(UserError, match=r"labels s1.b2nd: not readable"):
        read_label_map(path)


def test_what_lies_in_no_folder_has_no_label_map() -> None:
    """As the rows of a table of nodules name their files."""
    assert label_map_of(Path("lidc_nodules:0000")) is None
