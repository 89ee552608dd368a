"""What a machine runs out of while a tree is read, disk and open files: it is told, and no sound file pays for it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from components.cohort.config import CohortConfig
from components.errors import UserError
from components.files import DiskFullError
from components.settings import load_stage
from components.sources import dicom_tree, raw
from components.sources.dicom_tree import list_tree
from components.sources.tree import Archives, tree_digest
from tests.unit.small_pacs import as_file, make_series
from tests.unit.small_trees import ROOT, TRANSFER, members_of, pinned, put, zipped


@pytest.fixture(scope="module")
def config() -> CohortConfig:
    return load_stage(CohortConfig, "wholebody", "cohort", ROOT / "params.yaml")


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.usefixtures("secret")
def test_a_full_disk_stops_the_stage_and_makes_no_empty_slices(
    config: CohortConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_series(1, 20, side=256)
    zipped(tmp_path / "root/a.zip", {f"{n}.dcm": as_file(image) for n, image in enumerate(images)})
    source = pinned(config, tmp_path / "root", monkeypatch)
    (series,) = source.list_series(frozenset()).series
    row = {**vars(series), "source": "dicom"}
    with small_disk(tmp_path / "small", "1m") as small:
        with pytest.raises(DiskFullError, match="disk: full"):
            raw.fetch(source, row, list(series.members), small / "raw", TRANSFER)
        assert list(small.iterdir()) == []


def test_a_full_temporary_disk_is_no_damage(
    config: CohortConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped(tmp_path / "root/a.zip", {"1.dcm": as_file(make_series(1, 1, side=1024)[0])}, zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(dicom_tree, "MEMORY_BYTES", 1000)
    with small_disk(tmp_path / "small", "1m") as small:
        monkeypatch.setattr(tempfile, "tempdir", str(small))
        with pytest.raises(UserError, match=r"disk: full at .* while the source was read"):
            list_tree(tmp_path / "root", config)


MANY_ZIPS = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
from components.sources.dicom_tree import list_tree
from components.cohort.config import CohortConfig
from components.settings import load_stage
listing = list_tree(Path(sys.argv[1]), load_stage(CohortConfig, "wholebody", "cohort", Path(sys.argv[2])), workers=1)
print(sorted((status, listing.files.status.count(status)) for status in set(listing.files.status)))
"""


def test_more_zips_than_open_files_are_compared_all_the_same(tmp_path: Path) -> None:
    """Two exports of the same scans, a zip per slice: every second file is a copy, none is in conflict."""
    for name, content in members_of(1, 150).items():
        for export in ("a", "b"):
            zipped(tmp_path / "root" / export / f"{name}.zip", {name: content})
    found = subprocess.run([sys.executable, "-c", MANY_ZIPS, str(tmp_path / "root"), str(ROOT / "params.yaml")],
                           capture_output=True, text=True, cwd=ROOT, check=True)  # fmt: skip
    assert found.stdout.strip() == "[('archive', 300), ('duplicate', 150), ('image', 150)]"


def test_too_many_open_files_are_told_and_no_file_is_unreadable(config: CohortConfig, tmp_path: Path) -> None:
    put(tmp_path, make_series(1))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1, before[1]))
        with pytest.raises(UserError, match="too many open files"):
            list_tree(tmp_path, config, workers=1)
        with pytest.raises(UserError, match="too many open files"):
            tree_digest(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for number in taken:
            os.close(number)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_few_zips_are_open_at_a_time_and_all_are_closed(tmp_path: Path) -> None:
    for number in range(20):
        zipped(tmp_path / f"{number:02d}.zip", {"a": bytes([number])})
    opened = open_files()
    with Archives(tmp_path) as archives:
        read = [b"".join(archives.blocks(f"{number:02d}.zip!/a")) for number in (*range(20), *range(20))]
        assert open_files() <= opened + 8
    assert open_files() == opened
    assert read == [bytes([number]) for number in (*range(20), *range(20))]
