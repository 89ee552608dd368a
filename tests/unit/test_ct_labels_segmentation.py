"""DICOM SEG of CT as it is: under a tilted gantry, with one longer gap, odd files."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from label_files import Scan, bare, saved, segmentation, three_scans
from pydicom.uid import DeflatedExplicitVRLittleEndian

from components.ct.labels.onto_grid import Labels, read_labels
from components.ct.standardise import resample_only, straighten
from components.ct.store import Volume
from components.errors import UserError
from components.preprocess.config import PreprocessConfig
from components.settings import load_stage

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
BOX = (slice(5, 15), slice(20, 60), slice(30, 50))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scan]:
    return three_scans(tmp_path_factory.mktemp("scans"))


def boxes(scan: Scan) -> np.ndarray:
    """Two segments that overlap, and an empty one."""
    masks = np.zeros((*scan.volume.hu.shape, 3), np.uint8)
    masks[(*BOX, 0)] = 1
    masks[8:20, 50:70, 30:50, 1] = 1
    return masks


def on(volume: Volume, path: Path, *only: str) -> Labels:
    return read_labels(path, volume.affine, volume.hu.shape, only=only)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("name", ["even", "tilted", "uneven"])
def test_frames_lie_on_the_slices_that_they_were_drawn_on(
    scans: dict[str, Scan], name: str, kind: str, tmp_path: Path
) -> None:
    scan = scans[name]
    masks = boxes(scan)
    stored = masks * 0.75 + 0.25 * masks[..., [1, 0, 2]] * (1 - masks) if kind == "FRACTIONAL" else masks
    if kind == "LABELMAP":
        stored = masks = masks * (1 - np.pad(masks[..., :2], [(0, 0)] * 3 + [(1, 0)]))  # a voxel has one label
    path = saved(segmentation(scan.items, stored.astype(np.float32 if kind == "FRACTIONAL" else np.uint8), kind),
                 tmp_path / "seg.dcm")  # fmt: skip
    labels = on(scan.volume, path)
    for number in range(3):
        np.testing.assert_array_equal(labels.mask(f"segment {number + 1}"), masks[..., number] == 1)
    assert [s.covered for s in labels.segments] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["tilted", "uneven"])
def test_frames_that_form_no_grid_land_in_the_same_place_on_the_lines_grid(
    scans: dict[str, Scan], name: str, tmp_path: Path
) -> None:
    scan = scans[name]
    path = saved(segmentation(scan.items, boxes(scan)), tmp_path / "seg.dcm")
    native = on(scan.volume, path).mask("segment 1")
    centre = scan.volume.affine[:3, :3] @ np.argwhere(native).mean(axis=0) + scan.volume.affine[:3, 3]
    straight = straighten(scan.volume)
    grid = resample_only(scan.volume, load_stage(PreprocessConfig, "wholebody", "preprocess", PARAMS))
    for volume in (straight, grid):
        mask = on(volume, path).mask("segment 1")
        found = volume.affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + volume.affine[:3, 3]
        assert np.abs(found - centre).max() < 0.51 * max(volume.spacing)
        assert mask.sum() * np.prod(volume.spacing) == pytest.approx(
            native.sum() * abs(np.linalg.det(scan.volume.affine[:3, :3])), rel=0.04
        )
        assert (np.diff(np.flatnonzero(mask.any(axis=(1, 2)))) == 1).all(), "no slice left out"


def test_frames_outside_of_the_volume_are_not_covered(scans: dict[str, Scan], tmp_path: Path) -> None:
    scan = scans["uneven"]
    path = saved(segmentation(scan.items, boxes(scan)), tmp_path / "seg.dcm")
    upper = scan.volume.affine.copy()
    upper[:3, 3] += 10 * upper[:3, 0]
    labels = read_labels(path, upper, scan.volume.hu.shape)
    assert (labels.segments[0].voxels, labels.segments[0].covered) == (5 * 800, 0.5)
    turned = scan.volume.affine.copy()
    turned[:3, :3] = np.array([[1, 0, 0], [0, 0.9, -0.43], [0, 0.43, 0.9]]) @ turned[:3, :3]
    with pytest.raises(
        UserError, match=r"labels seg\.dcm: its planes leave the volume's by \d+\.\d\d mm; allowed: 0.1"
    ):
        read_labels(path, turned, scan.volume.hu.shape)


def test_bare_files_and_chosen_segments(scans: dict[str, Scan], tmp_path: Path) -> None:
    scan = scans["even"]
    path = bare(segmentation(scan.items, boxes(scan), names=("one", "two", "none")), tmp_path / "seg.dcm")
    assert [(s.name, s.voxels) for s in on(scan.volume, path).segments] == [("one", 8000), ("two", 4800), ("none", 0)]
    chosen = on(scan.volume, path, "two")
    assert [(s.name, s.voxels) for s in chosen.segments] == [("two", 4800)]
    assert chosen.layers.sum() == 4800 * chosen.segments[0].value


@pytest.mark.parametrize(
    "keyword",
    ["DimensionIndexSequence", "SegmentSequence", "PerFrameFunctionalGroupsSequence", "PixelData", "Rows",
     "SharedFunctionalGroupsSequence", "NumberOfFrames", "SegmentationType"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["even", "uneven"])
def test_what_is_missing_is_one_line_or_not_needed(
    scans: dict[str, Scan], name: str, keyword: str, tmp_path: Path
) -> None:
    scan = scans[name]
    seg = segmentation(scan.items, boxes(scan))
    del seg[keyword]
    path = saved(seg, tmp_path / "seg.dcm")
    if (name, keyword) == ("uneven", "DimensionIndexSequence"):  # frame by frame, it is not looked at
        np.testing.assert_array_equal(on(scan.volume, path).mask("segment 1"), boxes(scan)[..., 0] == 1)
        return
    with pytest.raises(UserError, match=r"^labels seg\.dcm: [^\n]*$"):
        on(scan.volume, path)


def test_a_deflated_file_is_read(scans: dict[str, Scan], tmp_path: Path) -> None:
    scan, path = scans["even"], tmp_path / "seg.dcm"
    seg = segmentation(scan.items, boxes(scan))
    seg.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    saved(seg, path)
    np.testing.assert_array_equal(on(scan.volume, path).mask("segment 1"), boxes(scan)[..., 0] == 1)


def test_frames_kilometres_apart_do_not_fill_the_memory(scans: dict[str, Scan], tmp_path: Path) -> None:
    scan = scans["even"]
    seg = segmentation(scan.items, boxes(scan))
    groups = deepcopy(seg.PerFrameFunctionalGroupsSequence)
    x, y, z = groups[-1].PlanePositionSequence[0].ImagePositionPatient
    groups[-1].PlanePositionSequence[0].ImagePositionPatient = [x, y, float(z) + 5.0 * 1_000_000]
    seg.PerFrameFunctionalGroupsSequence = groups
    with pytest.raises(UserError, match=r"labels seg\.dcm: frames that span \d+ x \d+ x \d+ voxels are too many"):
        on(scan.volume, saved(seg, tmp_path / "seg.dcm"))
