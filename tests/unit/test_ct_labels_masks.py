"""The masks of a scan together: what holds where they overlap, and what is no mask of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from label_files import contour, rectangle, saved, scanned, segmentation, structures

from components.ct.labels.masks import Grid, Masked, MaskFile, check_reach, masks_apart, masks_together
from components.ct.labels.placing import LabelError
from components.ct.labels.stored import LabelMap, read_label_map, read_names, write_label_map
from components.ct.origin import Origin
from components.errors import UserError

SPACING = (2.0, 1.0, 1.0)
AFFINE = np.array([[0, 0, -1.0, 20], [0, -1.0, 0, 15], [2.0, 0, 0, -30], [0, 0, 0, 1]])
GRID = Grid(AFFINE, (12, 20, 24))
WHERE = np.s_[2:10, 4:16, 4:20]


def nifti(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE, table: str = "") -> MaskFile:
    """``values``: (n0, n1, n2), written as other software does, columns first."""
    image = nib.Nifti1Image(values.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]])
    if table:
        image.header.extensions.append(nib.nifti1.Nifti1Extension(0, table.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return MaskFile(path, "f0123", "")


def boxed(value: int = 1, box: Any = WHERE) -> np.ndarray:
    values = np.zeros(GRID.shape, dtype=np.uint8)
    values[box] = value
    return values


def together(*files: MaskFile, names: dict[str, str] | None = None, volume: Grid = GRID) -> Masked:
    return masks_together(files, names or {}, volume, GRID, Origin())


def test_a_label_map_keeps_its_values_and_says_what_they_are(tmp_path: Path) -> None:
    table = '<Label Key="3" Red="0"><![CDATA[left & right]]></Label> <Label Key="7">spleen &amp; hilum</Label>'
    values = boxed(3)
    values[0, 0, 0] = 200
    file = nifti(tmp_path / "all.nii.gz", values, table=table)
    found = together(file, names={"9": "liver", "3": "kidneys"})
    np.testing.assert_array_equal(found.labels.values, values)
    assert found.labels.names == {3: "kidneys", 7: "spleen & hilum", 9: "liver", 200: "label 200"}
    assert (found.overlapped, found.covered[3]) == ({}, 1.0)


def test_where_structures_overlap_the_smaller_holds(tmp_path: Path) -> None:
    """Whatever their files are called: a cyst would vanish in its kidney."""
    small = np.s_[4:6, 6:9, 6:9]
    files = [
        MaskFile(nifti(tmp_path / f"{name}.nii", boxed(value, box)).path, name, name)
        for name, value, box in (("cyst", 255, small), ("kidney", 1, WHERE), ("void", 0, small))
    ]
    for order in (files, files[::-1]):
        found = together(*order, names={"kidney": "ren"})
        own = {name: value for value, name in found.labels.names.items()}
        assert set(own) == {"cyst", "ren", "void"}
        np.testing.assert_array_equal(found.labels.values == own["cyst"], boxed(1, small) > 0)
        np.testing.assert_array_equal(found.labels.values > 0, boxed() > 0)
        assert found.overlapped == {own["ren"]: 2 * 3 * 3}
        assert found.covered == dict.fromkeys(own.values(), 1.0)


def test_a_mask_that_is_empty_is_one_and_one_that_lies_outside_is_none(tmp_path: Path) -> None:
    empty = together(nifti(tmp_path / "empty.nii.gz", boxed(0)), names={"1": "tumour"})
    assert (empty.labels.names, int(empty.labels.values.max())) == ({1: "tumour"}, 0)
    cropped = Grid(AFFINE @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 21], [0, 0, 0, 1.0]]), (12, 20, 3))
    with pytest.raises(UserError, match="labels f0123: nothing labelled lies within the volume; is it of the same"):
        together(nifti(tmp_path / "box.nii.gz", boxed()), volume=cropped)


def moved(grid: Grid, voxels: tuple[float, float, float]) -> np.ndarray:
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array(voxels)
    return affine


def test_a_grid_of_another_resolution_or_turned_is_of_the_same_scan() -> None:
    coarse = AFFINE.copy()
    coarse[:3, 1:3] *= 2
    coarse[:3, 3] += AFFINE[:3, 1:3].sum(axis=1) / 2
    check_reach(Grid(coarse, (12, 10, 12)), GRID)
    check_reach(Grid(coarse, (12, 10, 13)), GRID)  # as resampling rounds it up
    turned = AFFINE @ np.array([[0, 0, -1, 11], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    check_reach(Grid(turned, (24, 20, 12)), GRID)
    check_reach(Grid(moved(GRID, (0.5, -0.5, 1.0)), GRID.shape), GRID)


@pytest.mark.parametrize(
    ("shape", "voxels", "said"),
    [
        ((9, 20, 24), (0, 0, 0), "a grid of 9 x 20 x 24 voxels that ends 6.0 mm from where the scan's, of 12 x 20 x"),
        ((12, 20, 24), (0, 0, 3), "ends 3.0 mm from"),
        ((14, 20, 24), (-1, 0, 0), ""),
        ((14, 20, 26), (-1, 0, -2), "ends 2.0 mm from"),
        ((12, 24, 20), (0, 0, 0), "a grid of 12 x 24 x 20 voxels"),
    ],
)
def test_a_grid_that_ends_elsewhere_is_refused(shape: tuple[int, ...], voxels: Any, said: str) -> None:
    other = Grid(moved(GRID, voxels), shape)
    if not said:
        return check_reach(other, GRID)
    with pytest.raises(LabelError, match=said):
        check_reach(other, GRID)
    return None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (boxed().astype(np.float32) / 2, "labels f0123: a label of 0.5 is not allowed: whole numbers"),
        (boxed().astype(np.int16) - 1000, "labels f0123: a label of -1000 is not allowed: 0 and above"),
        (np.arange(12 * 20 * 24, dtype=np.int16).reshape(GRID.shape) % 300, "299 structures of one scan are too many"),
    ],
)
def test_what_is_no_mask_is_one_line_without_its_name(values: np.ndarray, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        together(nifti(tmp_path / "Doe_John.nii.gz", values))
    assert said in str(caught.value)
    assert "Doe" not in str(caught.value)


def test_one_file_that_cannot_be_read_costs_the_label_map(tmp_path: Path) -> None:
    """Or what it holds would be taken for background."""
    whole = nifti(tmp_path / "a.nii.gz", boxed())
    (tmp_path / "Doe.nii.gz").write_bytes(whole.path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"^f9: "):
        together(whole, MaskFile(tmp_path / "Doe.nii.gz", "f9", ""))


def test_objects_together_keep_their_codes_and_are_of_the_scan(tmp_path: Path) -> None:
    of = scanned(tmp_path / "ct", matrix=40)
    masks = np.zeros((24, 40, 40, 2), dtype=np.uint8)
    masks[4:12, 5:20, 5:20, 0] = masks[4:12, 10:30, 10:30, 1] = 1
    seg = saved(segmentation(of.items, masks, names=("one", "two")), tmp_path / "seg.dcm")
    drawn = {"GTV": [contour(rectangle(of.items[n], (24.6, 33.4), (24.6, 33.4))) for n in (14, 15)]}
    planned = saved(structures(of.items[0], drawn), tmp_path / "rs.dcm")
    grid = Grid(of.volume.affine, of.volume.hu.shape)
    files = [MaskFile(seg, "f1", ""), MaskFile(planned, "f2", "")]
    scan = Origin.of(of.items[0])
    found = masks_apart(files, {"GTV": "tumour"}, grid, grid, scan)
    assert found.labels.names == {1: "one", 2: "two", 3: "tumour"}
    assert found.labels.codes == {1: "SCT 10200004 Liver", 2: "SCT 10200004 Liver", 3: "ORGAN"}
    assert found.overlapped == {2: 8 * 10 * 10}, "the larger one"
    assert [int((found.labels.values == value).sum()) for value in (1, 2, 3)] == [8 * 225, 8 * 300, 2 * 81]

    other = saved(structures(of.items[0], drawn, frame="1.2.3"), tmp_path / "elsewhere.dcm")
    with pytest.raises(UserError, match=r"^labels f3: they are drawn in another frame of reference than the volume's"):
        masks_apart([files[0], MaskFile(other, "f3", "")], {}, grid, grid, scan)


def test_codes_are_stored_beside_the_names(tmp_path: Path) -> None:
    found = LabelMap(boxed(2), {1: "liver", 2: "tumour"}, {1: "SCT 10200004 Liver"})
    path = tmp_path / "labels" / "s1.b2nd"
    write_label_map(path, found, AFFINE)
    back = read_label_map(path)
    np.testing.assert_array_equal(back.values, found.values)
    assert (back.names, back.codes) == (found.names, found.codes)
    assert read_names(path) == found.names
    path.with_suffix(".json").write_text('{"1": {"code": "SCT 1 x"}}')
    with pytest.raises(UserError, match=r"labels s1.b2nd: not readable as a stored label map \(KeyError\)"):
        read_names(path)
