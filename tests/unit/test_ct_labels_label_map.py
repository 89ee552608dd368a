"""NIfTI label maps: every value is a label of its own, and what is none is refused."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from components.ct.labels.onto_grid import Labels, read_labels
from components.errors import UserError

SHAPE = (12, 10, 8)


def written(path: Path, values: tuple[float, ...], kind: type, slope: float = 1.0) -> tuple[Path, np.ndarray]:
    """Blocks of ``values`` on a grid of 1 mm; and which block each voxel is in, from 1."""
    blocks = np.zeros(SHAPE, int)
    for number in range(len(values)):
        blocks[number * 2 : number * 2 + 2, 2:5, 3:7] = number + 1
    image = nib.Nifti1Image(np.array([0, *values])[blocks].astype(kind), np.eye(4), dtype=kind)
    image.header.set_slope_inter(slope, 0)
    nib.save(image, path)
    return path, blocks


def on(path: Path, *only: str) -> Labels:
    return read_labels(path, np.eye(4), SHAPE, only=only)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((1, 2, 200), np.uint8),
        ((40_000, 50_000, 65_535), np.uint16),
        ((100_001, 100_002, 7), np.int32),
        ((2**40, 2**40 + 1, 3), np.int64),
        ((1.0, 2.0, 70_000.0), np.float32),
    ],
)
def test_labels_are_kept_apart_whatever_their_value(values: tuple[float, ...], kind: type, tmp_path: Path) -> None:
    path, blocks = written(tmp_path / "a.nii.gz", values, kind)
    labels = on(path)
    assert [s.name for s in labels.segments] == [f"label {int(v)}" for v in sorted(values)]
    for number, value in enumerate(values, start=1):
        np.testing.assert_array_equal(labels.mask(f"label {int(value)}"), blocks == number)
        if max(values) <= 65_535:
            assert labels.segments[number - 1].value == value, "as the file has it"
    assert all(s.voxels == 24 and s.covered == 1.0 for s in labels.segments)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_share_within_the_volume_is_that_of_where_the_label_lies(axis: int, tmp_path: Path) -> None:
    path, blocks = written(tmp_path / "a.nii.gz", (1,), np.uint8)  # 2 x 3 x 4 voxels
    shifted = np.eye(4)
    shifted[axis, 3] = 1 + np.argwhere(blocks)[:, axis].min()  # the grid begins one voxel into it
    (segment,) = read_labels(path, shifted, SHAPE).segments
    assert segment.covered == pytest.approx([1 / 2, 2 / 3, 3 / 4][axis], abs=1e-6)
    assert segment.voxels == round(24 * segment.covered)


def test_names_follow_the_label_not_the_number_it_is_stored_as(tmp_path: Path) -> None:
    path, blocks = written(tmp_path / "a.nii.gz", (100_001, 100_002, 7), np.int32)
    (tmp_path / "a.json").write_text('{"100002": "liver", "7": "spleen", "9": "none here", "100003": "nor here"}')
    labels = on(path)
    assert [(s.name, s.voxels) for s in labels.segments] == [
        ("spleen", 24), ("none here", 0), ("label 100001", 24), ("liver", 24), ("nor here", 0),
    ]  # fmt: skip
    np.testing.assert_array_equal(labels.mask("liver"), blocks == 2)
    np.testing.assert_array_equal(labels.mask("spleen"), blocks == 3)
    assert not labels.mask("none here").any()
    assert not labels.mask("nor here").any()
    chosen = on(path, "spleen")
    assert [s.name for s in chosen.segments] == ["spleen"]
    np.testing.assert_array_equal(chosen.layers[0] > 0, blocks == 3)


def test_what_is_no_whole_number_is_told(tmp_path: Path) -> None:
    for value in (0.5, 1.5, 7.01):
        path, _ = written(tmp_path / "half.nii.gz", (1.0, value), np.float32)
        with pytest.raises(
            UserError, match=rf"labels half\.nii\.gz: a label of {value:g} is not allowed: whole numbers"
        ):
            on(path)
    scaled, _ = written(tmp_path / "scaled.nii.gz", (3, 6), np.int16, slope=1 / 3)
    assert [s.name for s in on(scaled).segments] == ["label 1", "label 2"], "what scaling rounds is whole"


def test_too_many_labels_are_told(tmp_path: Path) -> None:
    values = np.arange(48 * 48 * 48, dtype=np.int32).reshape(48, 48, 48)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(UserError, match=r"labels a\.nii: 110591 different labels are too many: at most 65535"):
        read_labels(tmp_path / "a.nii", np.eye(4), values.shape)


def test_thousands_of_labels_take_seconds(tmp_path: Path) -> None:
    """Shares and counts of all in one pass: a pass for each would take minutes."""
    import time

    values = (np.arange(100**3) // 100).reshape(100, 100, 100).astype(np.uint16)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    shifted = np.eye(4)
    shifted[0, 3] = 50.0
    started = time.process_time()
    labels = read_labels(tmp_path / "a.nii", shifted, values.shape)
    assert time.process_time() - started < 10
    assert len(labels.segments) == 9_999
    assert labels.segments[0].covered == 0.0
    assert labels.segments[-1].covered == 1.0


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_labels_that_do_not_say_where_they_lie_are_refused(name: str, tmp_path: Path) -> None:
    """Readers differ in where they would put them: they would name the wrong voxels."""
    path, blocks = written(tmp_path / name, (1, 2), np.uint8)
    image = nib.Nifti1Image(blocks.astype(np.uint8), np.eye(4))
    image.set_sform(np.eye(4), 0)
    image.set_qform(np.eye(4), 1)
    nib.save(image, path)
    np.testing.assert_array_equal(on(path).mask("label 2"), blocks == 2)
    image.set_qform(np.eye(4), 0)
    nib.save(image, path)
    with pytest.raises(UserError, match=rf"^{name}: the header states no orientation"):
        on(path)
