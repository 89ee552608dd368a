"""Small trees of DICOM files and zips, for the tests of the source ``dicom``."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from components.cohort.config import CohortConfig
from components.sources.config import TransferConfig
from components.sources.dicom import DicomSource
from components.sources.interface import Listing
from components.sources.tree import tree_digest
from tests.unit.small_pacs import as_file, make_series

ROOT = Path(__file__).resolve().parents[2]
TRANSFER = TransferConfig(attempts=1, backoff_s=0.0, stall_s=1.0, slowest_mb_s=0.1, connections=1)


def put(folder: Path, images: list[Dataset]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        (folder / f"{number:04d}.dcm").write_bytes(as_file(image))
    return sorted(folder.iterdir())


def zipped(path: Path, files: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def members_of(number: int, instances: int = 3) -> dict[str, bytes]:
    return {f"{n:04d}.dcm": as_file(image) for n, image in enumerate(make_series(number, instances))}


def counts(listing: Listing) -> dict[str, int]:
    return dict(Counter(listing.files.status))


def pinned(config: CohortConfig, root: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> DicomSource:
    monkeypatch.setenv("CTFOUNDRY_ROOT_DICOM", str(root))
    of_tree = {"source": "dicom", "source_digest": tree_digest(root), "paths": "shown", **changes}
    return DicomSource(config.model_copy(update=of_tree), "wholebody")
