"""A release that answers on every route, and an index beside it; what offline code answers to the same requests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from client import PATIENT
from released import write_segmenter

from components.bundle.manifest import write_manifest
from components.ct.keys import patient_key
from serving.asking import classified, explained, located, retrieved, segmented
from serving.classifying import classify_file, report_file
from serving.embedding import ServedBundle, embed_file
from serving.explaining import Wanted, saliency_file
from serving.locating import locate_files
from serving.nearest import Index, Indexed, retrieve_file
from serving.pacs import Doors
from serving.previewing import preview_file
from serving.segmenting import segment_file
from serving.working import told_of
from tests.unit.test_serving_classifying import head

STRUCTURES = ("liver", "kidney_left")
Point = tuple[float, float, float]


def write_answering(bundle: Path, folder: Path) -> Path:
    """A release with heads that see the scan and a point, and one that segments."""
    made = Path(shutil.copytree(bundle, folder))
    head(made, "findings/ich", "scan")
    head(made, "organs", "point")
    write_segmenter(made, "organs_segmented", STRUCTURES)
    write_manifest(made, "wholebody", "ctfoundry-wholebody", {"code": "0" * 64})
    return made


def write_index(release: ServedBundle, path: Path) -> Path:
    """Three cases of made-up vectors, one of them of the tests' patient."""
    patients = ["p1", patient_key(PATIENT), "p2"]
    cases = tuple(Indexed(f"s{n}", patient, "site", {"organ": ["liver"]}) for n, patient in enumerate(patients))
    vectors = np.random.default_rng(5).normal(size=(3, release.embedder.dim)).astype(np.float32)
    Index(release.manifest.digest, cases, vectors).write(path)
    return path


def offline(query: str, scan: Path, other: Path, release: ServedBundle, index: Index) -> dict[str, Any] | bytes:
    """What the code that serves nobody answers to a request: JSON-like, or a file's bytes.

    Raises:
        UserError: as the service refuses it.
    """
    route, _, parameters = query.partition("?")
    asked, told = dict(parse_qsl(parameters)), told_of(release, index, Doors())
    answers: Mapping[str, Callable[[], dict[str, Any] | bytes]] = {
        "embed": lambda: embed_file(scan, release).to_json(),
        "classify": lambda: _classified(scan, release, classified(asked, told)),
        "segment": lambda: _segmented(scan, release, segmented(asked, told)),
        "saliency": lambda: _explained(scan, release, explained(asked, told)),
        "locate": lambda: locate_files(scan, other, release, located(asked, told)["point_mm"]),
        "retrieve": lambda: retrieve_file(scan, release, index, retrieved(asked, told)["nearest"]),
        "preview": lambda: preview_file(scan, release).as_nifti(),
    }
    return answers[route]()


def _classified(scan: Path, release: ServedBundle, asked: dict[str, Any]) -> dict[str, Any] | bytes:
    if asked["form"] == "dicom":
        return report_file(scan, release, asked["point_mm"])[1]
    return classify_file(scan, release, asked["point_mm"])


def _segmented(scan: Path, release: ServedBundle, asked: dict[str, Any]) -> dict[str, Any] | bytes:
    found = segment_file(scan, release, asked["head"], with_images=asked["form"] == "dicom")
    return {"json": lambda: found.content, "nifti": found.as_nifti, "dicom": found.as_dicom}[asked["form"]]()


def _explained(scan: Path, release: ServedBundle, asked: dict[str, Any]) -> dict[str, Any] | bytes:
    found = saliency_file(scan, release, Wanted(**asked["wanted"]))
    return found.as_nifti() if asked["form"] == "nifti" else found.content
