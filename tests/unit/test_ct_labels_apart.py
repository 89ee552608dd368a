"""A file of labels costs its reader's process and no other, whatever it does to it."""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from label_files import Scan, contour, rectangle, saved, scanned, segmentation, structures

from components.ct.labels import onto_grid
from components.ct.labels.apart import read_labels_apart
from components.ct.labels.onto_grid import read_labels
from components.errors import UserError
from flows.volumes import add_options


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    return scanned(tmp_path_factory.mktemp("scan"))


@pytest.fixture(scope="module")
def files(scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The kinds of labels; those of the SEG overlap."""
    folder, masks = tmp_path_factory.mktemp("labels"), np.zeros((*scan.volume.hu.shape, 2), np.uint8)
    masks[5:15, 20:60, 30:50, 0] = masks[8:20, 50:70, 30:50, 1] = 1
    rois = {"a": [contour(rectangle(item, (20.5, 60.5), (20.5, 60.5))) for item in scan.items[5:9]]}
    image = nib.Nifti1Image(masks[..., 0].transpose(2, 1, 0), scan.volume.affine[:, [2, 1, 0, 3]])
    nib.save(image, folder / "mask.nii.gz")
    return {
        "read_segments": saved(segmentation(scan.items, masks), folder / "seg.dcm"),
        "read_contours": saved(structures(scan.items[0], rois), folder / "RS.dcm"),
        "read_label_map": folder / "mask.nii.gz",
    }


def label(scan: Scan, path: Path, target: Path) -> None:
    """As a user does."""
    parser = argparse.ArgumentParser()
    add_options(parser.add_subparsers().add_parser("volume"))
    arguments = parser.parse_args(
        ["volume", "label", str(scan.folder), str(path), "--output", str(target), "--force", "--line", "head"]
    )
    arguments.run(arguments)


READERS = ("read_segments", "read_contours", "read_label_map")


@pytest.mark.parametrize("reader", READERS)
def test_labels_are_the_same_read_apart(scan: Scan, files: dict[str, Path], reader: str) -> None:
    grid = (scan.volume.affine, scan.volume.hu.shape)
    here, apart = read_labels(files[reader], *grid), read_labels_apart(files[reader], *grid)
    np.testing.assert_array_equal(apart.layers, here.layers)
    np.testing.assert_array_equal(apart.affine, here.affine)
    assert apart.segments == here.segments
    assert len(here.layers) == (2 if reader == "read_segments" else 1)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda *_: ctypes.string_at(0), "its reader crashed (SIGSEGV)"),
        (lambda *_: ctypes.PyDLL(None).sleep(600), "took longer than 5 s (CTFOUNDRY_MAX_SECONDS)"),
        (lambda *_: np.ones(2**35, np.uint8), "they do not fit into the memory"),
    ],
    ids=["crash", "endless", "memory"],
)
def test_labels_that_kill_their_reader_are_one_line(
    scan: Scan,
    files: dict[str, Path],
    reader: str,
    fault: Callable[..., object],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onto_grid, reader, fault)
    monkeypatch.setenv("CTFOUNDRY_MAX_SECONDS", "5")
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    with pytest.raises(UserError) as error:
        label(scan, files[reader], tmp_path / "out")
    assert str(error.value).startswith(f"labels {files[reader].name}: ")
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_labels_inflate_to_is_bounded(scan: Scan, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A NIfTI of few bytes and many voxels, which no header betrays as a bomb."""
    bomb = files["read_label_map"].with_name("bomb.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((512, 512, 1024), np.uint8), np.eye(4)), bomb)
    assert bomb.stat().st_size < 2**21
    monkeypatch.setenv("CTFOUNDRY_MAX_MEMORY_BYTES", str(2**26))
    with pytest.raises(UserError, match=r"labels bomb\.nii\.gz: they do not fit into the memory"):
        read_labels_apart(bomb, scan.volume.affine, scan.volume.hu.shape)
